"""The VM table and the world switch: what EL2 does about guests.

The code that runs at EL2 for this is firmware of its own (``firmware/guest.S``), which is put in place when the first VM is made. A
guest runs on the CPU with its own stage-2 table and VMID; its SMCs go through the modules' handlers in that firmware. Source:
arch/arm64/kvm/hyp/nvhe/{pkvm,switch}.c, device/device.c.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EBUSY, EINVAL, ENOENT
from typing import TYPE_CHECKING

from pkvm_emu.abi.guests import GUESTS, GuestRules
from pkvm_emu.firmware import image as firmware
from pkvm_emu.hyp import cpu as hyp_cpu
from pkvm_emu.hyp import pviommu_guest
from pkvm_emu.hyp import vm as ctx
from pkvm_emu.hyp.device_assignment import DeviceAssignment
from pkvm_emu.hyp.devices import Devices
from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.external_pool import ExternalPool
from pkvm_emu.hyp.guests import Guests
from pkvm_emu.hyp.pgtable import PAGE_HYP_EXEC
from pkvm_emu.hyp.pviommu import PvIommus
from pkvm_emu.hyp.refusals import Refusals
from pkvm_emu.hyp.registry import GuestCall, hyp_part
from pkvm_emu.hyp.service import el2_service
from pkvm_emu.hyp.vm import Vm
from pkvm_emu.machine.core import ServiceResult
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

HANDLE_OFFSET = 0x1000
#: Where the firmware lies, from the start of EL2's part of the kernel image.
FIRMWARE_OFFSET = 0x8_0000
_TEXT_SIZE = 0x1000
_HCR_TWI, _HCR_TWE = 1 << 13, 1 << 14
_SCTLR_EL1_RESET = 0x30D0_0800
_EL1H_MASKED = 0x3C5
_EC_WFX, _EC_HVC64, _EC_SMC64 = 0x01, 0x16, 0x17
_EXCEPTION_TRAP, _EXCEPTION_IL, _EXCEPTION_HYP_REQ = 2, 3, 5
#: Exits of a protected guest that go on to the host in an orderly way: WFI, HVC, system registers, aborts.
_ORDERLY_EXITS = frozenset((_EC_WFX, _EC_HVC64, 0x18, 0x20, 0x24))
_IOMMU_POOL_ORDER = 6
_TO_HOST, _ASK_MODULES, _RESUME = 0, 1, 2
_STANDARD = (range(0x8400_0000, 0x8400_01D0), range(0xC400_0000, 0xC400_01D0))
_MEM_SHARE, _MEM_UNSHARE = 0xC600_0003, 0xC600_0004
_NOT_SUPPORTED, _INVALID_PARAMETER = (1 << 64) - 1, (1 << 64) - 3
#: What a world switch exchanges. The order is that in the vCPU's page.
_SWITCHED = (
    "sp_el0", "sp_el1", "elr_el1", "esr_el1", "far_el1", "vbar_el1", "elr_el2", "SPSR_EL1", "SPSR_EL2", "SCTLR_EL1",
    "TTBR0_EL1", "TTBR1_EL1", "TCR_EL1", "MAIR_EL1", "CPACR_EL1", "CNTKCTL_EL1", "CONTEXTIDR_EL1", "TPIDR_EL0",
    "TPIDRRO_EL0", "TPIDR_EL1", "PAR_EL1",
)  # fmt: skip
_SCTLR_AT = _SWITCHED.index("SCTLR_EL1")
_ELR2_AT, _SPSR2_AT = _SWITCHED.index("elr_el2"), _SWITCHED.index("SPSR_EL2")


@hyp_part
class Vms(State):
    """The VMs of one hypervisor.

    Attributes:
        table: the VMs by handle.
        loaded: handle of the VM whose vCPU is loaded, by CPU.
        made: how many VMs there ever were.
        placed: the firmware is in place.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.vms")
        self._hyp = hyp
        self._engine = hyp.machine.engine
        self._registers = self._engine.batch(*_SWITCHED)
        self._image = None
        journal = hyp.machine.journal
        self.table: StateDict[int, Vm] = StateDict(journal)
        self.loaded: StateDict[int, int] = StateDict(journal)
        self.made = 0
        self.placed = False

    @property
    def rules(self) -> GuestRules:
        """The generation's."""
        return GUESTS[self._hyp.generation.layout]

    # Life of a VM

    def create(self, pages: list[int], protected: bool, smc_forwarded: bool, kvm: int = 0) -> Vm:
        """``init_vm`` and ``init_vcpu``: make a VM of hypervisor pages that the host donated for it.

        ``kvm`` is what the host called the VM when it gave it IOMMUs, the kernel VA of its ``struct kvm``; 0 without.
        """
        self._place_firmware()
        index = next(i for i in range(len(self.table) + 1) if i + HANDLE_OFFSET not in self.table)
        handle = index + HANDLE_OFFSET
        machine = Vm(self._hyp, handle, index + 1, pages, protected, smc_forwarded)
        machine[ctx.CTX_HANDLE] = handle
        machine[ctx.CTX_RESULTS] = self.rules.smc_result_words
        machine[ctx.CTX_GUEST_EL1 + 8 * _SCTLR_AT] = _SCTLR_EL1_RESET
        self.table[handle] = machine
        self._hyp.part(Guests).add(handle, machine)
        self.made += 1
        if self.rules.assigns_devices:
            pool = ExternalPool(self._hyp, f"IOMMU of VM {self.made}", _IOMMU_POOL_ORDER)
            pool.ready = True
            machine.use_pool(pool)
            self._hyp.part(PvIommus).finalise(kvm, handle)
        return machine

    def start_teardown(self, handle: int) -> int:
        """``__pkvm_start_teardown_vm``: 0, -ENOENT, -EBUSY while its vCPU is loaded, -EINVAL the second time."""
        machine = self.table.get(handle)
        refuse = self._hyp.part(Refusals).refuse
        if machine is None:
            return refuse(-ENOENT, "no VM has this handle")
        if handle in self.loaded.values():
            raise HypBug(f"start_teardown_vm: a vCPU of VM {handle:#x} is loaded")
        if machine.dying:
            return refuse(-EINVAL, "the VM is being torn down already")
        machine.dying = True
        return 0

    def finalise_teardown(self, handle: int) -> int:
        """``__pkvm_finalize_teardown_vm``: 0, -ENOENT or -EBUSY; devices are reset by module code on the way."""
        machine = self.table.get(handle)
        refuse = self._hyp.part(Refusals).refuse
        if machine is None:
            return refuse(-ENOENT, "no VM has this handle")
        if not machine.dying:
            return refuse(-EBUSY, "the VM is not being torn down")
        del self.table[handle]
        self._hyp.part(Guests).remove(handle)
        DeviceAssignment(self._hyp).teardown(machine)
        pviommu_guest.teardown(self._hyp, machine)
        return 0

    @property
    def devices(self) -> StateDict[int, int]:
        """Handle of the VM that has a device, by device number."""
        return self._hyp.part(Devices).owners

    # Running

    @property
    def current(self) -> Vm | None:
        """The VM whose vCPU is loaded on this CPU."""
        handle = self.loaded.get(self._hyp.machine.current.index)
        return None if handle is None else self.table.get(handle)

    def run(self) -> int | GuestCall:
        """``__kvm_vcpu_run`` of the loaded vCPU; the exit code."""
        machine = self.current
        if machine is None or machine.dying:
            return self._hyp.part(Refusals).refuse(-EINVAL, "no vCPU of a living VM is loaded on this CPU")
        return GuestCall(self._entry("guest_enter"), machine.vcpu_va)

    def _load(self, vcpu_va: int) -> None:
        """Make the CPU the guest's."""
        hyp, engine = self._hyp, self._engine
        machine = self._of(vcpu_va)
        self._switch(machine, ctx.CTX_HOST_EL1, ctx.CTX_GUEST_EL1, (machine[ctx.CTX_PC], machine[ctx.CTX_PSTATE]))
        engine.write("vbar_el2", self._entry("guest_vectors"))
        engine.write_sysreg("VTTBR_EL2", machine.vttbr)
        engine.write_sysreg("HCR_EL2", hyp.hcr[hyp.machine.current.index] | hyp_cpu.HCR_VM | _HCR_TWI | _HCR_TWE)
        engine.flush_tlb()

    def _exit(self, vcpu_va: int) -> tuple[int, int]:
        """Make the CPU the host's again and look at why the guest stopped: ``(what to do, exit code)``."""
        hyp, engine = self._hyp, self._engine
        machine = self._of(vcpu_va)
        esr = engine.read("esr_el2")
        machine[ctx.CTX_PC] = engine.read("elr_el2")
        machine[ctx.CTX_PSTATE] = engine.read_sysreg("SPSR_EL2")
        machine[ctx.CTX_ESR], machine[ctx.CTX_FAR] = esr, engine.read("far_el2")
        machine[ctx.CTX_HPFAR] = engine.read_sysreg("HPFAR_EL2")
        self._switch(machine, ctx.CTX_GUEST_EL1, ctx.CTX_HOST_EL1, None)
        engine.write("vbar_el2", hyp.entry("hyp_vectors"))
        engine.write_sysreg("VTTBR_EL2", hyp.host.table.root)
        engine.write_sysreg("HCR_EL2", hyp.hcr[hyp.machine.current.index])
        engine.flush_tlb()
        kind = esr >> 26
        if kind == _EC_SMC64:
            next_step = self._smc(machine)
            return next_step, _EXCEPTION_TRAP if next_step != _TO_HOST else self._exit_code(machine)
        if kind == _EC_HVC64 and machine.protected:
            if self._is_device_call(machine):
                goes_on = pviommu_guest.GuestDevices(hyp, machine).call()
                return (_RESUME if goes_on else _TO_HOST), _EXCEPTION_HYP_REQ
            return self._hvc(machine), _EXCEPTION_TRAP
        return _TO_HOST, self._exit_code(machine)

    def _refused(self, vcpu_va: int) -> int:
        """No module wants an SMC of a guest: the exit code."""
        return self._exit_code(self._of(vcpu_va))

    def _exit_code(self, machine: Vm) -> int:
        """What the host hears of an exit; one of a protected guest that is not foreseen is an illegal trap (sync_hyp_vcpu)."""
        from pkvm_emu.hyp.trace_events import TraceEvents

        esr = machine[ctx.CTX_ESR]
        if not machine.protected or not self.rules.unknown_exits_are_illegal or esr >> 26 in _ORDERLY_EXITS:
            return _EXCEPTION_TRAP
        self._hyp.part(TraceEvents).emit("vcpu_illegal_trap", esr)
        return _EXCEPTION_IL

    def _is_device_call(self, machine: Vm) -> bool:
        return self.rules.assigns_devices and machine[0] & 0xFFFF_FFFF in pviommu_guest.CALLS

    def _runs_modules(self, vcpu_va: int) -> bool:
        """Whether dealing with this exit of a guest may call module code."""
        machine = self._of(vcpu_va)
        is_call = self._engine.read("esr_el2") >> 26 == _EC_HVC64
        return is_call and machine.protected and self._is_device_call(machine)

    def _smc(self, machine: Vm) -> int:
        """``kvm_handle_pvm_smc64``: standard services go to the host, the rest to the modules."""
        function = machine[0]
        if not machine.protected or any(function in ids for ids in _STANDARD) or not machine.smc_forwarded:
            return _TO_HOST
        machine[ctx.CTX_PC] += 4
        hyp = self._hyp
        if hyp.generation.faults.guest_smc_per_vm:
            own = hyp.part(Guests).handles.get(machine.handle, 0)
            machine[ctx.CTX_OWN_HANDLER] = own
            machine[ctx.CTX_TABLE], machine[ctx.CTX_COUNT] = machine.vcpu_va + ctx.CTX_OWN_HANDLER, int(own != 0)
        else:
            table = hyp.stage1.va_of(hyp.data_pa("guest_smc_table"))
            machine[ctx.CTX_TABLE], machine[ctx.CTX_COUNT] = table, hyp.read_word("guest_smc_count")
        return _ASK_MODULES

    def _hvc(self, machine: Vm) -> int:
        """Hypercalls of a protected guest: sharing and unsharing memory; others go to the host."""
        function = machine[0] & 0xFFFF_FFFF
        if function not in (_MEM_SHARE, _MEM_UNSHARE):
            return _TO_HOST
        ipa, pages, reserved = machine[8], machine[16] or 1, machine[24]
        ownership = self._hyp.ownership
        error, done = -EINVAL, 0
        if not reserved and not ipa & 0xFFF:
            change = ownership.guest_share_host if function == _MEM_SHARE else ownership.guest_unshare_host
            error, done = change(machine, ipa, pages, origin=f"guest {machine.handle:#x}")
        if error == -14 and function == _MEM_SHARE:
            # The host has to put a page there; the guest makes the call again when it runs next.
            machine[ctx.CTX_PC] -= 4
            return _TO_HOST
        machine[0], machine[8] = (_INVALID_PARAMETER, 0) if error else (0, done)
        machine[16] = machine[24] = 0
        return _RESUME

    def _switch(self, machine: Vm, save_at: int, load_at: int, entry: tuple[int, int] | None) -> None:
        for position, value in enumerate(self._registers.snapshot()):
            machine[save_at + 8 * position] = value
        if entry is not None:
            machine[load_at + 8 * _ELR2_AT], machine[load_at + 8 * _SPSR2_AT] = entry
        registers = self._registers
        for position in range(len(_SWITCHED)):
            value = machine[load_at + 8 * position]
            if position in registers.cp:
                registers.cp[position].val = value
            else:
                registers.values[position] = value
        registers.write()

    def _of(self, vcpu_va: int) -> Vm:
        pa = self._hyp.stage1.pa_of(vcpu_va)
        return next(machine for machine in self.table.values() if machine.vcpu_pa == pa)

    # The firmware

    def _entry(self, label: str) -> int:
        return self._hyp.stage1.va_of(self._text_pa + firmware.load("guest").symbols[label])

    @property
    def _text_pa(self) -> int:
        return self._hyp.data_pa("hyp_vectors") + FIRMWARE_OFFSET

    @property
    def guest_code(self) -> tuple[bytes, dict[str, int]]:
        """What a guest runs for the emulator, and the offsets of its labels."""
        image = firmware.load("guest")
        return image.code[_TEXT_SIZE:], {k: v - _TEXT_SIZE for k, v in image.symbols.items() if v >= _TEXT_SIZE}

    def _place_firmware(self) -> None:
        if self.placed:
            return
        hyp, pa = self._hyp, self._text_pa
        image = firmware.load("guest")
        hyp.machine.patch_code(pa, image.code[:_TEXT_SIZE])
        callbacks = hyp.generation.callbacks
        for label, kind in (
            ("kcfi_guest_enter", "el2_init"),
            ("kcfi_guest_smc", "guest_smc_handler"),
        ):
            callback = callbacks.get(kind)
            word = callback.kcfi(hyp.kcfi_flavour) if callback is not None else None
            hyp.machine.ram.write_u32(pa + image.symbols[label], word or 0)
        if error := hyp.ownership.claim_for_hyp(pa, _TEXT_SIZE, PAGE_HYP_EXEC):
            raise HypBug(f"the firmware for guests has no place at {pa:#x} (errno {-error})")
        services: tuple[tuple[str, Callable[..., ServiceResult], int], ...] = (
            ("op_guest_load", self._load, 1),
            ("op_guest_exit", self._exit, 1),
            ("op_guest_refused", self._refused, 1),
            ("guest_unexpected", self._unexpected, 0),
        )
        for label, function, nargs in services:
            runs_guest = self._runs_modules if label == "op_guest_exit" else False
            hyp.machine.core.add_service(self._entry(label), el2_service(hyp, label, nargs, function, runs_guest))
        self.placed = True

    def _unexpected(self) -> None:
        raise HypBug("an exception came to EL2's guest vectors that no guest causes")
