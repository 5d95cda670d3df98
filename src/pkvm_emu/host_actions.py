"""What a host does, as methods of :class:`pkvm_emu.system.System`: calls, modules, CPUs, virtual machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pkvm_emu.cpus import SystemCpu, run_on
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.errors import UsageError
from pkvm_emu.machine.scheduler import DEFAULT_TURN
from pkvm_emu.results import HvcResult

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor
    from pkvm_emu.hyp.pviommu import Route
    from pkvm_emu.kernel.kernel import Kernel
    from pkvm_emu.kernel.modules import LoadedModule
    from pkvm_emu.machine.machine import Machine
    from pkvm_emu.system import Modules, System
    from pkvm_emu.vm import VirtualMachine

HCALL_BASE = 0xC600_0000
ModuleSource = str | Path | ModuleFile


def read_module(source: ModuleSource) -> ModuleFile:
    """A module from a path, or as it is."""
    return source if isinstance(source, ModuleFile) else ModuleFile.load(source)


class HostActions:
    """The half of a system that acts."""

    machine: Machine
    kernel: Kernel
    hyp: Hypervisor
    modules: Modules

    @property
    def _system(self) -> System:
        return cast("System", self)

    def hvc(self, function: int, *args: int) -> HvcResult:
        """Make a hypercall from EL1, by a real ``hvc #0``.

        Args:
            function: a hypercall number (0 to 0xffff: 0xC6000000 is added), or a whole SMCCC function id.
            args: x1, x2, ... (up to seven).

        Returns:
            x0 to x3 after the call; x0 is -1 (all ones) for an id that nobody answers.
        """
        return HvcResult(*self.kernel.hvc(self.function_id(function), *args)[:4])

    def smc(self, function: int, *args: int) -> HvcResult:
        """Make an SMC from EL1; the hypervisor traps it, asks the modules' handlers and forwards what is left to EL3."""
        return HvcResult(*self.kernel.smc(function, *args)[:4])

    def add_smc(self, path: str | Path) -> None:
        """Answer vendor SMCs at EL3 from a file: a TOML table, or Python with functions marked ``@smc(ID)``.

        Raises:
            UsageError: the file cannot be read or is wrong; the text has the line or the key.
        """
        from pkvm_emu.hyp.el3_table import load_smc_file

        load_smc_file(path, self.hyp.el3, self.machine.ram)

    def add_kernel_symbols(self, path: str | Path) -> None:
        """Serve kernel symbols from a Python file, in this system only: its ``@kernel_symbol`` and ``@kernel_variable`` functions.

        Raises:
            UsageError: the file cannot be read or fails; the text has the line.
        """
        from pkvm_emu.kernel.user_symbols import load_symbol_file

        load_symbol_file(path, self.kernel)

    def load(self, module: ModuleSource, parameters: Sequence[tuple[str, str | None]] = ()) -> LoadedModule:
        """Load a module, as ``insmod FILE name=value ...`` does.

        Raises:
            ModuleLoadError: with the errno and the reason.
        """
        file = read_module(module)
        given = [*self.kernel.command_line.module_parameters(file.name), *parameters]
        self._system.set_up_board([file])
        return self.kernel.loader.load(file, given)

    def call(self, name: str, *args: int) -> HvcResult:
        """Call a hypercall that a module registered, by the name of its EL2 function.

        Raises:
            UsageError: nobody registered that function.
        """
        return self.hvc(self.function_id(name), *args)

    def function_id(self, function: str | int) -> int:
        """The SMCCC function id of a hypercall: of a number as :meth:`hvc` takes it, or of a name as :meth:`call` does.

        Raises:
            UsageError: nobody registered that function.
        """
        if isinstance(function, int):
            return function | HCALL_BASE if 0 <= function <= 0xFFFF else function
        known: dict[str, int] = {}
        for module in self.modules.values():
            known.update(module.hypercalls)
        short = function.removeprefix("__kvm_nvhe_")
        if short not in known:
            listed = ", ".join(known) or "none"
            raise UsageError(f"no hypercall {function!r} is registered (registered: {listed})")
        return HCALL_BASE | known[short]

    def idle(self, seconds: float | None = None) -> None:
        """The host has nothing to do: deferred work runs, and time goes on.

        Args:
            seconds: for how long; None: until everything that is pending now (timers, delayed work, sleeping threads) has had
                its turn, 10 s at most.
        """
        self.kernel.idle(None if seconds is None else round(seconds * 1e9))

    def reboot(self, how: str = "restart", command: str = "") -> None:
        """End the system as ``reboot(2)`` does: reboot notifiers, shutdown, restart or power-off handlers, then PSCI.

        Args:
            how: ``restart``, ``poweroff`` or ``halt``.
            command: what ``reboot COMMAND`` passes on (``recovery``).

        Raises:
            PoweredOff: it worked; nothing runs any more until a snapshot is restored.
            UsageError: there is no such way.
        """
        from pkvm_emu.kernel.power_events import COMMANDS, PowerEvents

        if how not in COMMANDS:
            raise UsageError(
                f"no way to end a system is called {how!r} (there are: {', '.join(sorted(set(COMMANDS)))})"
            )
        self.kernel.part(PowerEvents).end(COMMANDS[how], command)

    def cpu(self, index: int) -> SystemCpu:
        """One CPU: its state, taking it offline and back (``system.cpu(1).online = False``), suspend.

        Raises:
            UsageError: there is no such CPU.
        """
        return SystemCpu(self._system, index)

    def on_cpu(self, index: int) -> AbstractContextManager[None]:
        """``with system.on_cpu(1): ...``: what the block does happens on that CPU.

        Raises:
            UsageError: the CPU does not exist, or is off or suspended.
        """
        return self.machine.on_cpu(index)

    def run_on(
        self, calls: Mapping[int, Sequence[str | int]], seed: int = 0, longest_turn: int = DEFAULT_TURN
    ) -> dict[int, HvcResult]:
        """Make a hypercall on each of several CPUs at once.

        The CPUs take turns of 1 to ``longest_turn`` instructions, at EL1 and EL2, in lengths drawn from ``seed``: the same seed
        gives the same interleaving. An op takes no time of its own, so it is atomic.

        Args:
            calls: by CPU, the hypercall (name or number) and x1, x2, ...: ``{0: ("lock_it", 1), 1: ("lock_it", 2)}``.
            seed: which interleaving.
            longest_turn: instructions.

        Returns:
            x0 to x3 by CPU; a CPU that went off or to sleep in its call has none.

        Raises:
            Stuck: the CPUs wait for each other; the message names them, the locks and the loops.
            UsageError: a CPU that is not there or off, a hypercall that nobody registered.
        """
        return run_on(self._system, calls, seed, longest_turn)

    def create_vm(
        self,
        protected: bool = True,
        smc_forwarded: bool = True,
        iommus: Mapping[int, Sequence[Route]] | None = None,
    ) -> VirtualMachine:
        """Make a virtual machine, as a VMM does.

        Args:
            protected: a protected VM: the host loses access to the memory that it gives to it.
            smc_forwarded: modules are asked about the SMCs of a protected VM (a flag that the host gives when it makes the VM).
            iommus: the IOMMUs that the guest sees (android16): by id, ``(id there, physical IOMMU, id there)`` of each endpoint.

        Raises:
            ModuleError: a protected module was not loaded, so the system is insecure and protected VMs are refused.
            UsageError: not in protected mode, or not deprivileged yet.
        """
        from pkvm_emu.vm import create

        return create(self._system, protected, smc_forwarded, iommus)
