"""The module's code cut into functions and basic blocks.

Function starts are those of the symbol table and the targets of calls. Inside a function blocks are found by following branches
from its entry; what cannot be reached that way (targets of jump tables, code behind calls that do not return) is kept as *orphans*:
an indirect jump of the function may lead to each of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pkvm_emu.elf.elements import NVHE_PREFIX, Section, is_mapping_symbol
from pkvm_emu.inspect import decode as d
from pkvm_emu.inspect.program import Program

_BEQ_OVER_ONE = 0x54000040

#: Bytes of code that an inspection looks at, both levels together.
CODE_LIMIT = 1 << 20


@dataclass(slots=True)
class Block:
    """Consecutive instructions: addresses from ``start``, and the addresses of the blocks that may follow.

    ``jumps_to_orphans``: it ends in an indirect jump.
    """

    start: int
    instructions: tuple[d.Insn, ...]
    successors: tuple[int, ...]
    jumps_to_orphans: bool = False


@dataclass(slots=True)
class Function:
    """One function: its blocks by address, ``end`` the first address behind it.

    ``kcfi_types`` maps the address of an indirect call to the type id that it checks.
    """

    start: int
    end: int
    is_el2: bool
    blocks: dict[int, Block] = field(default_factory=dict)
    orphans: tuple[int, ...] = ()
    kcfi_types: dict[int, int] = field(default_factory=dict)


class CodeMap:
    """All functions of a module, by address.

    ``sections`` are the code sections looked at: EL2 first, then of EL1 as much as fits into :data:`CODE_LIMIT`;
    ``left_out`` names the others.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self.sections: list[Section] = []
        self.left_out: list[str] = []
        room = CODE_LIMIT
        for section in sorted(program.code_sections, key=lambda section: not program.is_el2(section)):
            if section.size <= room:
                room -= section.size
                self.sections.append(section)
            else:
                self.left_out.append(section.name)
        taken = {section.index for section in self.sections}
        self._words = {section.index: program.words(section) for section in self.sections}
        self._data = {section.index: _data_ranges(program, section) for section in self.sections}
        self.functions: dict[int, Function] = {}
        self._starts: list[int] = []
        starts = {
            va: size
            for va, size in program.function_starts.items()
            if (home := program.image.section_at(va)) is not None and home.index in taken
        }
        for target in self._call_targets():
            starts.setdefault(target, 0)
        self._starts = sorted(starts)
        self._known = frozenset(starts)
        for start, size in sorted(starts.items()):
            self._add(start, size)

    def find(self, va: int) -> Function | None:
        """The function that ``va`` lies in, or None."""
        position = bisect_right(self._starts, va) - 1
        if position < 0:
            return None
        function = self.functions.get(self._starts[position])
        return function if function is not None and va < function.end else None

    def instructions(self, section: Section) -> Iterator[tuple[int, int]]:
        """(address, word) of everything in a code section that is not marked as data."""
        base = self._program.va_of(section)
        data = self._data[section.index]
        for index, word in enumerate(self._words[section.index]):
            if word and not _inside(data, 4 * index):
                yield base + 4 * index, word

    def _call_targets(self) -> Iterator[int]:
        for section in self.sections:
            base, end = self._program.va_of(section), self._program.va_of(section) + (section.size & ~3)
            for va, word in self.instructions(section):
                if word & 0xFC000000 == 0x94000000:
                    target = va + d.decode(word)[1]
                    if base <= target < end:
                        yield target

    def _add(self, start: int, size: int) -> None:
        section = self._program.image.section_at(start)
        if section is None:
            return
        base = self._program.va_of(section)
        position = bisect_right(self._starts, start)
        end = base + (section.size & ~3)
        if position < len(self._starts):
            end = min(end, self._starts[position])
        if size:
            end = min(end, start + (size & ~3))
        if end <= start:
            return
        function = Function(start, end, self._program.is_el2(section))
        words = self._words[section.index][(start - base) // 4 : (end - base) // 4]
        _Builder(function, words, self._program, self._data[section.index], base).build()
        self.functions[start] = function


class _Builder:
    """Builds the blocks of one function."""

    def __init__(
        self, function: Function, words: tuple[int, ...], program: Program, data: list[tuple[int, int]], base: int
    ) -> None:
        self.function = function
        self.words = words
        self.data = data
        self.section_base = base
        self.instructions = [d.decode(word) for word in words]
        self.edges = program.extra_edges
        self._drop_kcfi_checks()

    def _drop_kcfi_checks(self) -> None:
        """Take the branch and the BRK of kCFI checks out: they would only split blocks."""
        for index, instruction in enumerate(self.instructions):
            if instruction[0] == d.BRK and d.is_kcfi_brk(instruction):
                type_id = d.kcfi_type_before(self.words, index)
                if type_id is None or self.words[index - 1] != _BEQ_OVER_ONE:
                    continue
                self.instructions[index] = self.instructions[index - 1] = (d.NOP,)
                self.function.kcfi_types[self.function.start + 4 * (index + 1)] = type_id

    def build(self) -> None:
        function, count = self.function, len(self.instructions)
        leaders = {0}
        for index, instruction in enumerate(self.instructions):
            leaders.update(self._targets(index))
            if instruction[0] in d.ENDS and index + 1 < count:
                leaders.add(index + 1)
            if function.start + 4 * index in self.edges:
                leaders.update(target for target in (index + 1,) if target < count)
        ordered = sorted(leaders)
        for position, first in enumerate(ordered):
            stop = ordered[position + 1] if position + 1 < len(ordered) else count
            if not _inside(self.data, function.start + 4 * first - self.section_base):
                self._block(first, stop)
        self._find_orphans()

    def _targets(self, index: int) -> list[int]:
        operation = self.instructions[index]
        targets = []
        if operation[0] in (d.JUMP, d.BRANCH):
            targets.append(index + operation[1] // 4)
        start = self.function.start
        targets += [(va - start) // 4 for va in self.edges.get(start + 4 * index, ())]
        return [target for target in targets if 0 <= target < len(self.instructions)]

    def _block(self, first: int, stop: int) -> None:
        start = self.function.start
        last = self.instructions[stop - 1]
        following = self._targets(stop - 1)
        if last[0] not in d.ENDS or last[0] == d.BRANCH:
            following.append(stop)
        successors = tuple(dict.fromkeys(start + 4 * index for index in following if index < len(self.instructions)))
        self.function.blocks[start + 4 * first] = Block(
            start + 4 * first, tuple(self.instructions[first:stop]), successors, last[0] == d.BRREG
        )

    def _find_orphans(self) -> None:
        blocks = self.function.blocks
        found: list[int] = []
        seen = _reachable(blocks, [self.function.start])
        for va in sorted(blocks):
            if va not in seen:
                found.append(va)
                seen |= _reachable(blocks, [va])
        self.function.orphans = tuple(found)


def _reachable(blocks: dict[int, Block], start: Iterable[int]) -> set[int]:
    seen: set[int] = set()
    pending = list(start)
    while pending:
        va = pending.pop()
        if va in seen or va not in blocks:
            continue
        seen.add(va)
        pending.extend(blocks[va].successors)
    return seen


def _data_ranges(program: Program, section: Section) -> list[tuple[int, int]]:
    """Byte ranges that mapping symbols call data (literals, jump tables, kCFI ids), ascending."""
    base = program.va_of(section)
    marks = [(va - base, False) for va in program.function_starts if base <= va < base + section.size]
    for symbol in program.file.symbols:
        if symbol.shndx == section.index and is_mapping_symbol(symbol.name):
            marks.append((symbol.value, symbol.name.removeprefix(NVHE_PREFIX)[1] == "d"))
    marks.sort(key=lambda mark: (mark[0], not mark[1]))
    ranges = []
    for position, (value, is_data) in enumerate(marks):
        end = marks[position + 1][0] if position + 1 < len(marks) else section.size
        if is_data and end > value:
            ranges.append((value, end))
    return ranges


def _inside(ranges: list[tuple[int, int]], offset: int) -> bool:
    position = bisect_right(ranges, (offset, 1 << 63)) - 1
    return position >= 0 and ranges[position][0] <= offset < ranges[position][1]
