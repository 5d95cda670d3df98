"""Which ops the EL2 code calls, with what, and what it registers by them."""

from __future__ import annotations

from dataclasses import dataclass

from pkvm_emu.abi.ops import OpSlot
from pkvm_emu.inspect.flow import Flow
from pkvm_emu.inspect.program import Place, Program
from pkvm_emu.inspect.state import Event
from pkvm_emu.inspect.values import Value, atoms, number, numbers, offsets

REGISTER_CALL = "__pkvm_register_el2_call"
LOADER = "__pkvm_load_el2_module"
_TAKES_EL2_ADDRESS = ("kvm_iommu_", "pkvm_iommu_", "__pkvm_", "pkvm_", "kvm_")


@dataclass(frozen=True, slots=True)
class CallSite:
    """One call. ``how`` is ``data flow``, or ``type id`` where only offset and kCFI id tell which op is meant."""

    place: Place
    arguments: list[str]
    how: str
    kcfi_mismatch: str | None


@dataclass(frozen=True, slots=True)
class OpUse:
    """One op of the table.

    Attributes:
        name: the member; ``ops+0x..`` where the offset is none of the generation's.
        offset: bytes in the table, None for an op chosen at run time.
        reserve: the reserve slot's number, None for ordinary members.
        prototype: C prototype, empty where there is none.
        calls: where it is called.
        loads: where its pointer is read without a call being seen there (tests for NULL, copies), for ops never called.
    """

    name: str
    offset: int | None
    reserve: int | None
    prototype: str
    calls: list[CallSite]
    loads: list[Place]


@dataclass(frozen=True, slots=True)
class Registered:
    """A function that is handed to the hypervisor or the kernel: by which op or call, and where."""

    by: str
    function: str | None
    place: Place


@dataclass(frozen=True, slots=True)
class HandedOver:
    """An address of the EL2 half that EL1 gives to a kernel function, other than for the load and for hypercalls.

    ``functions`` are the EL2 functions in the object (the callbacks of an IOMMU driver, for one).
    """

    to: str
    object: str
    functions: list[str]
    place: Place


@dataclass(frozen=True, slots=True)
class OpsFacts:
    """Everything about the ops table.

    ``kept_in`` are the variables that hold the ops pointer, ``copied_to`` those that hold single ops,
    ``unresolved`` indirect calls at EL2 that nothing is known of.
    """

    ops: list[OpUse]
    kept_in: list[str]
    copied_to: list[str]
    handlers: list[Registered]
    hypercalls: list[Registered]
    handed_over: list[HandedOver]
    unresolved: list[Place]


def read_ops(flow: Flow) -> OpsFacts:
    """Collect the facts; ``flow`` has finished."""
    return _Collector(flow).collect()


def argument_text(program: Program, value: Value) -> str:
    """An argument for people: a name for an address, a quoted string, a number, ``?`` for what is not known."""
    texts = []
    for atom in atoms(value):
        if isinstance(atom, int):
            text = program.string(atom) if program.is_address(atom) else None
            texts.append(
                f'"{text.strip()}"' if text else program.name(atom) if program.is_address(atom) else _number(atom)
            )
        elif atom[0] == "u" and atom[1] is not None:
            texts.append(f"{program.name(atom[1])}+?")
        elif atom[0] == "o":
            texts.append("ops")
        else:
            return "?"
    return "|".join(sorted(texts)) if texts else "?"


def _number(value: int) -> str:
    signed = value - (1 << 64) if value >> 63 else value
    return str(signed) if -4096 <= signed < 10 else f"{value:#x}"


