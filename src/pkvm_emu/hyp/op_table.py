"""``struct pkvm_module_ops`` in EL2 memory, and the stubs its members point at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from pkvm_emu.abi.generation import GENERATIONS
from pkvm_emu.arch.insn import BTI_C, b, hvc, ret
from pkvm_emu.errors import EmulatorError
from pkvm_emu.hyp import registry
from pkvm_emu.hyp.errors import UnservedOp
from pkvm_emu.hyp.op_calls import OpObserver, OpWatch
from pkvm_emu.hyp.refusals import Refusals
from pkvm_emu.hyp.service import el2_service
from pkvm_emu.machine.calling import bind
from pkvm_emu.machine.core import SERVICE_IMMEDIATE, Service

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

STUB_SIZE = 16


class FirmwareOp(NamedTuple):
    """An op that is firmware: its entry there, and how many arguments it has."""

    label: str
    nargs: int


#: Ops whose work is guest code in the firmware; the stub tells Python (for traces) and branches there.
FIRMWARE_OPS = {
    "putc": FirmwareOp("fw_putc", 1),
    "puts": FirmwareOp("fw_puts", 1),
    "putx64": FirmwareOp("fw_putx64", 1),
    "memset": FirmwareOp("fw_memset", 3),
    "memcpy": FirmwareOp("fw_memcpy", 3),
}
PAGE_SIZE = 4096
_LOOK_BACK = 24
#: LDR Xt, [Xn, #imm12 * 8]; BLR Xn; LDUR Wt, [Xn, #-4] (the kCFI word).
_LDR, _LDR_MASK = 0xF940_0000, 0xFFC0_0000
_BLR, _BLR_MASK = 0xD63F_0000, 0xFFFF_FC1F
_LDUR, _LDUR_MASK = 0xB85F_C000, 0xFFFF_FC00


class OpTable:
    """The ops of one generation.

    A stub is 16 bytes: the kCFI type id of the op's prototype, ``bti c``, ``hvc``, ``ret``; the member points at the ``bti``. A
    slot that the generation does not have holds 0, as on the device.

    Args:
        hyp: the hypervisor that serves the ops.
    """

    #: One page for the table, two for the stubs.
    PAGES = 3

    def __init__(self, hyp: Hypervisor) -> None:
        self._hyp = hyp
        table = hyp.generation.ops
        ram = hyp.machine.ram
        self._table_pa = hyp._ops_pa
        self._stubs_pa = hyp._ops_pa + PAGE_SIZE
        #: Hyp VA of the table: what the EL2 init function gets.
        self.address = hyp.stage1.va_of(self._table_pa)
        #: Stub address by op.
        self.stubs: dict[str, int] = {}
        self._watch = OpWatch(hyp)
        self._services: dict[tuple[str, registry.Op | None, bool], Service] = {}
        slots = [slot for slot in table.slots if slot.prototype]
        if len(slots) * STUB_SIZE > (self.PAGES - 1) * PAGE_SIZE:
            raise EmulatorError("struct pkvm_module_ops has more members than there is room for stubs")
        for index, slot in enumerate(slots):
            stub_pa = self._stubs_pa + index * STUB_SIZE
            ram.write_u32(stub_pa + 4, BTI_C)
            ram.write_u32(stub_pa + 8, hvc(SERVICE_IMMEDIATE))
            address = hyp.stage1.va_of(stub_pa) + 4
            firmware = FIRMWARE_OPS.get(slot.name)
            after = ret() if firmware is None else b(address + 8, hyp.entry(firmware.label))
            ram.write_u32(stub_pa + 12, after)
            ram.write_u64(self._table_pa + slot.offset, address)
            self.stubs[slot.name] = address
            hyp.machine.core.add_service(address + 4, self._service(slot.name))

    @contextmanager
    def observed(self, observer: OpObserver) -> Iterator[None]:
        """Tell ``observer`` of every op while the block runs."""
        self.observe(observer)
        try:
            yield
        finally:
            self.forget(observer)

    @property
    def observers(self) -> tuple[OpObserver, ...]:
        """Who is told of every op, in the order of being told. Observers are no part of snapshots."""
        return tuple(self._watch.observers)

    @observers.setter
    def observers(self, observers: tuple[OpObserver, ...]) -> None:
        was_watched = bool(self._watch.observers)
        self._watch.observers = list(observers)
        if was_watched != bool(observers):
            self._plant_services()

    def observe(self, observer: OpObserver) -> None:
        """Tell ``observer`` of every op from now on."""
        self.observers = (*self.observers, observer)

    def forget(self, observer: OpObserver) -> None:
        """Stop telling ``observer``."""
        self.observers = tuple(other for other in self.observers if other is not observer)

    def _plant_services(self) -> None:
        for name, address in self.stubs.items():
            self._hyp.machine.core.add_service(address + 4, self._service(name))

    def plant_kcfi(self, flavour: str) -> None:
        """Write the type ids of ``flavour`` in front of the stubs (zeros for ``none``)."""
        hyp = self._hyp
        by_name = hyp.generation.ops.by_name
        for name, address in self.stubs.items():
            slot = by_name[name]
            hyp.machine.ram.write_u32(hyp.stage1.pa_of(address) - 4, slot.kcfi(flavour) or 0)

    def name_at(self, va: int) -> str | None:
        """The op whose stub an address lies in."""
        for name, address in self.stubs.items():
            if address - 4 <= va < address - 4 + STUB_SIZE:
                return name
        return None

    def missing_call(self, pc: int) -> str | None:
        """What the call of a NULL pointer at ``pc`` wanted, where the pointer was loaded from an empty slot of the table.

        Args:
            pc: hyp VA of the BLR, or of the load of the kCFI word before it.
        """
        word = self._hyp.machine.core.fetch(pc)
        if word is None or (word & _BLR_MASK != _BLR and word & _LDUR_MASK != _LDUR):
            return None
        pointer = word >> 5 & 0x1F
        for address in range(pc - 4, pc - 4 * _LOOK_BACK, -4):
            word = self._hyp.machine.core.fetch(address)
            if word is None:
                return None
            if word & _LDR_MASK == _LDR and word & 0x1F == pointer:
                return self._name_empty_slot((word >> 10 & 0xFFF) * 8)
        return None

    def _name_empty_slot(self, offset: int) -> str | None:
        if offset >= PAGE_SIZE or self._hyp.machine.ram.read_u64(self._table_pa + offset):
            return None
        own = self._hyp.generation
        known = []
        for generation in GENERATIONS:
            slot = generation.ops.by_offset.get(offset)
            if generation.layout != own.layout and slot is not None and slot.prototype:
                known.append(f"{slot.name} on {generation.name}")
        named = f"; there is {', '.join(known)}" if known else ""
        return f"slot {offset:#x} of struct pkvm_module_ops, which {own.name} does not have{named}"

    def _service(self, name: str) -> Service:
        is_watched = bool(self._watch.observers)
        key = (name, registry.OPS.get(name), is_watched)
        known = self._services.get(key)
        if known is None:
            known = self._services[key] = self._make_service(name, is_watched)
        return known

    def _make_service(self, name: str, is_watched: bool) -> Service:
        if name in FIRMWARE_OPS:
            nothing = self._watch.wrap(name, lambda *_: None) if is_watched else lambda *_: None
            return Service(name, 2, FIRMWARE_OPS[name].nargs, nothing)
        served = registry.OPS.get(name)
        if served is None:
            return Service(name, 2, 8, self._stop_at(name))
        nargs, call = bind(served.function, self._hyp)
        call = self._hyp.part(Refusals).watch(f"ops->{name}()", call)
        if is_watched:
            call = self._watch.wrap(name, call)
        return el2_service(self._hyp, f"ops->{name}()", nargs, call, served.runs_guest)

    def _stop_at(self, name: str) -> Any:
        def stop(*registers: int) -> None:
            hyp = self._hyp
            caller = hyp.machine.engine.read("x30") - 4
            arguments = ", ".join(f"x{index}={value:#x}" for index, value in enumerate(registers))
            raise UnservedOp(
                f"{hyp.machine.core.describe(caller, 2)} calls ops->{name}(), which is not served ({arguments})"
            )

        return stop
