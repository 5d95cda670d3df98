"""From addresses to names: the nearest preceding function or object of the same section."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.elf.elements import (
    STB_LOCAL,
    STT_FUNC,
    STT_NOTYPE,
    STT_OBJECT,
    Symbol,
    is_mapping_symbol,
)

if TYPE_CHECKING:
    from pkvm_emu.elf.link import LinkedImage


class FoundSymbol(NamedTuple):
    """A symbol and the distance in bytes from its start."""

    symbol: Symbol
    offset: int


class SymbolTable:
    """Symbols by section and offset.

    Functions and objects are preferred; labels without a type count only where no function or object starts at the same
    place. Mapping symbols (``$x``, ``$d`` and their ``__kvm_nvhe_`` forms), file and section symbols are never answers.
    """

    def __init__(self, symbols: Iterable[Symbol]) -> None:
        best: dict[tuple[int, int], tuple[tuple[bool, bool, int], Symbol]] = {}
        for symbol in symbols:
            if not symbol.in_section or not _is_answer(symbol):
                continue
            rank = (symbol.type == STT_NOTYPE, symbol.bind == STB_LOCAL, symbol.number)
            place = (symbol.shndx, symbol.value)
            known = best.get(place)
            if known is None or rank < known[0]:
                best[place] = (rank, symbol)
        self._offsets: dict[int, list[int]] = {}
        self._symbols: dict[int, list[Symbol]] = {}
        for (section, offset), (_, symbol) in sorted(best.items()):
            self._offsets.setdefault(section, []).append(offset)
            self._symbols.setdefault(section, []).append(symbol)

    def find(self, section: int, offset: int) -> FoundSymbol | None:
        """Return the symbol at or before byte ``offset`` of section number ``section``, or None."""
        offsets = self._offsets.get(section)
        if not offsets:
            return None
        position = bisect_right(offsets, offset) - 1
        if position < 0:
            return None
        symbol = self._symbols[section][position]
        return FoundSymbol(symbol, offset - symbol.value)

    def extent(self, section: int, symbol: Symbol, section_size: int) -> int:
        """Return the size of ``symbol`` in bytes: its own, or the distance to the next symbol or section end."""
        if symbol.size:
            return symbol.size
        offsets = self._offsets.get(section, [])
        position = bisect_right(offsets, symbol.value)
        end = offsets[position] if position < len(offsets) else section_size
        return max(end - symbol.value, 0)


class Symboliser:
    """Prints addresses of one linked image the way the kernel does."""

    def __init__(self, image: LinkedImage, module_name: str | None = None) -> None:
        self._image = image
        self._module = module_name if module_name is not None else image.module.name

    def format_address(self, va: int) -> str | None:
        """Return ``init_module+0x10/0x40 [module]`` for a VA of the image, or None outside of it.

        A place before the first symbol of its section is given as ``.text+0x10 [module]``.
        """
        found = self._image.symbolize(va)
        if found is None:
            return None
        size = f"/{found.size:#x}" if found.size else ""
        return f"{found.name}+{found.offset:#x}{size} [{self._module}]"


def _is_answer(symbol: Symbol) -> bool:
    if symbol.type in (STT_FUNC, STT_OBJECT):
        return True
    return symbol.type == STT_NOTYPE and bool(symbol.name) and not is_mapping_symbol(symbol.name)
