"""PSCI as the hypervisor relays it: the host's calls on their way to EL3, and CPUs on their way back to the host.

The host's SMCs of the PSCI range never reach a module's SMC handlers. Those that the relay knows go on to EL3 by a real SMC of the
firmware (``firmware/el2/psci.S``), with the hypervisor's entry points in place of the host's; the others are NOT_SUPPORTED.
Source: arch/arm64/kvm/hyp/nvhe/psci-relay.c. The generations do not differ here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.arch.psci import PsciFunction, PsciReturn, psci_id
from pkvm_emu.arch.smccc import SMCCC_RET_NOT_SUPPORTED
from pkvm_emu.hyp.cpu import HostContext
from pkvm_emu.hyp.service import el2_service
from pkvm_emu.hyp.vms import Vms
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

#: What the firmware does: nothing more, or the SMC to EL3 (after the notifier, where there is an event).
ANSWERED, TO_EL3 = 0, 2
NO_EVENT = (1 << 64) - 1
#: ``enum pkvm_psci_notification``.
CPU_SUSPEND, SYSTEM_SUSPEND, CPU_ENTRY = 0, 1, 2
#: The affinity fields of MPIDR_EL1.
_MPIDR_HWID = 0xFF_00FF_FFFF
_EL1H_MASKED = 0x3C5
_SYSTEM_WARM_RESET = 0
_MASK64 = (1 << 64) - 1

_FORWARDED = frozenset(
    (
        psci_id(PsciFunction.VERSION),
        psci_id(PsciFunction.CPU_OFF),
        psci_id(PsciFunction.AFFINITY_INFO, smc64=True),
        psci_id(PsciFunction.MIGRATE, smc64=True),
        psci_id(PsciFunction.MIGRATE_INFO_TYPE),
        psci_id(PsciFunction.MIGRATE_INFO_UP_CPU, smc64=True),
        psci_id(PsciFunction.SYSTEM_OFF),
        psci_id(PsciFunction.SYSTEM_RESET),
        psci_id(PsciFunction.FEATURES),
        psci_id(PsciFunction.SET_SUSPEND_MODE),
    )
)


class HostEntry(NamedTuple):
    """Where the host wants a CPU to begin: IPA of the code, and x0 (the context id)."""

    pc: int
    context_id: int


Relayed = int | tuple[int, ...]


class PsciRelay(State):
    """The relay of one hypervisor.

    Args:
        hyp: the hypervisor.

    Attributes:
        starting: where CPUs begin for which a CPU_ON is under way; a second CPU_ON of such a CPU is ALREADY_ON.
        sleeping: where CPUs go on after their last suspend.
        calling: by CPU, the CPU that its CPU_ON is about.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        journal = hyp.machine.journal
        super().__init__(journal, "hyp.psci")
        self._hyp = hyp
        self.starting: StateDict[int, HostEntry] = StateDict(journal, "hyp.psci.starting")
        self.sleeping: StateDict[int, HostEntry] = StateDict(journal, "hyp.psci.sleeping")
        self.calling: StateDict[int, int] = StateDict(journal, "hyp.psci.calling")
        self._special: dict[int, Callable[[HostContext], Relayed]] = {
            psci_id(PsciFunction.CPU_ON, smc64=True): self._cpu_on,
            psci_id(PsciFunction.CPU_SUSPEND, smc64=True): self._cpu_suspend,
            psci_id(PsciFunction.SYSTEM_SUSPEND, smc64=True): self._system_suspend,
            psci_id(PsciFunction.SYSTEM_RESET2, smc64=True): self._system_reset2,
        }
        hyp.add_firmware_service("op_psci_result", self.result, 1)
        hyp.add_firmware_service("op_cpu_entry", self.enter_host, 1)
        hyp.add_firmware_service("op_init_cpu", self.init_cpu, 2)
        # Executed before the MMU is on: the address is a physical one there.
        physical = el2_service(hyp, "op_init_cpu", 2, self.init_cpu)
        hyp.machine.core.add_service(hyp.data_pa("op_init_cpu"), physical)

    # From the host

    def relay(self, function: int, regs: HostContext) -> Relayed:
        """What becomes of a PSCI call of the host.

        Args:
            function: its id, hint bits removed.
            regs: the host's registers; set where the answer is known already.

        Returns:
            ``ANSWERED``, or ``TO_EL3``, the event for the notifier (or ``NO_EVENT``), and x0 to x3 of the SMC.
        """
        if function in _FORWARDED:
            return self._forward(regs)
        special = self._special.get(function)
        if special is not None:
            return special(regs)
        return self._answer(regs, SMCCC_RET_NOT_SUPPORTED)

    def result(self, value: int) -> None:
        """EL3 has answered and the CPU still runs: x0 to x3 of the host."""
        here = self._hyp.machine.current.index
        started = self.calling.pop(here, None)
        if started is not None and value:
            # A CPU that starts releases its place itself.
            self.starting.pop(started, None)
        self._answer(self._hyp.host_context, value)

    @staticmethod
    def _answer(regs: HostContext, value: int) -> int:
        regs[0] = value
        regs[1] = regs[2] = regs[3] = 0
        return ANSWERED

    @staticmethod
    def _forward(regs: HostContext) -> Relayed:
        return TO_EL3, NO_EVENT, regs[0], regs[1], regs[2], regs[3]

    def _cpu_on(self, regs: HostContext) -> Relayed:
        mpidr = regs[1]
        cpus = self._hyp.machine.cpus
        target = next((cpu.index for cpu in cpus if cpu.mpidr & _MPIDR_HWID == mpidr), None)
        if target is None:
            return self._answer(regs, PsciReturn.INVALID_PARAMS & _MASK64)
        if target in self.starting:
            return self._answer(regs, PsciReturn.ALREADY_ON & _MASK64)
        self.starting[target] = HostEntry(regs[2], regs[3])
        self.calling[self._hyp.machine.current.index] = target
        return TO_EL3, NO_EVENT, regs[0], mpidr, self._hyp.data_pa("cpu_entry"), self._parameters(target)

    def _cpu_suspend(self, regs: HostContext) -> Relayed:
        here = self._hyp.machine.current.index
        self.sleeping[here] = HostEntry(regs[2], regs[3])
        return TO_EL3, CPU_SUSPEND, regs[0], regs[1], self._hyp.data_pa("cpu_resume"), self._parameters(here)

    def _system_suspend(self, regs: HostContext) -> Relayed:
        here = self._hyp.machine.current.index
        self.sleeping[here] = HostEntry(regs[1], regs[2])
        return TO_EL3, SYSTEM_SUSPEND, regs[0], self._hyp.data_pa("cpu_resume"), self._parameters(here), 0

    def _system_reset2(self, regs: HostContext) -> Relayed:
        warm = regs[1] & 0xFFFF_FFFF == _SYSTEM_WARM_RESET
        if warm and self.protects_memory:
            # Memory of protected VMs has to be wiped, which a warm reset does not do.
            return TO_EL3, NO_EVENT, psci_id(PsciFunction.SYSTEM_RESET), regs[1], regs[2], regs[3]
        return self._forward(regs)

    @property
    def protects_memory(self) -> bool:
        """Pages belong to protected guests, so that a reset must not leave RAM as it is (PSCI MEM_PROTECT)."""
        return any(vm.protected for vm in self._hyp.part(Vms).table.values())

    def _parameters(self, index: int) -> int:
        """PA that EL3 hands to the CPU in x0; from it the CPU knows who it is."""
        return self._hyp.cpu_memory(index).context_pa

    # Back to the host

    def init_cpu(self, parameters: int, after_cpu_on: int) -> tuple[int, int]:
        """A CPU executes its first instructions: set EL2 up again and go on with the MMU on.

        HCR_EL2 and HFGWTR_EL2 are those that were kept for the CPU, and the host's stage-2 is on where it was.
        """
        hyp = self._hyp
        engine, index = hyp.machine.engine, hyp.machine.current.index
        hyp.start_cpu(index)
        engine.set_pstate(engine.read("pstate"))
        # The CPU is at EL2: what counts is SP, not its banked copy.
        engine.write("sp", hyp.cpu.stack_top)
        engine.flush_tlb()
        engine.write("pc", hyp.entry("cpu_entry_mapped"))
        return hyp.stage1.va_of(parameters), after_cpu_on

    def enter_host(self, after_cpu_on: int) -> None:
        """The CPU is about to go to the host: x0 is the context id, and it begins where the host said."""
        hyp, index = self._hyp, self._hyp.machine.current.index
        entry = self.starting.pop(index) if after_cpu_on else self.sleeping[index]
        hyp.host_context[0] = entry.context_id
        hyp.machine.engine.write("elr_el2", entry.pc)
        hyp.machine.engine.write_sysreg("SPSR_EL2", _EL1H_MASKED)
