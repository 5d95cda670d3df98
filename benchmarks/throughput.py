"""Plain instruction throughput of the machine against bare Unicorn (MMU off, nothing hooked)."""

from __future__ import annotations

import statistics
import time

import unicorn
from common import sample
from unicorn import arm64_const as arm64

import pkvm_emu

_ITERATIONS = 40_000_000
_INSTRUCTIONS = 4
#: add x1, x1, x2; eor x3, x3, x1; subs x0, x0, #1; b.ne .-12
_LOOP = (0x8B020021, 0xCA010063, 0xF1000400, 0x54FFFFA1)


def bare(code: bytes) -> float:
    """Seconds for the loop on an engine of its own."""
    engine = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
    engine.mem_map(0x1000, 0x1000)
    engine.mem_write(0x1000, code)
    engine.reg_write(arm64.UC_ARM64_REG_X0, _ITERATIONS)
    start = time.perf_counter()
    engine.emu_start(0x1000, 0x1000 + len(code))
    return time.perf_counter() - start


def main() -> None:
    code = b"".join(word.to_bytes(4, "little") for word in _LOOP)
    system = pkvm_emu.boot(modules=[sample()])
    kernel, machine = system.kernel, system.machine
    page = kernel.pages.alloc()
    va = kernel.memory.reserve_vmalloc_area(4096)
    # The same page among the modules, whose code can be halted.
    module_va = kernel.memory.layout.modules_vaddr + (16 << 20)
    for where in (va, module_va):
        kernel.memory.map(where, page, 4096, "rx")
    machine.patch_code(page, code + 0xD65F03C0.to_bytes(4, "little"))

    def emulated(where: int) -> float:
        start = time.perf_counter()
        kernel.call(where, _ITERATIONS)
        return time.perf_counter() - start

    def compare(what: str, where: int, goal: str) -> None:
        ratios, rates = [], []
        for _ in range(5):
            ours, theirs = emulated(where), bare(code)
            ratios.append(theirs / ours)
            rates.append(_ITERATIONS * _INSTRUCTIONS / ours / 1e6)
        print(f"{what:<58} {statistics.median(rates):10.0f} MIPS")
        print(f"{'ratio to bare Unicorn':<58} {statistics.median(ratios):10.3f}        (goal {goal})")

    compare("instruction throughput at EL1, both stages on", va, "> 0.9")
    compare("the same in the code of modules", module_va, "none")


if __name__ == "__main__":
    main()
