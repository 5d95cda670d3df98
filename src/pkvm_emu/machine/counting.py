"""Counts every instruction that an engine executes, and stops it at exact counts.

The engine's own counter is used: a run with a limit calls a function of the engine before each instruction, which adds one. The
counter is not part of the engine's interface: it lies in front of the limit in the structure behind the engine's handle, and is
found there by a limit of an odd value. ``docs/reverse.md`` has what this costs, and what the other ways cost.

After a run the counter is one too high in two cases: where the limit ended the run (the instruction it stops at has been counted),
and where a hook stopped the run before its instruction. Both are known here, so :attr:`InstructionCounter.index` is exact.
A stop from another thread is not, for it may come on either side of the count: whoever counts stops by limits instead.
"""

from __future__ import annotations

import ctypes
import functools

from pkvm_emu.errors import EmulatorError
from pkvm_emu.machine.engine import Engine
from pkvm_emu.machine.memory import make_ram

#: More than any run executes, and found nowhere by chance.
_NO_LIMIT = 0x2F5A_C3D1_96B7
#: How far into the engine's structure the counter is looked for, in bytes.
_SEARCHED = 4096
_RAM, _RAM_SIZE = 0x4000_0000, 1 << 21
_NOP, _HVC = 0xD503201F, 0xD4000002


class InstructionCounter:
    """The number of instructions that an engine has executed since it counts.

    Args:
        engine: what is counted. Everything that it executes is, once this object is its ``counter``.

    Attributes:
        index: instructions executed, exact while the engine does not run. One that raised an exception counts as executed; one that
            a breakpoint or watchpoint stopped at, or that reached no memory, does not.
        limit: the index where a run ends at the latest; None: nowhere.
        is_running: the engine executes (asked inside a hook).

    Raises:
        EmulatorError: the engine is of a version that keeps its counter elsewhere.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cell = ctypes.c_uint64.from_address(_address(engine) + _offset())
        #: Where the counter stood when something stopped the run, and the PC if that was before an instruction.
        self._stopped: int | None = None
        self._stopped_before: int | None = None
        self.index = 0
        self.limit: int | None = None
        self.is_running = False

    @property
    def now(self) -> int:
        """The index of the instruction that is about to be executed, inside a hook before it."""
        return self.index + self._cell.value - 1

    def emulate(self, pc: int, count: int) -> None:
        """Execute from ``pc`` until something stops it, ``count`` instructions at most where it is not 0."""
        most = _NO_LIMIT if self.limit is None else self.limit - self.index
        if count:
            most = min(most, count)
        if most <= 0:
            self._engine.write("pc", pc)
            return
        self._stopped = self._stopped_before = None
        self.is_running = True
        try:
            self._engine.emulate(pc, most)
        except BaseException:
            # The instruction that could not be executed has been counted.
            self.index += min(self._cell.value - 1, most)
            raise
        finally:
            self.is_running = False
        executed = self._cell.value if self._stopped is None else self._executed_before_stop(self._stopped)
        self.index += min(executed, most)

    def _executed_before_stop(self, counted: int) -> int:
        if self._stopped_before is not None and self._engine.read("pc") == self._stopped_before:
            return counted - 1
        return counted

    def note_stop(self, before: bool) -> None:
        """A hook stops the run; ``before``: before its instruction."""
        if self._stopped is None:
            self._stopped = self._cell.value
            self._stopped_before = self._engine.read("pc") if before else None


def _address(engine: Engine) -> int:
    handle = engine.handle
    return int(handle.value if hasattr(handle, "value") else handle)


@functools.cache
def _offset() -> int:
    """Where the counter lies behind the handle, found with an engine that executes four instructions under a known limit."""
    ram = make_ram(_RAM, _RAM_SIZE)
    engine = Engine(ram)
    for n, word in enumerate((_NOP, _NOP, _NOP, _HVC)):
        ram.write_u32(_RAM + 4 * n, word)
    engine.flush_code()
    engine.set_interrupt_handler(lambda _handle, _intno, _user: engine.stop())
    engine.set_pstate(0x3C5)
    engine.emulate(_RAM, _NO_LIMIT)
    words = (ctypes.c_uint64 * (_SEARCHED // 8)).from_address(_address(engine))
    for n in range(1, len(words)):
        if words[n] == _NO_LIMIT and words[n - 1] == 4:
            return 8 * (n - 1)
    raise EmulatorError("this build of Unicorn keeps its instruction counter elsewhere: use unicorn 2.1.4")
