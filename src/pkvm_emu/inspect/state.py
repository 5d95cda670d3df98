"""What the data flow knows at one place, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from pkvm_emu.inspect.values import Value, is_ops_kind, join

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
