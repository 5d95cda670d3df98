"""Stepping in process: one instruction, with a stop after it, and within a range; and what a debugger that looks on costs."""

from __future__ import annotations

import time

from common import sample, show

import pkvm_emu
from pkvm_emu.debug.debugger import Debugger
from pkvm_emu.debug.flow import Flow
from pkvm_emu.debug.stops import STEP, Action, Resume, Stop

_CALLS = 60
_EVERYWHERE = Action(True, 0, 1 << 64)


def main() -> None:
    system = pkvm_emu.boot(modules=[sample()])

    def calls() -> float:
        start = time.perf_counter()
        for _ in range(_CALLS):
            system.call("pkvm_driver_hyp_hvc", 1, 2)
        return (time.perf_counter() - start) / _CALLS

    plain = min(calls() for _ in range(5))
    debugger = Debugger(system, Flow([]))
    control = debugger.control
    attached = min(calls() for _ in range(5))

    def steps(action: Action) -> float:
        def at_stop(stop: Stop) -> Resume:
            return Resume({}, action)

        control.on_stop = at_stop
        control.interrupt("begin")
        before = control.steps
        seconds = calls() * _CALLS
        return seconds / (control.steps - before)

    stopping = min(steps(STEP) for _ in range(5))
    ranged = min(steps(_EVERYWHERE) for _ in range(5))
    control.detach()
    detached = min(calls() for _ in range(5))
    show("one step with a stop", stopping * 1e6, "us", "< 10")
    show("one step of a range", ranged * 1e6, "us", "< 10")
    show("hypercall from Python, no debugger", plain * 1e6, "us", "none")
    show("the same with a debugger that looks on", attached * 1e6, "us", "none")
    show("the same after it has left", detached * 1e6, "us", "none")


if __name__ == "__main__":
    main()
