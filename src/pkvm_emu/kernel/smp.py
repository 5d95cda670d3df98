"""CPUs that come and go: hotplug and suspend as the kernel does them, by PSCI through the hypervisor.

``kernel.part(Smp)`` is what ``/sys/devices/system/cpu/cpuN/online`` stands for. A CPU goes off by its own CPU_OFF and is brought
back by CPU_ON from another; on its way back EL2 is set up again, a module's PSCI notifier sees CPU_ENTRY, and the CPU arrives
at ``secondary_entry`` of the EL1 firmware with the MMU off. Source: kernel/cpu.c, arch/arm64/kernel/{smp,psci}.c.
"""

from __future__ import annotations

from errno import EBUSY, EINVAL, EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING

from pkvm_emu.arch.psci import PsciFunction, PsciReturn, psci_id
from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.kernel.sync import TryAgain
from pkvm_emu.machine.core import CpuParked, Service
from pkvm_emu.machine.power import PowerState
from pkvm_emu.machine.state import State

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

_CPU_ON = psci_id(PsciFunction.CPU_ON, smc64=True)
_CPU_OFF = psci_id(PsciFunction.CPU_OFF)
_CPU_SUSPEND = psci_id(PsciFunction.CPU_SUSPEND, smc64=True)
_SYSTEM_SUSPEND = psci_id(PsciFunction.SYSTEM_SUSPEND, smc64=True)
_AFFINITY_INFO = psci_id(PsciFunction.AFFINITY_INFO, smc64=True)
_POWER_DOWN = 1 << 16
_AFFINITY = 0xFF_00FF_FFFF
_INFO, _ERROR = 6, 3


