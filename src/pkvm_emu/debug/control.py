"""Run control: takes the place of the plain start of the engine in the run loop, and stops where a debugger wants it.

There is no second thread of control. The Python flow (boot, calls) runs as without a debugger; where the guest has to stop,
:attr:`RunControl.on_stop` is called from inside the run loop, while the engine does not execute, and what it returns says how to
go on. So everything between two stops is as deterministic as a run without debugger, and a stop costs a function call.

A service (an op, a kernel function) is one step, with all guest code that it runs; breakpoints in that code stop
nevertheless.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pkvm_emu.debug.breakpoints import Breakpoint, Breakpoints, Outcome, regime_of
from pkvm_emu.debug.flow import Unwind
from pkvm_emu.debug.stops import Resume, Stop, StopKind
from pkvm_emu.debug.watchpoints import Watchpoint, Watchpoints
from pkvm_emu.errors import PkvmEmuError
from pkvm_emu.machine.core import CpuParked
from pkvm_emu.machine.power import PoweredOff

if TYPE_CHECKING:
    from pkvm_emu.debug.flow import Flow
    from pkvm_emu.debug.history import History
    from pkvm_emu.debug.replay import Replay
    from pkvm_emu.machine.core import Service, ServiceResult
    from pkvm_emu.machine.machine import Machine

_WFI = 0xD503207F
#: The caller of a call that no guest code waits for.
_NO_CALLER = (0,) * 34


class RunControl:
    """A debugger's hold on one machine. :meth:`attach` puts it into the run loop.

    Args:
        machine: what is controlled.

    Attributes:
        on_stop: called at each stop; returns how to go on, or raises to end the run.
        library_state: changes when modules come and go; a change is a stop of its own. None: no such stops.
        on_libraries: called before such a stop.
        steps: instructions that were executed singly.
        callers: the registers (x0..x30, SP, NZCV, PC) of the guest code that called the services which now run guest code.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._core = machine.core
        self._engine = machine.engine
        self.breakpoints = Breakpoints(machine.engine, self._reached)
        self.watchpoints = Watchpoints(machine, self._touched)
        self.on_stop: Callable[[Stop], Resume] = lambda stop: Resume()
        self.library_state: Callable[[], object] | None = None
        self.on_libraries: list[Callable[[], None]] = []
        self.steps = 0
        self.callers: list[tuple[int, tuple[int, ...]]] = []
        self._libraries: object = None
        self._resume = Resume()
        self._where = machine.engine.batch("pc", "pstate")
        self._step_depth = 0
        self._stepped: int | None = None
        self._hit: Stop | None = None
        self._question: Callable[[], Stop | None] | None = None
        self._is_before_access = False
        #: All registers before an access that a watchpoint stops at.
        self._registers: Any = None
        #: By address: whether a WFI is there, for as long as the code is the same.
        self._waits: dict[int, bool] = {}
        self._code_epoch = -1
        #: Goes back in the history, where one is kept (:meth:`keep_history`).
        self.replay: Replay | None = None
        self._interrupt = ""
        self._cover: int | None = None
        self._reported: BaseException | None = None
        self._next_service: Callable[[Service, tuple[int, ...]], None] | None = None
        self._next_result: Callable[[Service, ServiceResult], None] | None = None

    # Attaching

    def attach(self) -> None:
        """Take part in every run from now on."""
        self._core.control = self
        self._cover = self._engine.halt.cover(0, 1 << 64)
        self._next_service, self._core.on_service = self._core.on_service, self._serving
        self._next_result, self._core.on_result = self._core.on_result, self._served

    def detach(self) -> None:
        """Leave the machine as it is without debugger."""
        self.breakpoints.dispose()
        self.watchpoints.clear()
        self._core.control = None
        if self._cover is not None:
            self._engine.unhook(self._cover)
            self._cover = None
        self._core.on_service, self._core.on_result = self._next_service, self._next_result
        if self.replay is not None:
            self.replay.history.detach()
            self.replay = None

    def keep_history(self, flow: Flow) -> History:
        """Keep the history of a flow that has not begun, so that the run can go back."""
        from pkvm_emu.debug.history import History
        from pkvm_emu.debug.replay import Replay

        history = History(self._machine, self, flow)
        self.replay = Replay(self, history)
        return history

    def interrupt(self, reason: str) -> None:
        """Stop at the next instruction boundary. Callable from any thread, again and again until the stop has come."""
        self._interrupt = reason
        if self.replay is None:
            # Where instructions are counted, the engine is looked after often, and a halt would be at no exact count.
            self._core.watchdog.interrupt()

    def forget_interrupt(self) -> None:
        """What was asked for up to now is answered by the present stop. Only while nobody asks."""
        self._interrupt = ""

    def stop_now(self, stop: Stop, before: bool = True) -> None:
        """Called inside a hook: stop with this reason, ``before`` the instruction of the hook or after it."""
        if self._hit is None:
            self._hit = stop
        self._engine.stop(before)

    def make_stop(self, kind: StopKind, text: str = "") -> Stop:
        """A stop of the CPU on the engine, where it is."""
        values = self._where.read()
        return Stop(kind, self._machine.current.index, values[0], values[1] >> 2 & 3, text)

    @property
    def runs(self) -> tuple[int, ...]:
        """Which calls from Python are under way; the same tuple means the same Python functions on the stack."""
        return tuple(self._core.live_runs)

    @property
    def depth(self) -> int:
        """How many of them there are."""
        return self._core.depth

    @property
    def has_own_event(self) -> bool:
        """The run loop has something to deal with first."""
        return self._core.has_own_event

    @property
    def is_interrupted(self) -> bool:
        """Somebody asked for a stop."""
        return bool(self._interrupt)

    def forget(self) -> None:
        """The machine was put into another state: nothing is pending from before."""
        self._hit, self._question, self._stepped, self._interrupt = None, None, None, ""
        self._is_before_access = False
        self.watchpoints.note()

    # What the run loop calls

    @property
    def has_stop(self) -> bool:
        """The engine was stopped for the debugger."""
        return self._hit is not None or self._question is not None or bool(self._interrupt)

    def start(self, pc: int) -> str | None:
        """Run until an event; the reason where the guest makes no progress."""
        core, engine, replay = self._core, self._engine, self.replay
        engine.write("pc", pc)
        if replay is not None:
            replay.history.entered()
        while True:
            if replay is not None and not core.has_own_event:
                replay.history.boundary()
            self._stop_if_due()
            if core.has_own_event:
                return None
            pc = self._where.read()[0]
            actions, default = self._resume.actions, self._resume.default
            action = actions.get(self._machine.current.index, default) if actions else default
            if action.single and core.depth <= self._step_depth and (replay is None or not replay.is_active):
                if self._step(pc) or core.has_own_event:
                    return None
            elif replay is not None:
                is_over, reason = replay.history.run(pc, replay.target)
                if is_over:
                    return reason
            else:
                reason = core.watchdog.guarded(core, pc)
                if core.has_own_event or not self.has_stop:
                    return reason

    def advance(self, pc: int, count: int) -> None:
        """A turn of ``count`` instructions, executed one by one, so that a stop does not change who runs when."""
        core, engine, replay = self._core, self._engine, self.replay
        engine.write("pc", pc)
        if replay is not None:
            replay.history.entered()
        for _ in range(count):
            is_done = False
            while True:
                if replay is not None and not core.has_own_event:
                    replay.history.boundary(may_keep=False)
                self._stop_if_due()
                if core.has_own_event:
                    return
                is_done = self._step(engine.read("pc"))
                if (self._hit is None and self._question is None) or core.has_own_event:
                    break
            if core.has_own_event or is_done:
                return
        self._stop_if_due()

    def fetch_failed(self) -> bool:
        """A breakpoint where nothing can be executed (a debugger lets functions that it calls return to such a place)."""
        replay = self.replay
        pc, pstate = self._where.read()
        point = self.breakpoints.at_fetch(regime_of(pstate >> 2 & 3), pc)
        if point is None or (replay is not None and replay.is_active):
            return False
        self.stop_now(Stop(StopKind.BREAKPOINT, self._machine.current.index, pc, pstate >> 2 & 3), before=False)
        return True

    def failed(self, error: BaseException) -> bool:
        """Stop where an error comes up, before it ends the run."""
        replay = self.replay
        if replay is not None and isinstance(error, Unwind):
            return replay.history.was_unwound(error)
        is_end = isinstance(error, PkvmEmuError) and not isinstance(error, (CpuParked, PoweredOff))
        if is_end and error is not self._reported:
            if replay is not None and replay.is_active:
                if replay.failed():
                    return True
                if replay.is_active:
                    return False
            self._reported = error
            stop = self.make_stop(StopKind.ERROR, str(error))
            self._report(Stop(stop.kind, stop.cpu, stop.pc, stop.el, stop.text, error=error))
            return replay is not None and replay.is_active
        return False

    def enter_call(self, caller: Sequence[int]) -> None:
        """A service calls guest code."""
        self.callers.append((self._machine.current.index, tuple(caller) if self._core.depth else _NO_CALLER))

    def leave_call(self) -> None:
        """That call has ended."""
        self.callers.pop()

    # Inside

    def _step(self, pc: int) -> bool:
        """Execute one instruction; True where it was a WFI, at which the CPU waits."""
        core = self._core
        self._engine.start(pc, 1)
        if self._hit is not None or self._question is not None:
            return False
        self.steps += 1
        self._stepped = self._machine.current.index
        if core.code_epoch != self._code_epoch:
            self._code_epoch = core.code_epoch
            self._waits.clear()
        waits = self._waits.get(pc)
        if waits is None:
            waits = self._waits[pc] = core.fetch(pc) == _WFI
        return waits and not core.has_own_event

    def _stop_if_due(self) -> None:
        """Stop for what has happened since the last instruction."""
        stop = self._due()
        while stop is not None:
            self._report(stop)
            stop = self._due()

    def _due(self) -> Stop | None:
        replay = self.replay
        if replay is not None and replay.is_active:
            if self._libraries_changed():
                replay.arm()
            stop = replay.due()
            if stop is not None or replay.is_active:
                return stop
        if self._question is not None:
            question, self._question = self._question, None
            # What it does to the engine (a step) is no step of the debugger's.
            stepped = self._stepped
            found = question()
            self._stepped = stepped
            if found is not None or self._core.has_own_event:
                return found
        if self._hit is not None:
            return self._hit
        if self.watchpoints.points:
            point = self.watchpoints.changed()
            if point is not None:
                return self._watch_stop(point)
        if self._libraries_changed():
            return self.make_stop(StopKind.LIBRARIES)
        stepped = self._stepped
        if stepped is not None and self._core.depth <= self._step_depth:
            self._stepped = None
            action = self._resume.of(stepped)
            if action.single:
                if stepped != self._machine.current.index:
                    return Stop(StopKind.STEP, stepped, 0, 0)
                pc, pstate = self._where.read()
                if not action.first <= pc < action.end:
                    return Stop(StopKind.STEP, stepped, pc, pstate >> 2 & 3)
        if self._interrupt:
            return self.make_stop(StopKind.INTERRUPT, self._interrupt)
        return None

    def _libraries_changed(self) -> bool:
        """Modules came or went since this was asked last; who wants to know is told."""
        state = self.library_state() if self.library_state is not None else self._libraries
        if state == self._libraries:
            return False
        self._libraries = state
        for call in self.on_libraries:
            call()
        return True

    def answer_question(self) -> Stop | None:
        """While the history is searched: what a breakpoint could not decide inside its hook."""
        if self._question is None:
            return None
        question, self._question = self._question, None
        stop = question()
        self._stepped = None
        self.breakpoints.arm(self._where.read()[0])
        return stop

    def _report(self, stop: Stop) -> None:
        if self._is_before_access:
            is_before = self._engine.read("pc") == stop.pc
            self.watchpoints.settle(is_before)
            if is_before and self._registers is not None:
                # A load has written its register, which may be the one with the address.
                self._engine.restore_registers(self._registers)
            self._registers = None
        self._hit, self._interrupt, self._stepped = None, "", None
        self._resume = self.on_stop(stop)
        self._step_depth = self._core.depth
        request = self._resume.back
        if request is not None and self.replay is not None:
            self._resume = Resume()
            self._is_before_access = False
            self.replay.begin(request, stop)
            return
        pc = self._where.read()[0]
        is_same_place = pc == stop.pc
        # What stopped at this instruction does not stop again. Modules come before an instruction that has stopped nobody yet.
        self.breakpoints.arm(pc if is_same_place and stop.kind is not StopKind.LIBRARIES else None)
        if self.watchpoints.points:
            self.watchpoints.note()
        is_before, self._is_before_access = self._is_before_access, False
        if is_before and is_same_place:
            self._pass_watched_access(pc)

    def _pass_watched_access(self, pc: int) -> None:
        """Execute the instruction that a watchpoint stopped at: it would stop there again."""
        self.watchpoints.is_passing = True
        try:
            self._step(pc)
        finally:
            self.watchpoints.is_passing = False
        self.watchpoints.note()

    def _reached(self, point: Breakpoint, outcome: Outcome) -> None:
        replay = self.replay
        if replay is not None and replay.is_active and not replay.reached(point, outcome):
            return
        if isinstance(outcome, Stop):
            self.stop_now(outcome)
        elif outcome is True:
            stop = self.make_stop(StopKind.BREAKPOINT)
            self.stop_now(Stop(stop.kind, stop.cpu, stop.pc, stop.el, hardware=point.hardware))
        elif callable(outcome):
            self._question = outcome
            self._engine.stop(before=True)

    def step_over(self, pc: int) -> None:
        """Execute the one instruction at ``pc``, where the engine stands, whatever breakpoint is there."""
        self.breakpoints.arm(pc)
        self._engine.start(pc, 1)

    def _touched(self, point: Watchpoint) -> None:
        replay = self.replay
        if replay is not None and replay.is_active:
            replay.touched(point)
            return
        self._is_before_access = True
        if self._hit is None:
            self._registers = self._engine.save_context()
        self.stop_now(self._watch_stop(point))

    def _watch_stop(self, point: Watchpoint) -> Stop:
        stop = self.make_stop(StopKind.WATCHPOINT)
        return Stop(stop.kind, stop.cpu, stop.pc, stop.el, watch=(point.kind, point.va))

    def _serving(self, service: Service, arguments: tuple[int, ...]) -> None:
        if self._next_service is not None:
            self._next_service(service, arguments)
        if self.replay is not None and self.replay.is_active:
            self.replay.serving()

    def _served(self, service: Service, result: ServiceResult) -> None:
        if self._next_result is not None:
            self._next_result(service, result)
        if self.replay is not None and self.replay.is_active:
            self.replay.served(service.name)
        elif self.watchpoints.points:
            point = self.watchpoints.changed()
            if point is not None:
                stop = self._watch_stop(point)
                self.stop_now(
                    Stop(stop.kind, stop.cpu, stop.pc, stop.el, f"written by {service.name}", stop.watch), False
                )
