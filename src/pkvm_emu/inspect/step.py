"""What each instruction does to the values that the data flow follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.inspect import decode as d
from pkvm_emu.inspect.functions import Block, Function
from pkvm_emu.inspect.state import Event, State
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

if TYPE_CHECKING:
    from pkvm_emu.inspect.flow import Flow

_CLOBBERED = (*range(18), 30)
_ARGUMENTS = 8
_COPY_LIMIT = 4096
_COPY_NAMES = frozenset(
    {"memcpy", "memmove", "__memcpy", "__pi_memcpy", "__pi___memcpy", "__asan_memcpy", "__hwasan_memcpy"}
)
_KEEPS_REGISTERS = frozenset({"__arm_smccc_sve_check"})
_NEVER_RETURNS = frozenset({"__stack_chk_fail", "panic", "__ubsan_handle_cfi_check_fail_abort"})


class BlockRun:
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