@kernel_part
class Smp(State):
    """The CPUs as the kernel sees them.

    Attributes:
        online: bit mask of the CPUs that are online.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.smp")
        self._kernel = kernel
        self._machine = kernel.machine
        self.online = (1 << kernel.machine.profile.cpus) - 1
        entry = kernel.entry("secondary_entry")
        self._entry_pa = kernel.memory.image_pa + entry - kernel.memory.layout.kimage_vaddr
        service = Service("secondary_entry", 1, 0, self._arrive)
        for address in (entry, self._entry_pa):
            kernel.machine.core.add_service(address, service)

    def is_online(self, cpu: int) -> bool:
        """Whether a CPU is online."""
        return bool(self.online >> cpu & 1)

    @property
    def entry_pa(self) -> int:
        """PA of ``secondary_entry``: what CPU_ON and CPU_SUSPEND get as entry point."""
        return self._entry_pa

    # Hotplug

    def cpu_down(self, cpu: int) -> int:
        """Take a CPU offline (``echo 0 > /sys/devices/system/cpu/cpuN/online``).

        Args:
            cpu: its number; where it is the one on the engine, the lowest other CPU takes over.

        Returns:
            0 (also for one that is offline), -EINVAL for one that does not exist, -EBUSY for the last one, what a module's hotplug
            state returned that refuses, or what PSCI said.
        """
        if not self._exists(cpu):
            return -EINVAL
        if not self.is_online(cpu):
            return 0
        if self.online == 1 << cpu:
            return -EBUSY
        refused = self._tell_states(cpu, coming=False)
        if refused:
            return refused
        self._set_online(self.online & ~(1 << cpu))
        answer = self._leave(cpu, _CPU_OFF, _POWER_DOWN)
        if answer is not None:
            self._set_online(self.online | 1 << cpu)
            self._tell_states(cpu, coming=True)
            return errno_of(answer)
        state = self._kernel.smc(_AFFINITY_INFO, self._machine.cpus[cpu].mpidr & _AFFINITY, 0)[0]
        killed = "killed (polled 0 ms)" if state == 1 else "may not have shut down cleanly (AFFINITY_INFO reports 0)"
        self._kernel.log.write(f"psci: CPU{cpu} {killed}", _INFO)
        return 0

    def cpu_up(self, cpu: int) -> int:
        """Bring a CPU back (``echo 1 > /sys/devices/system/cpu/cpuN/online``).

        Returns:
            0 (also for one that is online), -EINVAL for one that does not exist, or what PSCI said.
        """
        if not self._exists(cpu):
            return -EINVAL
        if self.is_online(cpu):
            return 0
        answer = self._kernel.smc(_CPU_ON, self._machine.cpus[cpu].mpidr & _AFFINITY, self._entry_pa, 0)[0]
        if answer:
            error = errno_of(answer)
            self._kernel.log.write(f"psci: failed to boot CPU{cpu} ({error})", _ERROR)
            return error
        self._machine.run_started_cpus()
        return self._tell_states(cpu, coming=True)

    # Suspend

    def suspend(self, cpu: int, power_state: int = _POWER_DOWN, context_id: int = 0) -> int | None:
        """CPU_SUSPEND on a CPU, as its idle loop does.

        Args:
            cpu: the CPU.
            power_state: as PSCI has it; without bit 16 it is a standby, from which the CPU comes back at once.
            context_id: what the CPU has in x0 when it resumes.

        Returns:
            None where it sleeps now, until :meth:`resume`; else what PSCI returned (0 after a standby).
        """
        return self._leave(cpu, _CPU_SUSPEND, power_state, self._entry_pa, context_id)

    def suspend_system(self, context_id: int = 0) -> int | None:
        """SYSTEM_SUSPEND on the CPU on the engine, as ``echo mem > /sys/power/state`` does; the others have to be offline.

        PM notifiers and syscore operations of modules are called before, and after :meth:`resume`.

        Returns:
            None where the machine sleeps now, until :meth:`resume`; else what PSCI returned (-3, DENIED, with others on), or the
            errno of a notifier or operation that refused.
        """
        from pkvm_emu.kernel.power_events import PowerEvents

        events = self._kernel.part(PowerEvents)
        refused = events.before_suspend()
        if refused:
            return refused
        answer = self._leave(self._machine.current.index, _SYSTEM_SUSPEND, self._entry_pa, context_id)
        if answer is not None:
            events.after_suspend()
        return answer

    def resume(self, cpu: int) -> None:
        """Wake a CPU that sleeps: EL2 is set up again, the PSCI notifier sees CPU_ENTRY, and the CPU is back at EL1.

        Raises:
            ModuleError: it does not sleep.
        """
        if not self._exists(cpu) or self._machine.power.states[cpu] is not PowerState.SUSPENDED:
            raise ModuleError(f"CPU {cpu} is not suspended")
        self._machine.run_cpu(cpu)
        events = self._kernel.part_made("PowerEvents")
        if events is not None and events.is_suspended:
            with self._machine.on_cpu(cpu):
                events.after_suspend()

    def call_on(self, cpu: int, function: int, info: int) -> bool:
        """Call ``function(info)`` at EL1 on another CPU, between two of its instructions; whether it is online and was called.

        Args:
            cpu: its number.
            function: EL1 address.
            info: x0.

        Raises:
            TryAgain: the CPU takes turns with this one and is in the hypervisor now.
        """
        if not self._exists(cpu) or not self.is_online(cpu) or not self._machine.power.is_on(cpu):
            return False
        with self._machine.on_cpu(cpu):
            core = self._machine.core
            if cpu in core.in_turns and core.el != 1:
                raise TryAgain
            if cpu not in core.in_turns:
                self._kernel.use_own_stack()
            core.call(function, info)
        return True

    # Parts

    def _exists(self, cpu: int) -> bool:
        return 0 <= cpu < self._machine.profile.cpus

    def _tell_states(self, cpu: int, coming: bool) -> int:
        """Call the hotplug states of modules on the CPU; 0, or the errno of one that refuses."""
        from pkvm_emu.kernel.hotplug_states import HotplugStates

        states = self._kernel.part(HotplugStates)
        if not states.states:
            return 0
        with self._machine.on_cpu(cpu):
            if not self._machine.core.depth:
                self._kernel.use_own_stack()
            return states.cpu_comes(cpu) if coming else states.cpu_goes(cpu)

    def _leave(self, cpu: int, function: int, *args: int) -> int | None:
        """A PSCI call on a CPU that is not to come back; its result where it does."""
        self._machine.switch_to(cpu)
        try:
            value = self._kernel.smc(function, *args)[0]
        except CpuParked:
            return None
        return value - (1 << 64) if value >> 63 else value

    def _arrive(self) -> None:
        """A CPU has come to EL1, with the MMU off: give it what the kernel has for it, and leave to Python."""
        kernel, cpu = self._kernel, self._machine.current.index
        kernel.start_cpu(cpu)
        if not self.is_online(cpu):
            self._set_online(self.online | 1 << cpu)
            identity = self._machine.engine.read_sysreg("MIDR_EL1")
            kernel.log.write(f"CPU{cpu}: Booted secondary processor {cpu:#012x} [{identity:#010x}]", _INFO)
        self._machine.core.leave()

    def _set_online(self, mask: int) -> None:
        """Change the mask, and the variables that compiled code reads it from."""
        self.online = mask
        kernel = self._kernel
        places = kernel.symbols.addresses
        for name in ("__cpu_online_mask", "__cpu_active_mask"):
            if name in places:
                kernel.memory.write(places[name], mask.to_bytes(8, "little"))
        if "__num_online_cpus" in places:
            kernel.memory.write(places["__num_online_cpus"], mask.bit_count().to_bytes(4, "little"))


def errno_of(value: int) -> int:
    """The errno of a PSCI result (``psci_to_linux_errno``)."""
    signed = (value & 0xFFFF_FFFF ^ 1 << 31) - (1 << 31)
    return {
        PsciReturn.SUCCESS: 0,
        PsciReturn.NOT_SUPPORTED: -EOPNOTSUPP,
        PsciReturn.INVALID_PARAMS: -EINVAL,
        PsciReturn.INVALID_ADDRESS: -EINVAL,
        PsciReturn.DENIED: -EPERM,
    }.get(PsciReturn(signed), -EINVAL)
