"""What the benchmark scripts share: a built sample module, timing, and how figures are printed."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pkvm_emu.build.builder import build_module

ROOT = Path(__file__).resolve().parent.parent


def sample(generation: str = "16") -> Path:
    """The documented sample module, built for a generation."""
    name = "pkvm_driver_a14" if generation == "14" else "pkvm_driver"
    place = Path(tempfile.mkdtemp(prefix="pkvm-emu-bench-"))
    return build_module(ROOT / "modules" / name, place / "pkvm_driver.ko", generation).path


def median_seconds(action: Callable[[], object], runs: int = 7) -> float:
    """Median wall time of ``action`` over ``runs`` runs, after one that is not counted."""
    action()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def show(what: str, value: float, unit: str, goal: str) -> None:
    """One figure on one line."""
    print(f"{what:<58} {value:10.3f} {unit:<6} (goal {goal})")
