"""Restoring a snapshot of the booted system, Python-side state included."""

from __future__ import annotations

import statistics
import time

from common import sample, show

import pkvm_emu


def main() -> None:
    system = pkvm_emu.boot(modules=[sample()])
    number = system.modules["pkvm_driver"].hypercalls["pkvm_driver_hyp_hvc"]
    start = time.perf_counter()
    snapshot = system.snapshot()
    show("first snapshot of the booted system", (time.perf_counter() - start) * 1e3, "ms", "none")
    first = system.hvc(number, 1, 2)
    for what, change in (
        ("restore after one hypercall", lambda: system.hvc(number, 1, 2)),
        ("restore after a donation", lambda: system.hyp.ownership.host_donate_hyp(0x50000, 1)),
    ):
        times = []
        for _ in range(300):
            change()
            start = time.perf_counter()
            system.restore(snapshot)
            times.append(time.perf_counter() - start)
        show(what, statistics.median(times) * 1e6, "us", "< 15")
    assert system.hvc(number, 1, 2) == first


if __name__ == "__main__":
    main()
