"""HVC round trips: EL1 -> EL2 vectors -> guest-code dispatch -> module handler -> ERET, and from Python."""

from __future__ import annotations

import time
from pathlib import Path

from common import median_seconds, nop_module, sample, show

import pkvm_emu

_COUNT = 20_000
#: mov x0, x20; mov x1, #1; mov x2, #1; hvc #0; subs x19, x19, #1; b.ne .-20; ret
_LOOP = (0xAA1403E0, 0xD2800021, 0xD2800022, 0xD4000002, 0xF1000673, 0x54FFFF61, 0xD65F03C0)


def round_trip(module: Path, function: str) -> tuple[pkvm_emu.System, float]:
    """Seconds a hypercall takes when guest code at EL1 makes one after the other."""
    system = pkvm_emu.boot(modules=[module])
    number = system.function_id(function)
    kernel, machine = system.kernel, system.machine
    page = kernel.pages.alloc()
    va = kernel.memory.reserve_vmalloc_area(4096)
    kernel.memory.map(va, page, 4096, "rx")
    machine.patch_code(page, b"".join(word.to_bytes(4, "little") for word in _LOOP))

    def loop() -> None:
        machine.engine.write("x19", _COUNT)
        machine.engine.write("x20", number)
        kernel.call(va)

    return system, median_seconds(loop, runs=7) / _COUNT


def main() -> None:
    system, seconds = round_trip(nop_module(), "nop_hvc")
    show("HVC EL1 -> EL2 handler -> EL1, from guest code", seconds * 1e6, "us", "< 6")
    _, seconds = round_trip(sample(), "pkvm_driver_hyp_hvc")
    show("the same with a handler that calls an op", seconds * 1e6, "us", "none")

    number = system.function_id("nop_hvc")
    start = time.perf_counter()
    for _ in range(2_000):
        system.hvc(number)
    show("system.hvc() from Python", (time.perf_counter() - start) / 2_000 * 1e6, "us", "none")


if __name__ == "__main__":
    main()
