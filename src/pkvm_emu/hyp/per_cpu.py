"""What EL2 has once for each CPU: stacks, host context, HCR_EL2 and HFGWTR_EL2; and how a CPU is set up for it."""

from __future__ import annotations

from pkvm_emu.errors import EmulatorError
from pkvm_emu.hyp import cpu as hyp_cpu
from pkvm_emu.hyp import layout
from pkvm_emu.hyp.cpu import HostContext, HypCpu
from pkvm_emu.hyp.firmware_data import FirmwareData
from pkvm_emu.hyp.host_stage2 import HostStage2
from pkvm_emu.hyp.pgtable import PAGE_HYP
from pkvm_emu.hyp.pool import HypPool
from pkvm_emu.machine.state import StateDict


class PerCpu(FirmwareData):
    """The CPUs of a hypervisor (a base of :class:`~pkvm_emu.hyp.hypervisor.Hypervisor`)."""

    _cpus: list[HypCpu]
    _pool: HypPool
    _host: HostStage2
    private_cursor: int
    #: HCR_EL2 and HFGWTR_EL2 by CPU, as they are written again when it comes back from off or suspend (the engine's CPU model
    #: has no HFGWTR_EL2, so of that the value is all there is).
    hcr: StateDict[int, int]
    hfgwtr: StateDict[int, int]

    @property
    def cpu(self) -> HypCpu:
        """EL2's memory of the current CPU."""
        return self._cpus[self._machine.current.index]

    def cpu_memory(self, index: int) -> HypCpu:
        """EL2's memory of a CPU."""
        return self._cpus[index]

    @property
    def host_context(self) -> HostContext:
        """The saved registers of the host on the current CPU."""
        return HostContext(self._machine.ram, self.cpu.context_pa)

    def start_cpu(self, index: int) -> None:
        """Set the EL2 registers of the CPU that is on the engine, from what is kept for it."""
        hyp_cpu.set_system_registers(
            self._machine.engine,
            self._machine.profile,
            self._cpus[index],
            self.entry("hyp_vectors"),
            self._stage1.root,
            self.hcr[index],
            self._host.table.root if self.hcr[index] & hyp_cpu.HCR_VM else None,
        )

    @property
    def stage2_enabled(self) -> bool:
        """Whether the host's stage-2 is on for the current CPU."""
        return bool(self.hcr[self._machine.current.index] & hyp_cpu.HCR_VM)

    def finalise_cpu(self) -> None:
        """Enable the host's stage-2 on the current CPU (``__pkvm_prot_finalize``)."""
        index = self._machine.current.index
        hyp_cpu.enable_stage2(self._machine.engine, self._host.table.root)
        self.hcr[index] = self.hcr[index] | hyp_cpu.HCR_VM

    def _make_cpu(self, index: int) -> HypCpu:
        # Aligned to twice its size, so that one address bit tells the stack from the guard below it.
        base = -(-self.private_cursor // (2 * layout.STACK_SIZE)) * 2 * layout.STACK_SIZE + layout.STACK_SIZE
        self.private_cursor = base + layout.STACK_SIZE
        self._stage1.map(base, layout.STACK_SIZE, self._own_pages(1), PAGE_HYP)
        overflow_pa, context_pa = self._own_pages(0), self._own_pages(0)
        hyp_cpu.write_keys(self._machine.ram, context_pa + layout.HYP_KEYS_OFFSET, seed=0xE12 + index)
        self.hcr[index] = hyp_cpu.hcr_for(self._machine.profile)
        self.hfgwtr[index] = hyp_cpu.HFGWTR_HOST if self._machine.profile.fgt else 0
        return HypCpu(
            index=index,
            context_pa=context_pa,
            context_va=self._stage1.va_of(context_pa),
            stack_top=base + layout.STACK_SIZE,
            stack_base=base,
            overflow_top=self._stage1.va_of(overflow_pa + layout.OVERFLOW_STACK_SIZE),
        )

    def own_page(self) -> int:
        """PA of a zeroed page of the hypervisor's own memory."""
        return self._own_pages(0)

    def _own_pages(self, order: int) -> int:
        pa = self._pool.try_alloc(order)
        if pa is None:
            raise EmulatorError("the memory reserved for the hypervisor is too small for its stacks")
        return pa
