"""Finds CPUs that spin: loops that come back to the same registers and so never end by themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pkvm_emu.machine.core import Core

#: Instructions of a loop, at most, for it to be taken for a spin.
_LONGEST_LOOP = 256
#: LDXR, LDAXR of any size; LDAR, LDLAR of any size; LDAPR; LDR (immediate, unsigned offset), LDUR; CAS and SWP and LD<op> (LSE).
_LOADS = (
    (0x3FE0_0000, 0x0840_0000, True),
    (0x3FE0_0000, 0x08C0_0000, True),
    (0x3FA0_7C00, 0x08A0_7C00, True),
    (0x3F20_0C00, 0x3820_0000, True),
    (0x3FC0_0000, 0x3940_0000, False),
    (0x3FE0_0C00, 0x3840_0000, False),
)
_SIZE_AND_OFFSET = (0x3FC0_0000, 0x3940_0000)


@dataclass(frozen=True, slots=True)
class Spin:
    """A loop that ends only when another CPU writes what it reads.

    Attributes:
        first, last: lowest and highest instruction of it, in words.
        words: what it reads, in words.
    """

    first: str
    last: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        on = f"waits for {' and '.join(self.words)}" if self.words else "runs"
        return f"{on} in the loop {self.first} .. {self.last}"


def find_spin(core: Core, step: Callable[[], bool], is_inside: bool) -> Spin | None:
    """Step the CPU on the engine until its registers are what they were before, within a short loop.

    Args:
        core: runs the CPU.
        step: executes one instruction; False where the CPU did something else than go on (an exception, a service, a return).
        is_inside: the loop has to be the one that the CPU is in now; else it may have to get there first.

    Returns:
        The loop, or None where the registers do not come back.
    """
    engine, el = core.engine, core.el
    frame = engine.batch(*[f"x{n}" for n in range(31)], "sp", "nzcv", "pc")
    start: tuple[int, ...] = ()
    places: list[int] = []
    atomics: dict[int, None] = {}
    plain: dict[int, None] = {}
    for count in range(_LONGEST_LOOP + 1 if is_inside else 2 * _LONGEST_LOOP):
        here = tuple(frame.read())
        if count and here == start:
            names = tuple(core.describe(va, el) for va in sorted(atomics or plain))
            return Spin(core.describe(min(places), el), core.describe(max(places), el), names)
        if count in (0, _LONGEST_LOOP):
            start = here
            places, atomics, plain = [], {}, {}
        pc = here[-1]
        places.append(pc)
        _note_load(core.fetch(pc), here, atomics, plain)
        if not step():
            return None
    return None


def _note_load(word: int | None, registers: tuple[int, ...], atomics: dict[int, None], plain: dict[int, None]) -> None:
    if word is None:
        return
    for mask, value, is_atomic in _LOADS:
        if word & mask == value:
            base = registers[word >> 5 & 31]
            if (mask, value) == _SIZE_AND_OFFSET:
                base += (word >> 10 & 0xFFF) << (word >> 30)
            (atomics if is_atomic else plain)[base] = None
            return
