"""Which blocks of code ran at EL2, and how many instructions: for costs and for coverage."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.elf.dwarf import SourceLine
from pkvm_emu.errors import InputError
from pkvm_emu.tracing.timeline.functions import functions_of

if TYPE_CHECKING:
    from pkvm_emu.system import System
    from pkvm_emu.tracing.timeline.recorder import Timeline

#: Addresses of EL2; those of the host's kernel have all upper bits set.
_EL2_FIRST, _EL2_LAST = 0x1000, (1 << 55) - 1
_WORD = 4


class BlockListener:
    """Counts instructions, and keeps the blocks, by the engine's hook at the start of each block.

    What a fault, or the end of a CPU's turn, leaves out of a block is not counted; as coverage it is.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        timeline.counts_instructions = True
        timeline.system.machine.engine.on_start = timeline.cut_short
        timeline.system.machine.engine.hook_blocks(self._block, _EL2_FIRST, _EL2_LAST)

    def _block(self, pc: int, size: int) -> None:
        timeline = self._timeline
        if timeline.in_guest(timeline.cpu):
            return
        timeline.count(pc, size // _WORD)
        known = timeline.blocks.get(pc, 0)
        if size > known:
            timeline.blocks[pc] = size


class LineCoverage(NamedTuple):
    """A source line: instructions that belong to it, and how many of them were executed."""

    file: str
    line: int
    executed: int
    total: int


class FunctionCoverage(NamedTuple):
    """A function of a module at EL2.

    Attributes:
        module, name: whose, and which.
        start: hyp VA.
        executed, total: instructions.
        lines: by source line, in the order of the code; empty without debug information.
    """

    module: str
    name: str
    start: int
    executed: int
    total: int
    lines: tuple[LineCoverage, ...]


def coverage(timeline: Timeline) -> list[FunctionCoverage]:
    """What ran of each function of each module's EL2 code, in the order of the code."""
    system = timeline.system
    executed = _executed(timeline)
    found = []
    for module in system.modules.values():
        if not module.token:
            continue
        for function in functions_of(module):
            words = range(function.start, function.start + function.size, _WORD)
            done = bisect_left(executed, function.start + function.size) - bisect_left(executed, function.start)
            lines = _lines(system, words, executed)
            found.append(FunctionCoverage(module.name, function.name, function.start, done, len(words), lines))
    return found


def _executed(timeline: Timeline) -> list[int]:
    """The addresses of all executed instructions, ascending."""
    found: set[int] = set()
    for pc, size in timeline.blocks.items():
        found.update(range(pc, pc + size, _WORD))
    return sorted(found)


def _lines(system: System, words: range, executed: list[int]) -> tuple[LineCoverage, ...]:
    ran = set(executed[bisect_left(executed, words.start) : bisect_left(executed, words.stop)])
    counts: dict[SourceLine, list[int]] = {}
    for pc in words:
        try:
            line = system.symbols.line(pc, 2)
        except InputError:
            return ()
        if line is not None:
            count = counts.setdefault(line, [0, 0])
            count[0] += pc in ran
            count[1] += 1
    return tuple(LineCoverage(line.file, line.line, done, total) for line, (done, total) in counts.items())
