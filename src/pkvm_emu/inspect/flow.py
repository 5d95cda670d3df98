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

from pkvm_emu.inspect import decode as d
from pkvm_emu.inspect.functions import CodeMap, Function
from pkvm_emu.inspect.program import Program
from pkvm_emu.inspect.state import Event, State
from pkvm_emu.inspect.step import BlockRun
from pkvm_emu.inspect.values import Value, atoms, is_ops_kind, join, ops_only

_ARGUMENTS = 8
_NARROW_AFTER = 6
_VISIT_LIMIT = 40
_BUDGET = 3_000_000
_BLOCK_COST = 6


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
                    BlockRun(self, function, self._states[va][start].copy()).block(function.blocks[start])
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
            if not BlockRun(self, function, state).block(block):
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


def _exportable(value: Value) -> Value:
    """``value`` as another function may use it: stack addresses and load offsets mean nothing there."""
    if any(isinstance(atom, tuple) and atom[0] in "sl" for atom in atoms(value)):
        return None
    return value
