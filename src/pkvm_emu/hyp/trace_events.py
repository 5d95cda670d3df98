"""The hypervisor's own trace events: which are enabled, and where they are made.

The firmware asks here at both ends of a trap while ``config_tracing`` is set, which it is only while a buffer takes events and one
of the events of traps is enabled: nothing of this costs a hypercall time otherwise.
Sources: arch/arm64/kvm/hyp/nvhe/{events,hyp-main,mem_protect,psci-relay}.c, arch/arm64/kvm/hyp/nvhe/iommu/iommu.c.
"""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING

from pkvm_emu.abi.core_events import CORE_EVENTS, PRINTK
from pkvm_emu.arch.smccc import SMCCC_RET_NOT_SUPPORTED
from pkvm_emu.hyp.event_ids import EventIds
from pkvm_emu.hyp.iommu import Iommu
from pkvm_emu.hyp.page_state import OWNED, RESTRICTED_PROT
from pkvm_emu.hyp.registry import hyp_part
from pkvm_emu.hyp.trace_buffer import TraceBuffers
from pkvm_emu.hyp.trace_layout import pack_fields
from pkvm_emu.hyp.trace_ring import TRAP_ESR_AT, TRAP_FORWARDED_AT, TRAP_ID_AT, TRAP_PAGES_AT
from pkvm_emu.hyp.vms import Vms
from pkvm_emu.machine.pagetable import PAGE_SHIFT
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

_HCALL_BASE = 0xC600_0000
_SMCCC_HINT = 1 << 16
_EC_SHIFT, _EC_HVC64, _EC_SMC64, _EC_IABT_LOW, _EC_DABT_LOW = 26, 0x16, 0x17, 0x20, 0x24
_PAGE_MASK = 0xFFF
_OF_TRAPS = frozenset(("hyp_enter", "hyp_exit", "host_hcall", "host_smc", "host_mem_abort", "psci_mem_protect"))


