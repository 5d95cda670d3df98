"""From a module and a placement to final bytes: symbol values, relocations, branch islands."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

from pkvm_emu.elf.elements import (
    MASK64,
    SHN_ABS,
    SHN_COMMON,
    SHN_UNDEF,
    STB_LOCAL,
    STB_WEAK,
    STT_SECTION,
    Relocation,
    RelocationSection,
    Section,
    Symbol,
)
from pkvm_emu.elf.instruction import IMM26, veneer
from pkvm_emu.elf.layout import Layout, Region, VeneerArea
from pkvm_emu.elf.module_file import ModuleFile, UndefinedSymbol
from pkvm_emu.elf.relocation import (
    APPLIERS,
    BRANCH_TYPES,
    R_AARCH64_CALL26,
    RELOCATION_TYPES,
    Check,
    Expression,
    RelocationError,
    RelocationType,
    relocation_name,
    relocation_value,
)
from pkvm_emu.errors import InputError

#: Returns the VA of a symbol that the module does not define, or None when nobody defines it.
Resolver = Callable[[str], int | None]


class Symbolized(NamedTuple):
    """A VA in terms of the module: ``offset`` bytes into ``name``, which takes ``size`` bytes (0: not known)."""

    name: str
    offset: int
    section: str
    size: int


class HypImport(NamedTuple):
    """An EL2 call to a function of another module: the ``bl`` at EL1 VA ``va`` still waits for EL2 addresses.

    ``kernel_va`` is the function's EL1 VA, ``type`` the relocation's. Only android16-6.12 has such calls.
    """

    va: int
    name: str
    kernel_va: int
    type: int


class LinkedImage:
    """The final bytes of a module at its VAs.

    Attributes:
        module, layout: what was linked, and where.
        memory: all bytes from ``layout.base`` on, gaps as zeros.
        symbol_values: VA of every symbol by symbol number; None for an unresolved one.
        unresolved: symbols that nobody defines, used or not; relocations to them are left unapplied.
        hyp_imports: EL2 calls to other modules.
    """

    def __init__(self, module: ModuleFile, layout: Layout) -> None:
        self.module = module
        self.layout = layout
        self.memory = bytearray(layout.size)
        self.symbol_values: list[int | None] = []
        self.unresolved: list[UndefinedSymbol] = []
        self.hyp_imports: list[HypImport] = []
        for index, va in layout.placements.items():
            data = module.sections[index].data
            self.memory[va - layout.base : va - layout.base + len(data)] = data

    def contains(self, va: int, size: int = 1) -> bool:
        """Tell whether ``size`` bytes from ``va`` on lie inside the image."""
        position = va - self.layout.base
        return position >= 0 and position + size <= len(self.memory)

    def read(self, va: int, size: int) -> bytes:
        """Return ``size`` bytes from ``va`` on.

        Raises:
            InputError: the range is not inside the image.
        """
        position = self._position(va, size)
        return bytes(self.memory[position : position + size])

    def write(self, va: int, data: bytes) -> None:
        """Write ``data`` from ``va`` on; errors as for ``read``."""
        position = self._position(va, len(data))
        self.memory[position : position + len(data)] = data

    def read_int(self, va: int, size: int, *, signed: bool = False) -> int:
        """Return the little-endian number of ``size`` bytes at ``va``; errors as for ``read``."""
        return int.from_bytes(self.read(va, size), "little", signed=signed)

    def region_bytes(self, region: Region) -> bytearray:
        """Return a copy of the bytes of one region of the layout."""
        position = region.va - self.layout.base
        return self.memory[position : position + region.size]

    def section_va(self, name: str) -> int | None:
        """Return the VA of the first loaded section called ``name``, or None."""
        section = self.module.section(name)
        return None if section is None else self.layout.placements.get(section.index)

    def section_at(self, va: int, size: int = 1) -> Section | None:
        """Return the section that holds all ``size`` bytes from ``va`` on, or None."""
        starts, sections = self._section_index
        position = bisect_right(starts, va) - 1
        if position < 0:
            return None
        section = sections[position]
        return section if va + size <= starts[position] + section.size else None

    def symbol_va(self, name: str) -> int | None:
        """Return the VA of ``name``: a global definition, else a local one, else what was resolved; None if unknown."""
        return self._values_by_name.get(name)

    def symbolize(self, va: int) -> Symbolized | None:
        """Name ``va`` by the function or object that holds it, else by its section; None outside of all sections."""
        section = self.section_at(va)
        if section is None:
            return None
        offset = va - self.layout.placements[section.index]
        table = self.module.object.symbol_table
        found = table.find(section.index, offset)
        # Behind the end of a function there is another one, which a stripped module has no name for.
        if found is None or 0 < found.symbol.size < found.offset:
            return Symbolized(section.name, offset, section.name, section.size)
        size = table.extent(section.index, found.symbol, section.size)
        return Symbolized(found.symbol.name, found.offset, section.name, size)

    def _position(self, va: int, size: int) -> int:
        if not self.contains(va, size):
            raise InputError(f"{self.module.file_name}: {size} bytes at {va:#x} lie outside of the module")
        return va - self.layout.base

    @cached_property
    def _section_index(self) -> tuple[list[int], list[Section]]:
        placed = sorted((va, index) for index, va in self.layout.placements.items() if self.module.sections[index].size)
        return [va for va, _ in placed], [self.module.sections[index] for _, index in placed]

    @cached_property
    def _values_by_name(self) -> dict[str, int]:
        def rank(symbol: Symbol) -> tuple[bool, bool]:
            return symbol.shndx == SHN_UNDEF, symbol.bind == STB_LOCAL

        values: dict[str, int] = {}
        for symbol in sorted(self.module.symbols[1:], key=rank):
            value = self.symbol_values[symbol.number]
            if symbol.name and symbol.type != STT_SECTION and value is not None:
                values.setdefault(symbol.name, value)
        return values


def link(module: ModuleFile, layout: Layout, resolve: Resolver) -> LinkedImage:
    """Link ``module`` at ``layout``.

    Args:
        module: the module to link.
        layout: its placement.
        resolve: asked once for each undefined symbol; a weak one that nobody defines becomes 0.

    Returns:
        The image. Symbols that nobody defines are listed in ``unresolved``: the kernel fails the load with -ENOENT.

    Raises:
        RelocationError: a relocation is unknown, out of range, or refers to something that is not loaded.
        InputError: the module has common symbols.
    """
    return _Linker(module, layout, resolve).link()


class _Linker:
    def __init__(self, module: ModuleFile, layout: Layout, resolve: Resolver) -> None:
        self.module = module
        self.layout = layout
        self.resolve = resolve
        self.image = LinkedImage(module, layout)
        self.used_veneers: dict[str, int] = {}
        self.veneer_vas: dict[tuple[str, int], int] = {}

    def link(self) -> LinkedImage:
        self.image.symbol_values = [self._symbol_value(symbol) for symbol in self.module.symbols]
        self.image.unresolved = self._unresolved_symbols()
        for part in self.module.relocation_sections:
            self._relocate(part)
        return self.image

    def _unresolved_symbols(self) -> list[UndefinedSymbol]:
        values = self.image.symbol_values
        names = {part.name for part in self.module.symbols if part.shndx == SHN_UNDEF and values[part.number] is None}
        return [part for part in self.module.undefined_symbols() if part.name in names] if names else []

    def _symbol_value(self, symbol: Symbol) -> int | None:
        shndx = symbol.shndx
        if shndx == SHN_UNDEF:
            if not symbol.name:
                return 0
            value = self.resolve(symbol.name)
            return 0 if value is None and symbol.bind == STB_WEAK else value
        if shndx == SHN_ABS:
            return symbol.value
        if shndx == SHN_COMMON:
            raise InputError(
                f"{self.module.file_name}: {symbol.name} is a common symbol; compile the module with -fno-common"
            )
        va = self.layout.placements.get(shndx)
        return None if va is None else (va + symbol.value) & MASK64

    def _relocate(self, part: RelocationSection) -> None:
        target = self.module.sections[part.target]
        if target.is_nobits and part.entries:
            raise self._error(f"{part.name} patches {target.name}, which has no bytes in the file")
        start = self.layout.placements[part.target]
        base = self.layout.base
        memory = self.image.memory
        values = self.image.symbol_values
        symbols = self.module.symbols
        is_hyp_text = target.name == ".hyp.text"
        for entry in part.entries:
            offset, kind, symbol, addend = entry
            apply = APPLIERS.get(kind)
            if apply is None or offset + RELOCATION_TYPES[kind].size > target.size:
                raise self._unusable(target, entry)
            symbol_value = values[symbol]
            if symbol_value is None:
                self._check_skippable(target, entry)
                continue
            place = start + offset
            value = (symbol_value + addend) & MASK64
            if is_hyp_text and kind in BRANCH_TYPES and symbols[symbol].shndx == SHN_UNDEF:
                self._import_hyp_symbol(place, symbols[symbol].name, value, kind)
                continue
            fits = apply(memory, place - base, place, value)
            if not fits and not (kind in BRANCH_TYPES and self._branch_by_veneer(place, value)):
                raise self._out_of_range(target, entry, place, value)

    def _import_hyp_symbol(self, place: int, name: str, value: int, kind: int) -> None:
        self.image.hyp_imports.append(HypImport(place, name, value, kind))
        before = self.image.read(place, 4)
        # An EL1 veneer would be no help at EL2, where the branch is patched again; keep the word until then.
        if not APPLIERS[R_AARCH64_CALL26](self.image.memory, place - self.layout.base, place, value):
            self.image.write(place, before)

    def _branch_by_veneer(self, place: int, target: int) -> bool:
        if target & 3:
            return False
        for area in sorted(self.layout.veneers, key=lambda area: abs(area.va - place)):
            va = self._veneer(area, target)
            if va is None:
                continue
            word = self.image.read_int(place, 4)
            distance = va - place
            if not -(1 << 27) <= distance < 1 << 27:
                continue
            self.image.write(place, IMM26.encode(word, distance >> 2).to_bytes(4, "little"))
            return True
        return False

    def _veneer(self, area: VeneerArea, target: int) -> int | None:
        known = self.veneer_vas.get((area.region, target))
        if known is not None:
            return known
        used = self.used_veneers.get(area.region, 0)
        words = veneer(area.va + used, target)
        if used + 4 * len(words) > area.size:
            return None
        self.used_veneers[area.region] = used + 4 * len(words)
        self.veneer_vas[area.region, target] = area.va + used
        self.image.write(area.va + used, b"".join(word.to_bytes(4, "little") for word in words))
        return area.va + used

    def _check_skippable(self, target: Section, entry: Relocation) -> None:
        symbol = self.module.symbols[entry.symbol]
        if symbol.shndx != SHN_UNDEF:
            home = self.module.sections[symbol.shndx].name
            place = self.module.object.describe(target.index, entry.offset)
            raise self._error(f"{place} refers to {symbol.name or home} in section {home}, which is not loaded")

    def _unusable(self, target: Section, entry: Relocation) -> RelocationError:
        place = self.module.object.describe(target.index, entry.offset)
        name = relocation_name(entry.type)
        if entry.type not in RELOCATION_TYPES:
            return self._error(f"unsupported relocation type {entry.type} ({name}) in section {target.name} at {place}")
        return self._error(f"{name} at {place} reaches beyond the end of {target.name} ({target.size:#x} bytes)")

    def _out_of_range(self, target: Section, entry: Relocation, place: int, value: int) -> RelocationError:
        row = RELOCATION_TYPES[entry.type]
        symbol = self.module.symbols[entry.symbol]
        where = self.module.object.describe(target.index, entry.offset)
        addend = f"{'-' if entry.addend < 0 else '+'}{abs(entry.addend):#x}" if entry.addend else ""
        return self._error(f"{row.name} at {where}: target {symbol.name}{addend} is {_distance(row, place, value)}")

    def _error(self, message: str) -> RelocationError:
        return RelocationError(f"{self.module.file_name}: {message}")


def _distance(row: RelocationType, place: int, value: int) -> str:
    result = relocation_value(row, place, value)
    if row.expression is Expression.ABS:
        return f"at {value:#x}, which does not fit into {row.reach}"
    if row.check is Check.MOVW:
        return f"{result:#x} away, which does not fit into {row.reach}"
    return f"{result:#x} away, beyond {row.reach}"