class _Collector:
    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.program = flow.program
        generation = flow.program.generation
        self.table = generation.ops if generation else None
        self.mode = flow.program.file.kcfi.el2
        self.calls: dict[int | None, list[CallSite]] = {}
        self.loads: dict[int | None, list[Place]] = {}
        self.handlers: list[Registered] = []
        self.hypercalls: list[Registered] = []
        self.handed_over: list[HandedOver] = []
        self.unresolved: list[Place] = []

    def collect(self) -> OpsFacts:
        for event in self.flow.events:
            if event.kind == "op":
                for offset in event.ops or (None,):
                    self._op_call(event, offset, "data flow")
            elif event.kind == "load":
                self.loads.setdefault(event.ops[0], []).append(self.program.place(event.va))
            elif event.kind == "indirect" and self._is_el2(event.va):
                self._indirect(event)
            elif event.kind == "call" and event.target is not None:
                name = self.program.external(event.target)
                if name == REGISTER_CALL:
                    self._registers(REGISTER_CALL, event, 0, self.hypercalls)
                elif name is not None and name != LOADER and not self._is_el2(event.va):
                    self._hands_over(name, event)
        found = sorted({*self.calls, *self.loads}, key=lambda offset: (offset is None, offset or 0))
        return OpsFacts(
            [self._use(offset) for offset in found],
            self._holders("o"),
            self._holders("f"),
            self.handlers,
            self.hypercalls,
            self.handed_over,
            self.unresolved,
        )

    def _is_el2(self, va: int) -> bool:
        return self.program.is_hyp_text(va)

    def _slot(self, offset: int | None) -> OpSlot | None:
        return self.table.by_offset.get(offset) if self.table and offset is not None else None

    def _use(self, offset: int | None) -> OpUse:
        slot = self._slot(offset)
        name = slot.name if slot else "chosen at run time" if offset is None else f"ops+{offset:#x}"
        calls = self.calls.get(offset, [])
        loads = [] if calls else self.loads.get(offset, [])
        return OpUse(name, offset, slot.reserve if slot else None, slot.prototype if slot else "", calls, loads)

    def _op_call(self, event: Event, offset: int | None, how: str) -> None:
        slot = self._slot(offset)
        count = _parameters(slot.prototype) if slot and slot.prototype else 0
        arguments = [argument_text(self.program, value) for value in event.arguments[:count]]
        site = CallSite(self.program.place(event.va), arguments, how, self._mismatch(event, slot))
        self.calls.setdefault(offset, []).append(site)
        if slot is not None and slot.name.startswith(("register_", "device_register_")):
            for index in _callback_parameters(slot.prototype):
                self._registers(slot.name, event, index, self.handlers)

    def _mismatch(self, event: Event, slot: OpSlot | None) -> str | None:
        expected = slot.kcfi(self.mode) if slot and self.mode else None
        if event.type_id is None or expected is None or event.type_id == expected:
            return None
        return f"checks kCFI id {event.type_id:#010x}, the op has {expected:#010x}"

    def _registers(self, by: str, event: Event, index: int, into: list[Registered]) -> None:
        value = event.arguments[index] if index < len(event.arguments) else None
        candidates = numbers(value) + [va for va in offsets(value, "u") if va is not None]
        functions = [va for va in candidates if self.program.is_address(va)]
        place = self.program.place(event.va)
        if not functions and number(value) != 0:
            into.append(Registered(by, None, place))
        into.extend(Registered(by, self.program.name(va), place) for va in functions)

    def _hands_over(self, name: str, event: Event) -> None:
        for value in event.arguments:
            for va in [*numbers(value), *(va for va in offsets(value, "u") if va is not None)]:
                section = self.program.image.section_at(va)
                # Registers beyond a function's parameters still hold older values, so only calls of KVM count.
                if section is None or not self.program.is_el2(section) or not name.startswith(_TAKES_EL2_ADDRESS):
                    continue
                held = [va] if section.is_code else self.program.callbacks(va)
                functions = list(dict.fromkeys(self.program.name(pointer) for pointer in held))
                found = HandedOver(name, self.program.name(va), functions, self.program.place(event.va))
                if found not in self.handed_over:
                    self.handed_over.append(found)

    def _indirect(self, event: Event) -> None:
        """An unknown pointer: the op is still known when the checked type id and the load's offset fit one op only."""
        slot = None
        if self.table and self.mode and event.type_id is not None and event.slot is not None:
            slot = self.table.by_offset.get(event.slot)
            if slot is not None and slot.kcfi(self.mode) != event.type_id:
                slot = None
        if slot is not None:
            self._op_call(event, slot.offset, "type id")
        else:
            self.unresolved.append(self.program.place(event.va))

    def _holders(self, kind: str) -> list[str]:
        found = []
        for va, value in sorted(self.flow.memory.items()):
            held = offsets(value, kind)
            if held and kind == "o":
                found.append(self.program.name(va))
            elif held:
                names = [slot.name if (slot := self._slot(at)) else "?" for at in held]
                found.append(f"{self.program.name(va)}: {', '.join(names)}")
        return found


def _parameter_list(prototype: str) -> list[str]:
    """The parameters of a prototype as text; commas inside of parentheses do not part them."""
    start = prototype.find("(")
    parameters, depth, current = [], 0, ""
    for character in prototype[start + 1 : prototype.rfind(")")]:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            parameters.append(current.strip())
            current = ""
        else:
            current += character
    parameters.append(current.strip())
    return [] if parameters in (["void"], [""]) else parameters


def _parameters(prototype: str) -> int:
    return len(_parameter_list(prototype))


def _callback_parameters(prototype: str) -> list[int]:
    """Which parameters are functions, or tables of them."""
    return [index for index, text in enumerate(_parameter_list(prototype)) if "(*" in text or "_ops *" in text]
