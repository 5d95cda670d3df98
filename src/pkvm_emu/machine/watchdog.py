"""Ends runs that make no progress, without slowing those that do.

By default nothing is counted: a thread looks now and then whether the CPU took an exception or called a service since it
last looked. If it did not for a whole interval, the run is halted between two blocks (:mod:`pkvm_emu.machine.halting`) and
continued under an instruction count; only when that is spent too is the guest declared stuck, so no run that ends within the
count is ever cut off. What is reported is the loop itself, found by single-stepping, so the report does not depend on where the
halt happened to fall.

With an instruction budget (``--max-insns``) every translated block is counted instead, which is slower and repeatable.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pkvm_emu.machine.core import Core

_INTERVAL_SECONDS = 0.5
_GRACE_INSTRUCTIONS = 200_000_000
#: Intervals after which code that :class:`Halt` does not cover is halted wherever it is.
_PATIENCE = 4
_LOOP_STEPS = 4_096
_WFI = 0xD503207F
#: LDXR and LDAXR of any size.
_EXCLUSIVE_LOAD_MASK, _EXCLUSIVE_LOAD = 0x3FE00000, 0x08400000


class _Watcher:
    """The one thread that looks after all runs of the process."""

    def __init__(self) -> None:
        self._running: list[Watchdog] = []
        self._thread: threading.Thread | None = None

    def enter(self, watchdog: Watchdog) -> None:
        """Watch a run until :meth:`leave`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="pkvm_emu-watchdog", daemon=True)
            self._thread.start()
        self._running.append(watchdog)

    def leave(self, watchdog: Watchdog) -> None:
        """The run has ended."""
        self._running.remove(watchdog)

    def _watch(self) -> None:
        while True:
            time.sleep(_INTERVAL_SECONDS)
            for watchdog in list(self._running):
                watchdog.look()


_watcher = _Watcher()


class Watchdog:
    """Guards ``Core.run`` against guests that never come back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._run = 0
        self._core: Core | None = None
        self._seen = (-1, -1)
        self._spent = 0.0
        self._looks = 0
        self.executed = 0

    def look(self) -> None:
        """Halt the engine if the run made no progress since the last look (called from the watching thread)."""
        with self._lock:
            core = self._core
            if core is None:
                return
            now, spent = (self._run, core.events), time.process_time()
            if now != self._seen:
                self._seen, self._spent, self._looks = now, spent, 0
            elif spent - self._spent >= _INTERVAL_SECONDS / 2:
                # A process that the machine did not let run cannot have made progress.
                self._spent = spent
                self._looks += 1
                core.engine.halt.ask()
                if self._looks > _PATIENCE and not core.engine.in_device:
                    core.engine.stop()

    def interrupt(self) -> None:
        """Halt the engine if it runs, for somebody who says so with ``core.has_event``. Callable from any thread."""
        with self._lock:
            if self._core is not None:
                self._core.engine.halt.ask()

    def guarded(self, core: Core, pc: int) -> str | None:
        """Run plainly; the reason if the guest makes no progress, None if the engine stopped for an event."""
        engine = core.engine
        while True:
            self._run += 1
            self._core = core
            _watcher.enter(self)
            try:
                engine.start(pc)
            finally:
                _watcher.leave(self)
                with self._lock:
                    self._core = None
            if not engine.halt.is_asked:
                return None
            engine.halt.withdraw()
            if core.has_event or core.fetch(engine.read("pc") - 4) == _WFI:
                return None
            before = core.events
            # Code that was translated without a count is not counted, and the other way round.
            engine.flush_code()
            engine.start(engine.read("pc"), _GRACE_INSTRUCTIONS)
            engine.flush_code()
            pc = engine.read("pc")
            if core.has_event or core.fetch(pc - 4) == _WFI:
                return None
            if core.events == before:
                return self.describe_loop(core)

    def counted(self, core: Core, pc: int) -> str | None:
        """Run under ``core.instruction_budget``, counting every block."""
        budget = core.instruction_budget
        assert budget is not None
        counter = BlockCounter(core, budget - self.executed)
        try:
            core.engine.start(pc)
        finally:
            self.executed += counter.finish()
        if counter.spent and not core.has_event:
            where = core.describe(core.engine.read("pc"), core.el)
            return f"the budget of {budget} instructions is spent at {where}"
        return None

    @staticmethod
    def describe_loop(core: Core) -> str:
        """The endless loop that the CPU is in, found by single-stepping."""
        engine = core.engine
        start_el = core.el
        places: set[int] = set()
        waits: set[int] = set()
        for _ in range(_LOOP_STEPS):
            pc = engine.read("pc")
            places.add(pc)
            word = core.fetch(pc)
            if word is not None and word & _EXCLUSIVE_LOAD_MASK == _EXCLUSIVE_LOAD:
                waits.add(engine.read(f"x{word >> 5 & 31}") if word >> 5 & 31 != 31 else engine.read("sp"))
            engine.start(pc, 1)
        first, last = core.describe(min(places), start_el), core.describe(max(places), start_el)
        if waits:
            lock = ", ".join(core.describe(va, start_el) for va in sorted(waits))
            return (
                f"waits for ever on the lock at {lock}, which nobody holds that could free it (loop {first} .. {last})"
            )
        return f"endless loop between {first} and {last}: no exception and no call to the hypervisor or kernel"


class BlockCounter:
    """Counts instructions by a hook at the start of each translated block (a block cut short by a fault counts whole).

    Args:
        core: whose engine.
        limit: instructions after which the engine is stopped, at a block boundary.
    """

    def __init__(self, core: Core, limit: int) -> None:
        self._core = core
        self._limit = limit
        self._count = 0
        self.spent = False
        self._hook = core.engine.hook_blocks(self._block)

    def _block(self, _pc: int, size: int) -> None:
        self._count += size >> 2
        if self._count > self._limit:
            self.spent = True
            self._core.engine.stop()

    def finish(self) -> int:
        """Remove the hook and return the number of instructions."""
        self._core.engine.unhook(self._hook)
        return self._count
