"""The boot from the moment the hypervisor is up: protected modules in order, then deprivilege, then ordinary modules.

Source: ``pkvm_load_early_modules`` and ``finalize_pkvm`` in ``arch/arm64/kvm/pkvm.c``; init/first_stage_init.cpp of Android.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pkvm_emu.kernel.firmware_memory import clear_firmware_memory
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.modprobe import Modprobe
from pkvm_emu.kernel.modules import ModuleLoadError
from pkvm_emu.machine.state import Journal, StateList

#: What a usermode helper's exit status 1 looks like in the kernel's message.
_MODPROBE_FAILED = 256


@dataclass(frozen=True, slots=True)
class ModuleOutcome:
    """What became of one module: ``loaded``, ``failed`` or ``skipped`` (after a failure, or by a blocklist), and why.

    Attributes:
        name: the module that was asked for.
        status: one of the three words.
        reason: one line; for a module that was loaded on behalf of another one, of which.
        errno: negative, 0 where it was loaded.
        module: the module that failed: this one, or one that it depends on.
        step: where it failed (see :class:`pkvm_emu.kernel.modules.ModuleLoadError`).
        signed: the file carries a signature; which key made it is not looked at.
    """

    name: str
    status: str
    reason: str = ""
    errno: int = 0
    module: str = ""
    step: str = ""
    signed: bool = False


class BootReport:
    """What became of the modules of the boot.

    Attributes:
        outcomes: the protected modules in the order of loading, those that they depend on included.
        ordinary: the modules of ``modules.load``, which first-stage init loads after deprivilege.
        notes: what was passed over, one line each.
    """

    def __init__(self, journal: Journal) -> None:
        self.outcomes: StateList[ModuleOutcome] = StateList(journal, "kernel.boot.outcomes")
        self.ordinary: StateList[ModuleOutcome] = StateList(journal, "kernel.boot.ordinary")
        self.notes: StateList[str] = StateList(journal, "kernel.boot.notes")

    @property
    def failed(self) -> bool:
        """A protected module did not load: the system is insecure."""
        return any(outcome.status != "loaded" for outcome in self.outcomes)


def boot_protected_modules(kernel: Kernel, names: Sequence[str], modprobe: Modprobe, report: BootReport) -> None:
    """Load the protected modules; the first failure ends the list and the boot goes on.

    Args:
        kernel: the kernel, with the hypervisor up and the host not yet deprivileged.
        names: the modules, in order.
        modprobe: where the names are looked up.
        report: receives what became of each.
    """
    for position, name in enumerate(names):
        outcome = _load(kernel, name, modprobe.load, report.outcomes)
        if outcome.status == "failed":
            kernel.log.write(f"Failed to load pkvm module {name}: {_MODPROBE_FAILED}", level=3)
            report.outcomes.extend(ModuleOutcome(later, "skipped") for later in names[position + 1 :])
            clear_firmware_memory(kernel)
            return


def load_without_protection(kernel: Kernel, names: Sequence[str], modprobe: Modprobe, report: BootReport) -> None:
    """Load modules on a kernel that is not in protected mode, as ``modprobe`` does after boot: each for itself.

    Such a kernel ignores ``kvm-arm.protected_modules=``; loading an EL2 half is -EOPNOTSUPP there. Arguments as for
    :func:`boot_protected_modules`.
    """
    for name in names:
        _load(kernel, name, modprobe.load, report.outcomes)


def load_ordinary_modules(kernel: Kernel, modprobe: Modprobe, report: BootReport) -> None:
    """Load what ``modules.load`` lists, in order, as first-stage init does; its blocklist counts.

    A module that needs kernel functions which nothing serves is left out; like any other failure that is one line of the
    report. (On a device the first failure ends first-stage init.)
    """

    def load(name: str) -> None:
        modprobe.load(name, blocklist=True, careful=True)

    directory = modprobe.directory
    for name in directory.load_list if directory is not None else ():
        if directory is not None and name in directory.blocklist:
            report.ordinary.append(ModuleOutcome(name, "skipped", "modules.blocklist names it"))
        elif name not in kernel.loader.modules:
            _load(kernel, name, load, report.ordinary)


def _load(kernel: Kernel, name: str, load: Callable[[str], None], outcomes: StateList[ModuleOutcome]) -> ModuleOutcome:
    loaded, before = kernel.loader.modules, set(kernel.loader.modules)
    known = {outcome.name for outcome in outcomes}
    own = name.replace("-", "_")
    failure: ModuleOutcome | None = None
    try:
        load(name)
    except ModuleLoadError as error:
        failure = ModuleOutcome(name, "failed", f"{error}", error.errno, error.module or own, error.step)
    for new in [module for module in loaded if module not in before and module != own]:
        outcomes.append(_loaded(kernel, new, new, f"needed by {name}"))
    outcome = failure or _loaded(kernel, name, own)
    if failure is not None or name not in known:
        outcomes.append(outcome)
    return outcome


def _loaded(kernel: Kernel, name: str, module: str, reason: str = "") -> ModuleOutcome:
    found = kernel.loader.modules.get(module)
    return ModuleOutcome(name, "loaded", reason, signed=found is not None and found.file.signature is not None)
