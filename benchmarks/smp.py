"""Two CPUs in turns: HVC round trips of both, and what a turn costs."""

from __future__ import annotations

from common import median_seconds, sample, show

import pkvm_emu
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.machine.scheduler import Scheduler

_COUNT = 2_000
_TURNS_OF = 64
#: mov x20, x0; mov x19, x1; mov x0, x20; mov x1, #1; mov x2, #1; hvc #0; subs x19, x19, #1; b.ne .-20; ret
_CALLS = (0xAA0003F4, 0xAA0103F3, 0xAA1403E0, 0xD2800021, 0xD2800022, 0xD4000002, 0xF1000673, 0x54FFFF61, 0xD65F03C0)
#: subs x0, x0, #1; b.ne .-4; ret
_COUNTDOWN = (0xF1000400, 0x54FFFFE1, 0xD65F03C0)


def main() -> None:
    system = pkvm_emu.boot(modules=[sample()], profile=MachineProfile(cpus=2))
    number = system.modules["pkvm_driver"].hypercalls["pkvm_driver_hyp_hvc"]
    kernel, machine = system.kernel, system.machine
    page = kernel.pages.alloc()
    va = kernel.memory.reserve_vmalloc_area(4096)
    kernel.memory.map(va, page, 4096, "rx")
    words = (*_CALLS, *_COUNTDOWN)
    machine.patch_code(page, b"".join(word.to_bytes(4, "little") for word in words))
    countdown = va + 4 * len(_CALLS)

    def calls(cpus: tuple[int, ...]) -> float:
        arguments = (0xC600_0000 | number, _COUNT)
        run = dict.fromkeys(cpus, (va, arguments))
        return median_seconds(lambda: Scheduler(machine, 1, _TURNS_OF).run(run), runs=5) / (_COUNT * len(cpus))

    def turns() -> float:
        per_turn = (1 + _TURNS_OF) / 2
        run = dict.fromkeys((0, 1), (countdown, (50_000,)))
        return median_seconds(lambda: Scheduler(machine, 1, _TURNS_OF).run(run), runs=5) / (2 * 100_000 / per_turn)

    show("HVC EL1 -> EL2 -> EL1, one CPU in turns", calls((0,)) * 1e6, "us", "none")
    show("HVC EL1 -> EL2 -> EL1, two CPUs in turns", calls((0, 1)) * 1e6, "us", "none")
    show("a turn of a CPU, switch included", turns() * 1e6, "us", "none")


if __name__ == "__main__":
    main()
