"""What a single step costs in process: run control alone, with a history, and as ``pkvm-emu step`` does ``si N``."""

from __future__ import annotations

import io
import time

from common import show
from long_run import build, debugger_of

from pkvm_emu.debug.debugger import Debugger
from pkvm_emu.debug.step.screen import Output
from pkvm_emu.debug.step.view import View
from pkvm_emu.debug.stops import STEP, Killed, Resume, Stop

_STEPS = 100_000


def stepping(debugger: Debugger) -> float:
    """Seconds a step, from the beginning of the program on."""
    count, began = 0, 0.0
    step = Resume(default=STEP)

    def on_stop(stop: Stop) -> Resume:
        nonlocal count, began
        if not count:
            began = time.perf_counter()
        count += 1
        if count > _STEPS:
            raise Killed
        return step

    debugger.control.on_stop = on_stop
    work = debugger.flow.acts[1]
    debugger.flow.acts[1] = type(work)("work", lambda: (debugger.control.interrupt("begin"), work.run())[1])
    debugger.flow.run(lambda: None)
    return (time.perf_counter() - began) / _STEPS


def viewing(debugger: Debugger) -> float:
    """Seconds a step of ``si N`` in the view."""
    debugger.keep_history()
    marks: list[float] = []

    def lines():  # type: ignore[no-untyped-def]
        for line in ("si", f"si {_STEPS}"):
            marks.append(time.perf_counter())
            yield line
        marks.append(time.perf_counter())

    view = View(debugger, Output(io.StringIO(), False), lines())
    debugger.control.on_stop = view.at_stop
    work = debugger.flow.acts[1]
    debugger.flow.acts[1] = type(work)("work", lambda: (debugger.control.interrupt("begin"), work.run())[1])
    debugger.flow.run(lambda: None)
    return (marks[-1] - marks[-2]) / _STEPS


def main() -> None:
    module = build()
    size = (20, 4000)
    plain = min(stepping(debugger_of(module, size)) for _ in range(3))
    show("single step, run control", plain * 1e6, "us", "10")

    def counted() -> float:
        debugger = debugger_of(module, size)
        debugger.keep_history()
        return stepping(debugger)

    show("single step, with a history", min(counted() for _ in range(3)) * 1e6, "us", "10")
    show(
        "single step, si N of pkvm-emu step",
        min(viewing(debugger_of(module, size)) for _ in range(3)) * 1e6,
        "us",
        "10",
    )


if __name__ == "__main__":
    main()
