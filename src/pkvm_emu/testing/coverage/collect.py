"""Collecting: the engine tells of every block of module code that begins to run."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from pkvm_emu.elf.dwarf import SourceLines
from pkvm_emu.elf.elements import NVHE_PREFIX, STT_FUNC
from pkvm_emu.errors import InputError
from pkvm_emu.hyp import layout as hyp_layout
from pkvm_emu.testing.coverage.model import WORD, Coverage, Function, Half, LineRow, ModuleCoverage

if TYPE_CHECKING:
    from pkvm_emu.elf.elements import Section
    from pkvm_emu.kernel.modules import LoadedModule
    from pkvm_emu.system import System

_EL2_SIZE = 256 << 20
_EXECUTES = 4


class Collector:
    """The blocks of one system. They are no part of its state: a restored system has run them all the same.

    Args:
        system: one whose modules are not loaded yet.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._blocks: dict[int, list[int]] = {}
        addresses = system.kernel.memory.layout
        engine = system.machine.engine
        engine.hook_blocks(self._block, addresses.modules_vaddr, addresses.modules_end - 1)
        engine.hook_blocks(self._block, hyp_layout.FIRST_MODULE_VA, hyp_layout.FIRST_MODULE_VA + _EL2_SIZE - 1)

    def _block(self, pc: int, size: int) -> None:
        block = self._blocks.get(pc)
        if block is None:
            self._blocks[pc] = [size, 1]
        else:
            block[1] += 1
            if size > block[0]:
                block[0] = size

    def take(self) -> Coverage:
        """What ran since the last call of this."""
        found = Coverage()
        if not self._blocks:
            return found
        for module in self._system.modules.values():
            covered = _describe(module)
            found.modules[covered.digest] = covered
        for pc, (size, count) in self._blocks.items():
            for covered in found.modules.values():
                for half in covered.halves.values():
                    if half.base <= pc < half.base + half.size:
                        half.add(pc - half.base, size, count)
        self._blocks.clear()
        return found


_known: dict[int, tuple[LoadedModule, ModuleCoverage]] = {}


def _describe(module: LoadedModule) -> ModuleCoverage:
    """A module's functions and lines; nothing executed yet. They are read once for each loaded module."""
    known = _known.get(id(module))
    if known is None or known[0] is not module or set(known[1].halves) != _levels(module):
        _known[id(module)] = known = (module, _read(module))
    template = known[1]
    halves = {el: Half(half.base, half.size, half.functions, half.rows) for el, half in template.halves.items()}
    return ModuleCoverage(template.name, template.file, template.digest, halves)


def _levels(module: LoadedModule) -> set[int]:
    return {1, 2} if module.token else {1}


def _read(module: LoadedModule) -> ModuleCoverage:
    code = [section for section in module.file.sections if section.flags & _EXECUTES and section.size]
    digest = hashlib.sha256(b"".join(section.data for section in code)).hexdigest()[:16]
    covered = ModuleCoverage(module.name, module.file.file_name, digest)
    lines = SourceLines(module.file)
    place = module.layout
    covered.halves[1] = Half(place.base, place.size)
    if module.token:
        covered.halves[2] = Half(module.token, place.hyp_size)
    for section in code:
        va = place.placements.get(section.index)
        if va is None:
            continue
        is_el2 = section.name == ".hyp.text"
        half = covered.halves.get(2 if is_el2 else 1)
        if half is None:
            continue
        offset = va - (place.hyp_base if is_el2 else place.base)
        half.functions += _functions(module, section, offset)
        half.rows += _rows(lines, section, offset)
    for half in covered.halves.values():
        half.functions.sort(key=lambda function: function.offset)
        half.rows.sort(key=lambda row: row.offset)
    return covered


def _functions(module: LoadedModule, section: Section, offset: int) -> list[Function]:
    starts: dict[int, tuple[str, int]] = {}
    for symbol in module.file.symbols:
        if symbol.shndx == section.index and symbol.type == STT_FUNC and symbol.name:
            starts.setdefault(symbol.value, (symbol.name.removeprefix(NVHE_PREFIX), symbol.size))
    ordered = sorted(starts)
    ends = [*ordered[1:], section.size]
    return [
        Function(starts[value][0], offset + value, starts[value][1] or end - value)
        for value, end in zip(ordered, ends, strict=False)
    ]


def _rows(lines: SourceLines, section: Section, offset: int) -> list[LineRow]:
    rows: list[LineRow] = []
    for place in range(0, section.size, WORD):
        try:
            found = lines.lookup(section.index, place)
        except InputError:
            return []
        row = LineRow(offset + place, found.file, found.line) if found is not None else LineRow(offset + place, "", 0)
        if (not rows and row.file) or (rows and rows[-1][1:] != row[1:]):
            rows.append(row)
    return rows
