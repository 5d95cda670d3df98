"""The VM table and the world switch: what EL2 does about guests.

The code that runs at EL2 for this is firmware of its own (``firmware/guest.S``), which is put in place when the first VM is made. A
guest runs on the CPU with its own stage-2 table and VMID; its SMCs go through the modules' handlers in that firmware. Source:
arch/arm64/kvm/hyp/nvhe/{pkvm,switch}.c, device/device.c.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EBUSY, EINVAL, ENODEV, ENOENT
from typing import TYPE_CHECKING

from pkvm_emu.abi.guests import GUESTS, GuestRules
from pkvm_emu.firmware import image as firmware
from pkvm_emu.hyp import cpu as hyp_cpu
from pkvm_emu.hyp import vm as ctx
from pkvm_emu.hyp.devices import Devices
from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.guests import Guests
from pkvm_emu.hyp.pgtable import PAGE_HYP_EXEC
from pkvm_emu.hyp.refusals import Refusals
from pkvm_emu.hyp.registry import GuestCall, hyp_part
from pkvm_emu.hyp.service import el2_service
from pkvm_emu.hyp.vm import Vm
from pkvm_emu.machine.core import ServiceResult
from pkvm_emu.machine.pagetable import PAGE_SHIFT
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
_EXCEPTION_TRAP = 2
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
        devices: handle of the VM that has a device, by device number.
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
        self.devices: StateDict[int, int] = StateDict(journal)
        self.placed = False

    @property
    def rules(self) -> GuestRules:
        """The generation's."""
        return GUESTS[self._hyp.generation.layout]

    # Life of a VM

    def create(self, pages: list[int], protected: bool, smc_forwarded: bool) -> Vm:
        """``init_vm`` and ``init_vcpu``: make a VM of hypervisor pages that the host donated for it."""
        self._place_firmware()
        index = next(i for i in range(len(self.table) + 1) if i + HANDLE_OFFSET not in self.table)
        handle = index + HANDLE_OFFSET
        machine = Vm(self._hyp, handle, index + 1, pages, protected, smc_forwarded)
        machine[ctx.CTX_HANDLE] = handle
        machine[ctx.CTX_RESULTS] = self.rules.smc_result_words
        machine[ctx.CTX_GUEST_EL1 + 8 * _SCTLR_AT] = _SCTLR_EL1_RESET
        self.table[handle] = machine
        self._hyp.part(Guests).add(handle, machine)
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

    def finalise_teardown(self, handle: int) -> int | GuestCall:
        """``__pkvm_finalize_teardown_vm``: 0, -ENOENT or -EBUSY; devices are reset by module code on the way."""
        machine = self.table.get(handle)
        refuse = self._hyp.part(Refusals).refuse
        if machine is None:
            return refuse(-ENOENT, "no VM has this handle")
        if not machine.dying:
            return refuse(-EBUSY, "the VM is not being torn down")
        mine = [number for number, owner in self.devices.items() if owner == handle]
        if mine:
            return self._reset(machine, mine, host_to_guest=False)
        self._forget(machine)
        return 0

    def _forget(self, machine: Vm) -> None:
        del self.table[machine.handle]
        self._hyp.part(Guests).remove(machine.handle)

    # Devices

    def assign(self, machine: Vm, pfn: int, gfn: int) -> int | GuestCall:
        """``pkvm_host_map_guest_mmio``: the first page of a device resets it and gives it to the VM; then the page is mapped."""
        number = self._hyp.part(Devices).find(pfn << PAGE_SHIFT)
        refuse = self._hyp.part(Refusals).refuse
        if number is None:
            return refuse(-ENODEV, "no assignable device has a register at this address")
        owner = self.devices.get(number)
        if owner is not None:
            if owner != machine.handle:
                return refuse(-EBUSY, f"VM {owner:#x} has the device")
            return self._map_mmio(machine, pfn, gfn)
        hyp = self._hyp
        for base, size in hyp.part(Devices).resources[number]:
            error, _ = hyp.stage1.check_state(hyp.stage1.va_of(base), size, 0)
            if error:
                return refuse(error, "the hypervisor does not have all registers of the device yet", base)
        machine[ctx.CTX_RESETS - 8] = pfn
        machine[ctx.CTX_RESETS - 16] = gfn
        return self._reset(machine, [number], host_to_guest=True)

    def _map_mmio(self, machine: Vm, pfn: int, gfn: int) -> int:
        return self._hyp.ownership.hyp_map_guest_mmio(machine, pfn, gfn, origin="host")

    def _reset(self, machine: Vm, numbers: list[int], host_to_guest: bool) -> int | GuestCall:
        """Let the firmware call the reset handlers of some devices."""
        resets = self._hyp.part(Devices).resets
        for number in numbers:
            if number not in resets:
                if not host_to_guest:
                    raise HypBug(f"devices_teardown: device {number} of VM {machine.handle:#x} has no reset handler")
                return self._hyp.part(Refusals).refuse(-ENODEV, "no module registered a reset handler for the device")
        at = ctx.CTX_RESETS
        machine[at] = len(numbers)
        machine[at + 8] = machine.handle
        for position, number in enumerate(numbers):
            callback, cookie = resets[number]
            for word, value in enumerate((callback, cookie, int(host_to_guest))):
                machine[at + 16 + 24 * position + 8 * word] = value
        return GuestCall(self._entry("guest_resets"), machine.vcpu_va + at)

    def _resets_done(self, resets: int, result: int) -> int:
        """All reset handlers have run, or one has failed (``result``)."""
        ram, pa = self._hyp.machine.ram, self._hyp.stage1.pa_of(resets)
        machine = self.table[ram.read_u64(pa + 8)]
        host_to_guest = ram.read_u64(pa + 32)
        error = result - (1 << 64) if result >> 63 else result
        devices = self._hyp.part(Devices)
        if host_to_guest:
            if error:
                return error
            pfn, gfn = machine[ctx.CTX_RESETS - 8], machine[ctx.CTX_RESETS - 16]
            number = devices.find(pfn << PAGE_SHIFT)
            assert number is not None
            self.devices[number] = machine.handle
            return self._map_mmio(machine, pfn, gfn)
        if error:
            raise HypBug(f"devices_teardown: a reset handler for VM {machine.handle:#x} returns {error}")
        for number in [number for number, owner in self.devices.items() if owner == machine.handle]:
            del self.devices[number]
            for base, size in devices.resources[number]:
                self._hyp.ownership.return_from_guest(base, size, machine.handle, origin="finalize_teardown_vm")
        self._forget(machine)
        return 0

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
            return self._smc(machine), _EXCEPTION_TRAP
        if kind == _EC_HVC64 and machine.protected:
            return self._hvc(machine), _EXCEPTION_TRAP
        return _TO_HOST, _EXCEPTION_TRAP

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
            ("kcfi_guest_resets", "el2_init"),
            ("kcfi_guest_smc", "guest_smc_handler"),
            ("kcfi_device_reset", "device_reset"),
        ):
            callback = callbacks.get(kind)
            word = callback.kcfi(hyp.kcfi_flavour) if callback is not None else None
            hyp.machine.ram.write_u32(pa + image.symbols[label], word or 0)
        if error := hyp.ownership.claim_for_hyp(pa, _TEXT_SIZE, PAGE_HYP_EXEC):
            raise HypBug(f"the firmware for guests has no place at {pa:#x} (errno {-error})")
        services: tuple[tuple[str, Callable[..., ServiceResult], int], ...] = (
            ("op_guest_load", self._load, 1),
            ("op_guest_exit", self._exit, 1),
            ("op_guest_resets_done", self._resets_done, 2),
            ("guest_unexpected", self._unexpected, 0),
        )
        for label, function, nargs in services:
            hyp.machine.core.add_service(self._entry(label), el2_service(hyp, label, nargs, function))
        self.placed = True

    def _unexpected(self) -> None:
        raise HypBug("an exception came to EL2's guest vectors that no guest causes")
