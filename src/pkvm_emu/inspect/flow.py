"""Following values through the code of a whole module.

One abstract interpretation over the basic blocks of every function (see :mod:`~pkvm_emu.inspect.values` for what a register may
hold), with three things shared between functions until nothing changes any more:

* arguments: a function that is only called directly starts with the join of what its callers pass in x0 to x7; one whose
  address is taken, or that nobody calls, starts with unknown ones;
* results: that a function may return the ops pointer, or an op;
* memory: what may be stored at each address of the module's own data (ops pointers, ops, addresses of the module).

Then every block is gone through once more and what happens there is reported as :class:`Event` objects.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from pkvm_emu.inspect import decode as d
from pkvm_emu.inspect.functions import Block, CodeMap, Function
from pkvm_emu.inspect.program import Program
from pkvm_emu.inspect.values import (
    MASK32,
    Value,
    add,
    atoms,
    fold,
    is_ops_kind,
    join,
    number,
    offsets,
    ops_only,
    pack,
    plus,
    subtract,
)

_CLOBBERED = (*range(18), 30)
_ARGUMENTS = 8
_NARROW_AFTER = 6
_COPY_LIMIT = 4096
_VISIT_LIMIT = 40
_BUDGET = 3_000_000
_BLOCK_COST = 6
_COPY_NAMES = frozenset(
    {"memcpy", "memmove", "__memcpy", "__pi_memcpy", "__pi___memcpy", "__asan_memcpy", "__hwasan_memcpy"}
)
_KEEPS_REGISTERS = frozenset({"__arm_smccc_sve_check"})
_NEVER_RETURNS = frozenset({"__stack_chk_fail", "panic", "__ubsan_handle_cfi_check_fail_abort"})

Stack = dict[int, Value]


class Event(NamedTuple):
    """Something that the code at ``va`` does.

    Attributes:
        kind: ``op`` (call of ops), ``load`` (of an op, without a call), ``call`` (of the module's or a kernel function),
            ``indirect`` (call through an unknown pointer), ``smc``, ``hvc``, ``store`` (of something followed).
        va: address of the instruction.
        function: start of the function it is in.
        ops: offsets of the ops meant, None for an unknown one; empty for other kinds.
        target: called function's address, address stored to, or the SMC's or HVC's immediate.
        arguments: x0 to x7 before the call; for a store the one value stored.
        type_id: the kCFI id that is checked, or None.
        pointee: for ``call``, ``smc`` and ``hvc``: first word that x0 points at, where x0 points at the stack.
        slot: for ``indirect``: offset that the pointer was loaded from, None when unknown.
    """

    kind: str
    va: int
    function: int
    ops: tuple[int | None, ...] = ()
    target: int | None = None
    arguments: tuple[Value, ...] = ()
    type_id: int | None = None
    pointee: Value = None
    slot: int | None = None


@dataclass(slots=True)
class State:
    """Registers and followed stack slots (offset from the stack pointer at entry) at one place."""

    registers: list[Value]
    stack: Stack = field(default_factory=dict)

    def copy(self) -> State:
        return State(self.registers.copy(), self.stack.copy())

    def absorb(self, other: State, narrow: bool) -> bool:
        """Join ``other`` into this state; True when that changed it."""
        changed = False
        mine = self.registers
        for index, value in enumerate(other.registers):
            if mine[index] != value:
                joined = join(mine[index], value, narrow=narrow)
                if joined != mine[index]:
                    mine[index] = joined
                    changed = True
        for slot in [slot for slot in self.stack if slot not in other.stack and not is_ops_kind(self.stack[slot])]:
            del self.stack[slot]
            changed = True
        for slot, value in other.stack.items():
            known = self.stack.get(slot)
            joined = join(known, value, narrow=narrow)
            if joined != known:
                changed = True
                if joined is None:
                    del self.stack[slot]
                else:
                    self.stack[slot] = joined
        return changed


class Flow:
    """The analysis of one module: :meth:`run` for EL1, then for EL2, then :meth:`finish`.

    ``events`` are in address order, ``memory`` is what the module's data may hold, ``complete`` tells whether the fixpoint
    was reached within the budget of work.
    """

    def __init__(self, program: Program, code: CodeMap) -> None:
        self.program = program
        self.code = code
        self.events: list[Event] = []
        self.memory: dict[int, Value] = {}
        self.complete = True
        self._entries: dict[int, tuple[Value, ...]] = {}
        self._results: dict[int, Value] = {}
        self._callers: dict[int, set[int]] = {}
        self._readers: dict[int, set[int]] = {}
        self._visits: dict[int, int] = {}
        self._states: dict[int, dict[int, State]] = {}
        self._pending: deque[int] = deque()
        self._queued: set[int] = set()
        self._budget = _BUDGET
        self._recording = False
        self._by_type: dict[int, list[int]] | None = None

    def run(self, el: int, ops_functions: tuple[int, ...] = ()) -> None:
        """Analyse the code of one exception level; EL1 first, because what it stores may be read at EL2.

        Args:
            el: 1 or 2.
            ops_functions: functions that are called with the ops pointer in x0 from outside (the EL2 init function).
        """
        for va in ops_functions:
            self._enter(va, (("o", 0),) + (None,) * (_ARGUMENTS - 1))
        unknown = (None,) * _ARGUMENTS
        taken = set(self.program.code_references())
        mine = [va for va in sorted(self.code.functions) if self.code.functions[va].is_el2 == (el == 2)]
        for va in mine:
            if va in taken and va not in ops_functions:
                self._enter(va, unknown)
        self._settle()
        called = self._called_directly()
        for only_uncalled in (True, False):
            for va in mine:
                if va not in self._entries and not (only_uncalled and va in called):
                    self._enter(va, unknown)
            self._settle()

    def finish(self) -> None:
        """Collect the events, after both levels have run."""
        self._recording = True
        for va in sorted(self._states):
            for start in sorted(self._states[va]):
                function = self.code.functions[va]
                if start in function.blocks:
                    _Run(self, function, self._states[va][start].copy()).block(function.blocks[start])
        self.events.sort(key=lambda event: (event.va, event.kind))

    # What is shared between functions

    def _called_directly(self) -> set[int]:
        called = set()
        for function in self.code.functions.values():
            for block in function.blocks.values():
                for index, operation in enumerate(block.instructions):
                    if operation[0] in (d.CALL, d.JUMP, d.BRANCH):
                        target = block.start + 4 * index + operation[1]
                        if target != function.start:
                            called.add(target)
        return called

    def _enter(self, va: int, arguments: tuple[Value, ...]) -> None:
        known = self._entries.get(va)
        joined = arguments if known is None else tuple(map(join, known, arguments))
        if joined != known:
            self._entries[va] = joined
            self._queue(va)

    def _queue(self, va: int) -> None:
        if va not in self._queued and va in self.code.functions:
            self._queued.add(va)
            self._pending.append(va)

    def _settle(self) -> None:
        while self._pending:
            va = self._pending.popleft()
            self._queued.discard(va)
            self._visits[va] = self._visits.get(va, 0) + 1
            if self._visits[va] > _VISIT_LIMIT or self._budget <= 0:
                self.complete = False
                continue
            self._analyse(self.code.functions[va])

    def _analyse(self, function: Function) -> None:
        registers: list[Value] = [None] * d.REGISTERS
        registers[:_ARGUMENTS] = self._entries[function.start]
        registers[d.SP] = ("s", 0)
        registers[d.ZERO] = 0
        states = self._states[function.start] = {function.start: State(registers)}
        pending = deque([function.start])
        waiting = {function.start}
        visits: dict[int, int] = {}
        roots = deque(function.orphans)
        while pending or roots:
            if not pending:
                root = roots.popleft()
                if root in states:
                    continue
                # Nothing leads here that is understood: all that is known is that the stack is the function's.
                bare: list[Value] = [None] * d.REGISTERS
                bare[d.ZERO] = 0
                states[root] = State(bare)
                pending.append(root)
                waiting.add(root)
            start = pending.popleft()
            waiting.discard(start)
            block = function.blocks.get(start)
            if block is None:
                continue
            visits[start] = visits.get(start, 0) + 1
            self._budget -= len(block.instructions) + len(states[start].stack) + _BLOCK_COST
            if self._budget <= 0:
                self.complete = False
                return
            state = states[start].copy()
            if not _Run(self, function, state).block(block):
                continue
            following = block.successors + (function.orphans if block.jumps_to_orphans else ())
            self._budget -= len(following)
            for target in following:
                known = states.get(target)
                if known is None:
                    states[target] = state.copy()
                elif not known.absorb(state, visits.get(target, 0) >= _NARROW_AFTER):
                    continue
                if target not in waiting:
                    waiting.add(target)
                    pending.append(target)

    def note_return(self, function: Function, value: Value) -> None:
        """Remember that ``function`` may return ``value``."""
        value = ops_only(value)
        if value is not None and not self._recording:
            joined = join(self._results.get(function.start), value)
            if joined != self._results.get(function.start):
                self._results[function.start] = joined
                for caller in sorted(self._callers.get(function.start, ())):
                    self._queue(caller)

    def call_function(self, caller: Function, target: int, arguments: tuple[Value, ...]) -> Value:
        """Pass ``arguments`` on to a function of the module; what may come back in x0."""
        if not self._recording:
            self._callers.setdefault(target, set()).add(caller.start)
            self._enter(target, tuple(_exportable(value) for value in arguments))
        return self._results.get(target)

    def call_by_type(self, caller: Function, type_id: int, arguments: tuple[Value, ...]) -> None:
        """Pass ops that an unresolved indirect call hands over on to every function with the kCFI id that it checks."""
        if self._recording or not any(map(is_ops_kind, arguments)):
            return
        for target in self._functions_by_type().get(type_id, ()):
            self._budget -= 1
            self.call_function(caller, target, arguments)

    def _functions_by_type(self) -> dict[int, list[int]]:
        if self._by_type is None:
            self._by_type = {}
            for va in self.code.functions:
                if self.program.image.section_at(va - 4) is not None:
                    self._by_type.setdefault(self.program.image.read_int(va - 4, 4), []).append(va)
        return self._by_type

    def load(self, function: Function, va: int, size: int) -> Value:
        """What ``size`` bytes at ``va`` of the module may hold."""
        image = self.program.image
        if not image.contains(va, size) or image.section_at(va, size) is None:
            return None
        stored: Value = None
        if size == 8:
            self._readers.setdefault(va, set()).add(function.start)
            stored = self.memory.get(va)
        initial = image.read_int(va, size)
        if not self.program.is_writable(va):
            return initial
        start, end = self.program.this_module
        if start <= va < end:
            return stored
        if size == 8 and self.program.is_address(initial):
            return initial if stored is None else join(stored, initial)
        return stored

    def store(self, va: int, value: Value) -> None:
        """Remember that ``value`` may be stored at ``va`` of the module, if it is something to follow."""
        if self._recording or not (is_ops_kind(value) or self._is_pointer(value)):
            return
        known = self.memory.get(va)
        joined = value if known is None else join(known, value)
        if joined != known and joined is not None:
            self.memory[va] = joined
            for reader in sorted(self._readers.get(va, ())):
                self._queue(reader)

    def _is_pointer(self, value: Value) -> bool:
        if isinstance(value, int):
            return self.program.is_address(value)
        return value is not None and all(
            self.program.is_address(atom) if isinstance(atom, int) else atom[0] == "u" for atom in atoms(value)
        )

    def record(self, event: Event) -> None:
        """Keep ``event``, in the last pass only."""
        if self._recording:
            self.events.append(event)


class _Run:
    """One pass through one block."""

    def __init__(self, flow: Flow, function: Function, state: State) -> None:
        self.flow = flow
        self.function = function
        self.state = state
        self.registers = state.registers
        self.is_address = flow.program.is_address

    def block(self, block: Block) -> bool:
        """Go through ``block``; False when it does not go on to its successors."""
        va = block.start
        for operation in block.instructions:
            if not self._step(va, operation):
                return False
            va += 4
        return True

    def _step(self, va: int, operation: d.Insn) -> bool:
        kind = operation[0]
        registers = self.registers
        if kind == d.LOAD or kind == d.STORE:
            self._access(va, operation)
        elif kind == d.ADDI:
            _, rd, rn, amount, is64 = operation
            value = plus(registers[rn], amount)
            registers[rd] = value if is64 else _narrow(value)
        elif kind == d.MOV:
            value = registers[operation[2]]
            registers[operation[1]] = value if operation[3] else _narrow(value)
        elif kind == d.CONST:
            registers[operation[1]] = operation[2]
        elif kind == d.ADRP:
            registers[operation[1]] = (va & ~0xFFF) + operation[2]
        elif kind == d.ADR:
            registers[operation[1]] = va + operation[2]
        elif kind == d.CLOBBER:
            for register in operation[1:]:
                registers[register] = None
        elif kind == d.ADDR or kind == d.SUBR:
            self._add_registers(operation)
        elif kind == d.MOVK:
            _, rd, immediate, shift, _ = operation
            registers[rd] = fold(registers[rd], lambda old: old & ~(0xFFFF << shift) | immediate << shift)
        elif kind == d.FOLD:
            word = operation[3]
            registers[operation[1]] = fold(registers[operation[2]], lambda old: d.fold_function(word, old))
        elif kind == d.CSEL:
            _, rd, rn, rm, is64 = operation
            value = join(registers[rn], registers[rm])
            registers[rd] = value if is64 else _narrow(value)
        elif kind == d.LITERAL:
            registers[operation[1]] = self.flow.load(self.function, va + operation[2], operation[3])
        elif kind >= d.JUMP:
            return self._control(va, operation)
        return True

    def _add_registers(self, operation: d.Insn) -> None:
        kind, rd, rn, rm, shift, is64 = operation
        right = self.registers[rm]
        if shift:
            right = fold(right, lambda value: value << shift) if shift > 0 else None
        combine = add if kind == d.ADDR else subtract
        value = combine(self.registers[rn], right, self.is_address)
        self.registers[rd] = value if is64 else _narrow(value)

    # Memory

    def _access(self, va: int, operation: d.Insn) -> None:
        kind, first, base, offset, size, writeback, index, shift = operation[:8]
        registers = self.registers
        address = registers[base]
        if index >= 0:
            scaled = registers[index]
            scaled = fold(scaled, lambda value: value << shift) if shift else scaled
            address = add(address, scaled, self.is_address)
        elif writeback != 2:
            address = plus(address, offset)
        targets = (first,) if len(operation) == 8 else (first, operation[8])
        values = [registers[target] for target in targets]
        if writeback:
            registers[base] = plus(registers[base], offset)
        for position, target in enumerate(targets):
            place = plus(address, position * abs(size))
            if kind == d.STORE:
                self._store(va, place, values[position], size)
                continue
            value = self._load(va, place, size)
            if value is None and size == 8 and index < 0 and not writeback:
                value = ("l", offset + 8 * position)
            registers[target] = value

    def _load(self, va: int, place: Value, size: int) -> Value:
        if place is None:
            return None
        result: Value = None
        first = True
        for atom in atoms(place):
            value = self._load_from(va, atom, size)
            result = value if first else join(result, value)
            first = False
        return result

    def _load_from(self, va: int, atom: object, size: int) -> Value:
        if isinstance(atom, int):
            if size < 0 or not self.is_address(atom):
                return None
            return self.flow.load(self.function, atom, size)
        if not isinstance(atom, tuple) or size != 8:
            return None
        kind, offset = atom
        if kind == "s":
            return self.state.stack.get(offset)
        if kind == "o":
            if offset is not None and (offset % 8 or not 0 <= offset < self._ops_size()):
                return None
            self.flow.record(Event("load", va, self.function.start, (offset,)))
            return ("f", offset)
        if kind == "u" and not self.flow.program.is_writable(offset):
            return pack(self.flow.program.object_pointers(offset))
        return None

    def _ops_size(self) -> int:
        generation = self.flow.program.generation
        return generation.ops_size if generation else 4096

    def _store(self, va: int, place: Value, value: Value, size: int) -> None:
        for atom in atoms(place):
            if isinstance(atom, int):
                if size == 8 and self.is_address(atom):
                    self.flow.store(atom, value)
                    if value is not None:
                        self.flow.record(Event("store", va, self.function.start, target=atom, arguments=(value,)))
            elif atom[0] == "s" and atom[1] is not None:
                self._store_on_stack(atom[1], value, size)

    def _store_on_stack(self, offset: int, value: Value, size: int) -> None:
        stack = self.state.stack
        if size == 8 and value is not None:
            stack[offset] = value
        else:
            for slot in range(offset - 7, offset + size):
                stack.pop(slot, None)

    # Control

    def _control(self, va: int, operation: d.Insn) -> bool:
        kind = operation[0]
        registers = self.registers
        if kind == d.CALL:
            return self._call(va, va + operation[1])
        if kind == d.CALLREG:
            self._call_value(va, registers[operation[1]])
            return True
        if kind in (d.JUMP, d.BRANCH):
            target = va + operation[1]
            if not self.function.start <= target < self.function.end:
                self._call_direct(va, target, is_tail=True)
            return True
        if kind == d.RET:
            self.flow.note_return(self.function, registers[0])
            return False
        if kind == d.BRREG:
            value = registers[operation[1]]
            if is_ops_kind(value) or not self.function.orphans:
                self._call_value(va, value, is_tail=True)
                return False
            return True
        if kind in (d.SMC, d.HVC):
            name = "smc" if kind == d.SMC else "hvc"
            self.flow.record(Event(name, va, self.function.start, (), operation[1], self._arguments()))
            for register in range(18 if kind == d.SMC else 4):
                registers[register] = None
            return True
        return kind != d.STOP

    def _arguments(self) -> tuple[Value, ...]:
        return tuple(self.registers[:_ARGUMENTS])

    def _call(self, va: int, target: int) -> bool:
        name = self.flow.program.external(target)
        if name in _KEEPS_REGISTERS:
            return True
        self._call_direct(va, target)
        return name not in _NEVER_RETURNS

    def _call_direct(self, va: int, target: int, is_tail: bool = False) -> None:
        arguments = self._arguments()
        x0 = arguments[0]
        pointee = self._load(va, x0, 8) if isinstance(x0, tuple) and x0[0] == "s" else None
        self.flow.record(Event("call", va, self.function.start, (), target, arguments, pointee=pointee))
        name = self.flow.program.name(target)
        if name in _COPY_NAMES:
            self._copy(arguments)
        result: Value = None
        if target in self.flow.code.functions:
            result = self.flow.call_function(self.function, target, arguments)
        self._returned(result, arguments, is_tail)

    def _call_value(self, va: int, value: Value, is_tail: bool = False) -> None:
        arguments = self._arguments()
        type_id = self.function.kcfi_types.get(va)
        result: Value = None
        callees = [
            atom if isinstance(atom, int) else atom[1]
            for atom in atoms(value)
            if isinstance(atom, int) or atom[0] == "u"
        ]
        if is_ops_kind(value):
            self.flow.record(Event("op", va, self.function.start, tuple(offsets(value, "f")), None, arguments, type_id))
            if self._copy_offset() in offsets(value, "f"):
                self._copy(arguments)
        elif callees and all(callee in self.flow.code.functions for callee in callees):
            for callee in callees:
                if callee is not None:
                    self.flow.record(Event("call", va, self.function.start, (), callee, arguments, type_id))
                    result = join(result, self.flow.call_function(self.function, callee, arguments))
        else:
            slots = offsets(value, "l")
            slot = slots[0] if len(slots) == 1 else None
            self.flow.record(Event("indirect", va, self.function.start, (), None, arguments, type_id, slot=slot))
            if type_id is not None:
                self.flow.call_by_type(self.function, type_id, arguments)
        self._returned(result, arguments, is_tail)

    def _copy_offset(self) -> int | None:
        generation = self.flow.program.generation
        return generation.ops["memcpy"].offset if generation else -1

    def _returned(self, result: Value, arguments: tuple[Value, ...], is_tail: bool) -> None:
        if is_tail:
            self.flow.note_return(self.function, result)
            return
        for register in _CLOBBERED:
            self.registers[register] = None
        self.registers[0] = result
        escaped = [offset for value in arguments for offset in offsets(value, "s") if offset is not None]
        if escaped:
            lowest, stack = min(escaped), self.state.stack
            for slot in [slot for slot in stack if slot >= lowest and not is_ops_kind(stack[slot])]:
                del stack[slot]

    def _copy(self, arguments: tuple[Value, ...]) -> None:
        """A copy of (a part of) the ops table, or of memory that has ops in it."""
        target, source, size = arguments[:3]
        length = min(number(size) or 0, _COPY_LIMIT)
        if target is None or source is None:
            return
        for at in range(0, length & ~7, 8):
            value = self._copied(plus(source, at))
            if is_ops_kind(value):
                for atom in atoms(plus(target, at)):
                    if isinstance(atom, int) and self.is_address(atom):
                        self.flow.store(atom, value)
                    elif isinstance(atom, tuple) and atom[0] == "s" and atom[1] is not None:
                        self.state.stack[atom[1]] = value

    def _copied(self, place: Value) -> Value:
        result: Value = None
        for atom in atoms(place):
            if isinstance(atom, int):
                value = self.flow.load(self.function, atom, 8) if self.is_address(atom) else None
            elif atom[0] == "o":
                inside = atom[1] is not None and 0 <= atom[1] < self._ops_size()
                value = ("f", atom[1]) if inside else None
            else:
                value = self.state.stack.get(atom[1]) if atom[0] == "s" and atom[1] is not None else None
            result = join(result, ops_only(value))
        return result


def _narrow(value: Value) -> Value:
    return fold(value, lambda whole: whole & MASK32)


def _exportable(value: Value) -> Value:
    """``value`` as another function may use it: stack addresses and load offsets mean nothing there."""
    if any(isinstance(atom, tuple) and atom[0] in "sl" for atom in atoms(value)):
        return None
    return value
