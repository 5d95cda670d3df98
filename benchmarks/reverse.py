"""Going back in a run of ten million instructions at EL1 and EL2: any point within a second; and what knowing the index costs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from common import show
from long_run import FEW, MANY, build, debugger_of

from pkvm_emu.debug.breakpoints import Breakpoint
from pkvm_emu.debug.debugger import Debugger
from pkvm_emu.debug.stops import STEP, Back, Killed, Request, Resume, Stop

_POINTS = 40
_MODULE = build()


def _at_the_end(debugger: Debugger, script: Callable[[], Resume]) -> None:
    """Run to the last instruction of the program but a few, then stop for ``script`` again and again."""
    machine = debugger.system.machine
    is_there = False

    def on_stop(stop: Stop) -> Resume:
        nonlocal is_there
        if not is_there:
            # The entry was reached: run to the return, with the frames of Python that were there at the entry.
            is_there = True
            debugger.control.breakpoints.add(Breakpoint(1, machine.engine.read("x30")))
            return Resume()
        return script()

    debugger.control.on_stop = on_stop
    loader = debugger.flow.acts[0].run

    def boot() -> str | None:
        result = loader()
        va = debugger.system.modules["long_run"].symbol("long_run")
        assert va is not None
        debugger.control.breakpoints.add(Breakpoint(1, va))
        debugger.control.breakpoints.arm(None)
        return result

    debugger.flow.acts[0] = type(debugger.flow.acts[0])("boot", boot)
    debugger.flow.run(lambda: None)


def measure(what: str, size: tuple[int, int]) -> None:
    """Random points, single steps back, and a search, in one run."""
    debugger = debugger_of(_MODULE, size)
    history = debugger.keep_history()
    chosen = random.Random(5)
    times: dict[str, list[float]] = {"point": [], "step back": [], "step forward": []}
    began = time.perf_counter()
    job, first, last = "", 0, 0

    def script() -> Resume:
        nonlocal began, job, first, last
        now = time.perf_counter()
        if job:
            times[job].append(now - began)
        else:
            last = history.index
        began = time.perf_counter()
        done = len(times["point"])
        if done >= _POINTS:
            raise Killed
        if job == "point":
            job = "step back"
            return Resume(back=Request(Back.STEP))
        if job == "step back":
            job = "step forward"
            return Resume(default=STEP)
        job = "point"
        # From the far end each time: the way is the longest.
        return Resume(back=Request(Back.GOTO, index=chosen.randrange(last - 9_990_000, last)))

    _at_the_end(debugger, script)
    show(f"{what}: instructions", float(last), "", "10 million")
    show(f"{what}: any point, worst of {_POINTS}", max(times["point"]) * 1e3, "ms", "1000")
    for name, values in times.items():
        values.sort()
        show(f"{what}: {name}, median", values[len(values) // 2] * 1e3, "ms", "1000")
    show(f"{what}: states kept", float(history.checkpoints), "", "")
    debugger.control.detach()


def costs(size: tuple[int, int], what: str) -> None:
    """The same program in the ways in which the number of executed instructions can be known."""

    def timed(prepare: Callable[[Debugger], object]) -> float:
        best = 1e9
        for _ in range(3):
            debugger = debugger_of(_MODULE, size)
            began = 0.0
            work = debugger.flow.acts[1]

            def run(work: object = work, debugger: Debugger = debugger) -> str | None:
                nonlocal began
                prepare(debugger)
                began = time.perf_counter()
                return work.run()  # type: ignore[attr-defined,no-any-return]

            debugger.flow.acts[1] = type(work)("work", run)
            debugger.flow.run(lambda: None)
            best = min(best, time.perf_counter() - began)
            debugger.control.detach()
        return best

    def blocks(debugger: Debugger) -> None:
        executed = [0]

        def count(_pc: int, size: int) -> None:
            executed[0] += size >> 2

        debugger.system.machine.engine.hook_blocks(count)

    plain = timed(lambda debugger: None)
    show(f"{what}: not counted", plain * 1e3, "ms", "")
    for name, prepare in (
        ("the engine's counter, states kept", lambda debugger: debugger.keep_history()),
        ("a hook in Python at each block", blocks),
    ):
        taken = timed(prepare)
        show(f"{what}: {name}", taken * 1e3, "ms", f"x {taken / plain:.1f}")


def main() -> None:
    measure("220 hypercalls", FEW)
    measure("15000 hypercalls", MANY)
    costs(FEW, "220 hypercalls")
    costs(MANY, "15000 hypercalls")


if __name__ == "__main__":
    main()
