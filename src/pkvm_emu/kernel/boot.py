"""The boot from the moment the hypervisor is up: protected modules in order, then deprivilege.

Source: ``pkvm_load_early_modules`` and ``finalize_pkvm`` in ``arch/arm64/kvm/pkvm.c``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.modules import ModuleLoadError
from pkvm_emu.machine.state import Journal, StateList

#: What a usermode helper's exit status 1 looks like in the kernel's message.
_MODPROBE_FAILED = 256
_ENOENT = 2


@dataclass(frozen=True, slots=True)
class ModuleOutcome:
    """What became of one protected module: ``loaded``, ``failed`` or ``skipped`` (after a failure), and why."""

    name: str
    status: str
    reason: str = ""
    errno: int = 0


class BootReport:
    """The protected modules in the order of the command line.

    Attributes:
        outcomes: what became of each.
    """

    def __init__(self, journal: Journal) -> None:
        self.outcomes: StateList[ModuleOutcome] = StateList(journal, "kernel.boot.outcomes")

    @property
    def failed(self) -> bool:
        """A protected module did not load: the system is insecure."""
        return any(outcome.status != "loaded" for outcome in self.outcomes)


def boot_protected_modules(
    kernel: Kernel,
    names: Sequence[str],
    files: Mapping[str, ModuleFile],
    report: BootReport,
    parameters: Mapping[str, Sequence[tuple[str, str | None]]],
) -> None:
    """Load the protected modules; the first failure ends the list and the boot goes on.

    Args:
        kernel: the kernel, with the hypervisor up and the host not yet deprivileged.
        names: the modules, in order.
        files: where the names are looked up.
        report: receives what became of each.
        parameters: module parameters that do not come from the command line, by module name.
    """
    for position, name in enumerate(names):
        outcome = _load(kernel, name, files, parameters)
        report.outcomes.append(outcome)
        if outcome.status == "failed":
            kernel.log.write(f"Failed to load pkvm module {name}: {_MODPROBE_FAILED}", level=3)
            report.outcomes.extend(ModuleOutcome(later, "skipped") for later in names[position + 1 :])
            kernel.log.write(kernel.generation.boot.clear_firmware_message, level=6)
            return


def load_without_protection(
    kernel: Kernel,
    names: Sequence[str],
    files: Mapping[str, ModuleFile],
    report: BootReport,
    parameters: Mapping[str, Sequence[tuple[str, str | None]]],
) -> None:
    """Load modules on a kernel that is not in protected mode, as ``modprobe`` does after boot: each for itself.

    Such a kernel ignores ``kvm-arm.protected_modules=``; loading an EL2 half is -EOPNOTSUPP there. Arguments as for
    :func:`boot_protected_modules`.
    """
    report.outcomes.extend(_load(kernel, name, files, parameters) for name in names)


def _load(
    kernel: Kernel,
    name: str,
    files: Mapping[str, ModuleFile],
    parameters: Mapping[str, Sequence[tuple[str, str | None]]],
) -> ModuleOutcome:
    file = files.get(name) or files.get(name.replace("-", "_"))
    try:
        if file is None:
            raise ModuleLoadError(f"{name}: no such module was given (-ENOENT)", -_ENOENT)
        given = [*kernel.command_line.module_parameters(name), *parameters.get(file.name, ())]
        kernel.loader.load(file, given)
    except ModuleLoadError as error:
        return ModuleOutcome(name, "failed", f"{error}", error.errno)
    return ModuleOutcome(name, "loaded")