@hyp_part
class TraceEvents(State):
    """The events of one hypervisor.

    Attributes:
        enabled: the enabled events of the core, by name.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.trace_events")
        self._hyp = hyp
        self._engine = hyp.machine.engine
        self._ids = {name: number for number, name in enumerate(hyp.generation.tracing.core_events)}
        self._names = {number: name for name, number in self._ids.items()}
        self._sizes = {name: [field.size for field in CORE_EVENTS[name].fields] for name in self._ids}
        self._watches_smcs = False
        self.enabled: StateDict[str, bool] = StateDict(hyp.machine.journal)
        hyp.add_firmware_service("op_enter", self._enter, 0)
        hyp.add_firmware_service("op_leave", self._leave, 0)
        hyp.host.add_iommu_hooks(self._iommu_idmap, self._iommu_complete, first=True)

    @property
    def _buffers(self) -> TraceBuffers:
        return self._hyp.part(TraceBuffers)

    # Enabling

    def switch(self, number: int, on: bool) -> int:
        """Enable or disable an event by id (of the core or of a module); 0, or -EINVAL for an id that nobody has."""
        name = self._names.get(number)
        if name is None:
            return 0 if self._hyp.part(EventIds).switch(number, on) else -EINVAL
        if on:
            self.enabled[name] = True
        else:
            self.enabled.pop(name, None)
        self.configure()
        return 0

    def configure(self) -> None:
        """Tell the firmware whether it has to ask; to be called when a buffer or an event is switched."""
        wanted = self._buffers.is_on and any(name in self.enabled for name in _OF_TRAPS)
        if wanted and not self._watches_smcs:
            self._watches_smcs = True
            self._watch_smcs()
        # A trap whose end asks may have begun before the firmware was told to ask.
        self._note_trap()
        self._hyp.write_word32("config_tracing", int(wanted))

    def _watch_smcs(self) -> None:
        # In front of whoever answers SMCs; it stays there, and does nothing while the events are off.
        core = self._hyp.machine.core
        answer = core.on_smc

        def on_smc() -> None:
            self._smc_to_el3()
            if answer is not None:
                answer()

        core.on_smc = on_smc

    # Making them

    def emit(self, name: str, *values: int) -> None:
        """Make an event of the core, if it is enabled and the buffer of this CPU takes events."""
        if name in self.enabled:
            self._buffers.write(pack_fields(self._ids[name], self._sizes[name], values))

    def printk(self, fmt_id: int, *values: int) -> None:
        """``trace_hyp_printk`` of a module: the number of its format, and four arguments."""
        self.emit(PRINTK, fmt_id, *values)

    def _note_trap(self) -> None:
        """Keep what the handler of the trap is going to change: the host's x0, and the syndrome, where a guest runs."""
        ram, page = self._hyp.machine.ram, self._hyp.cpu.context_pa
        ram.write_u64(page + TRAP_ID_AT, self._hyp.host_context[0])
        ram.write_u64(page + TRAP_FORWARDED_AT, 0)
        ram.write_u64(page + TRAP_ESR_AT, self._engine.read("esr_el2"))
        if "psci_mem_protect" in self.enabled:
            ram.write_u64(page + TRAP_PAGES_AT, self._guest_pages())

    @property
    def _trap_id(self) -> int:
        return self._hyp.machine.ram.read_u64(self._hyp.cpu.context_pa + TRAP_ID_AT)

    def _enter(self) -> None:
        """The firmware begins to handle a trap of the host, or a CPU is on its way to the host."""
        self._note_trap()
        self.emit("hyp_enter")

    def _leave(self) -> None:
        """The firmware has handled it."""
        # A CPU that was switched on has a syndrome of 0, as it is after reset.
        esr = self._hyp.machine.ram.read_u64(self._hyp.cpu.context_pa + TRAP_ESR_AT)
        kind = esr >> _EC_SHIFT
        if kind == _EC_HVC64:
            self._mem_protect()
            self._host_hcall()
        elif kind == _EC_SMC64:
            self._host_smc()
        elif kind in (_EC_IABT_LOW, _EC_DABT_LOW):
            hpfar, far = self._engine.read_sysreg("HPFAR_EL2"), self._engine.read("far_el2")
            self.emit("host_mem_abort", esr, (hpfar >> 4) << 12 | far & _PAGE_MASK)
        self.emit("hyp_exit")

    def _host_hcall(self) -> None:
        if "host_hcall" not in self.enabled:
            return
        hyp = self._hyp
        number = (self._trap_id & ~_SMCCC_HINT) - _HCALL_BASE
        first = hyp.generation.dyn_hcall_base
        is_dynamic = first <= number < first + hyp.read_word("hcall_count")
        # A refused call leaves NOT_SUPPORTED in x0, and none that is served does.
        invalid = not is_dynamic and hyp.host_context[0] == SMCCC_RET_NOT_SUPPORTED & (1 << 64) - 1
        self.emit("host_hcall", number, invalid)

    def _guest_pages(self) -> int:
        """Pages that are a protected guest's alone: what keeps PSCI MEM_PROTECT on."""
        guests = [guest for guest in self._hyp.part(Vms).table.values() if guest.protected]
        rows = [row for guest in guests for row in guest.mappings()]
        return sum(size >> PAGE_SHIFT for _, _, size, state in rows if state & ~RESTRICTED_PROT == OWNED)

    def _mem_protect(self) -> None:
        if "psci_mem_protect" in self.enabled:
            was, count = self._hyp.machine.ram.read_u64(self._hyp.cpu.context_pa + TRAP_PAGES_AT), self._guest_pages()
            if count != was:
                self.emit("psci_mem_protect", count, was)

    def _host_smc(self) -> None:
        forwarded = self._hyp.machine.ram.read_u64(self._hyp.cpu.context_pa + TRAP_FORWARDED_AT)
        if not forwarded or not self._hyp.generation.faults.smc_event_before_forward:
            self.emit("host_smc", self._trap_id & ~_SMCCC_HINT, forwarded)

    def _smc_to_el3(self) -> None:
        """An SMC of the firmware reaches EL3: with one of the host's, the hypervisor is left and entered again."""
        hyp = self._hyp
        if not self.enabled or not hyp.machine.ram.read_u32(hyp.data_pa("config_tracing")):
            return
        # relay_psci, which lies behind it, does not leave the hypervisor for the host's sake.
        if not hyp.entry("forward_smc") <= self._engine.read("pc") < hyp.entry("relay_psci"):
            return
        if hyp.generation.faults.smc_event_before_forward:
            self.emit("host_smc", self._trap_id & ~_SMCCC_HINT, True)
        hyp.machine.ram.write_u64(hyp.cpu.context_pa + TRAP_FORWARDED_AT, 1)
        self.emit("hyp_exit")
        self.emit("hyp_enter")

    # Other places

    def _iommu_idmap(self, start: int, end: int, prot: int) -> None:
        if self.enabled and self._hyp.part(Iommu).ops:
            self.emit("iommu_idmap", start, end, prot)

    def _iommu_complete(self, mapped: bool) -> None:
        if self.enabled and self._hyp.part(Iommu).ops:
            self.emit("iommu_idmap_complete", mapped)
