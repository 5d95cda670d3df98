"""Where a module's sections lie in memory.

Groups are those of the kernel's module loader: core text, read-only data, data that is read-only after init, data,
then the same for init; each starts on its own page. The EL2 sections form one block of whole pages in file order, so
that one EL2 mapping with a constant offset serves all of them (pages of the block are donated to the hypervisor;
nothing else may share them).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from pkvm_emu.elf.elements import MEMORY_LIMIT, PAGE_SIZE, Section, align_up
from pkvm_emu.elf.instruction import VENEER_SIZE
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.elf.relocation import BRANCH_TYPES
from pkvm_emu.errors import InputError

_FAR_LAYOUT = 100 << 20
_RO_AFTER_INIT = (".data..ro_after_init", ".ro_after_init", "__jump_table")
_INIT_METADATA = (".modinfo", "__versions", "__version_ext_crcs", "__version_ext_names")


class _Group(IntEnum):
    TEXT = 0
    RODATA = 1
    RO_AFTER_INIT = 2
    DATA = 3
    HYP = 4
    INIT_TEXT = 5
    INIT_RODATA = 6
    INIT_DATA = 7


_NAMES = {
    _Group.TEXT: ("text", "rx"),
    _Group.RODATA: ("rodata", "ro"),
    _Group.RO_AFTER_INIT: ("ro_after_init", "ro"),
    _Group.DATA: ("data", "rw"),
    _Group.INIT_TEXT: ("init.text", "rx"),
    _Group.INIT_RODATA: ("init.rodata", "ro"),
    _Group.INIT_DATA: ("init.data", "rw"),
}


@dataclass(frozen=True, slots=True)
class Region:
    """Whole pages with one protection at EL1: ``prot`` is "rx", "ro" or "rw"; ``sections`` are section numbers.

    The region "ro_after_init" has to be writable until the module's init function has returned. Regions of the EL2
    block carry the name of their one section (".hyp.text", ...); their protection at EL2 is in
    ``HYP_MAPPED_SECTIONS``.
    """

    name: str
    va: int
    size: int
    prot: str
    sections: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class VeneerArea:
    """Room for branch islands: ``size`` bytes at ``va``, for code of the region called ``region``."""

    region: str
    va: int
    size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The placement of one module.

    Attributes:
        base: VA of the first byte, page aligned.
        size: bytes in total, whole pages.
        placements: VA of every section that takes memory, by section number.
        regions: the pages in ascending order, without gaps inside one.
        hyp_base: VA of the lowest EL2 section; 0 without EL2 code.
        hyp_size: bytes of the EL2 block, whole pages.
        veneers: room for far calls.
    """

    base: int
    size: int
    placements: dict[int, int]
    regions: tuple[Region, ...]
    hyp_base: int
    hyp_size: int
    veneers: tuple[VeneerArea, ...]

    @classmethod
    def assign(cls, module: ModuleFile, base: int) -> Layout:
        """Lay ``module`` out from VA ``base``, which has to be page aligned.

        Raises:
            InputError: the module takes more memory than one module may.
        """
        if base % PAGE_SIZE:
            raise ValueError(f"module base {base:#x} is not page aligned")
        return _Placer(module, base).place()

    def region(self, name: str) -> Region | None:
        """Return the region called ``name``, or None when the module has nothing in it."""
        return next((region for region in self.regions if region.name == name), None)

    def region_at(self, va: int) -> Region | None:
        """Return the region that holds ``va``, or None."""
        return next((region for region in self.regions if region.va <= va < region.va + region.size), None)


class _Placer:
    def __init__(self, module: ModuleFile, base: int) -> None:
        self.module = module
        self.base = base
        self.cursor = base
        self.placements: dict[int, int] = {}
        self.regions: list[Region] = []
        self.veneers: list[VeneerArea] = []

    def place(self) -> Layout:
        members: dict[_Group, list[Section]] = {group: [] for group in _Group}
        hyp = {section.index for section in self.module.hyp_mapped_sections}
        for section in self.module.sections:
            if section.is_alloc:
                members[_Group.HYP if section.index in hyp else _group_of(section)].append(section)
        hyp_base = hyp_end = 0
        for group in _Group:
            if group is _Group.HYP:
                hyp_base, hyp_end = self._place_hyp_block(members[group])
            else:
                self._place_group(group, members[group])
        return Layout(
            self.base, self.cursor - self.base, self.placements, tuple(self.regions),
            hyp_base, hyp_end - hyp_base, tuple(self.veneers),
        )  # fmt: skip

    def _place_group(self, group: _Group, sections: list[Section]) -> None:
        start = self.cursor
        for section in sections:
            self._place_section(section, section.align)
        name, prot = _NAMES[group]
        if group in (_Group.TEXT, _Group.INIT_TEXT):
            self._reserve_veneers(name, sections)
        self._finish_region(name, start, prot, sections)

    def _place_hyp_block(self, sections: list[Section]) -> tuple[int, int]:
        if not sections:
            return 0, 0
        for section in sections:
            start = self.cursor = align_up(self.cursor, max(section.align, PAGE_SIZE))
            self._place_section(section, PAGE_SIZE)
            prot = "rx" if section.is_code else "rw" if section.is_writable else "ro"
            self._finish_region(section.name, start, prot, [section])
        return self.placements[sections[0].index], self.cursor

    def _place_section(self, section: Section, alignment: int) -> None:
        self.cursor = align_up(self.cursor, alignment)
        self.placements[section.index] = self.cursor
        self.cursor += section.size
        self._check_size()

    def _finish_region(self, name: str, start: int, prot: str, sections: list[Section]) -> None:
        self.cursor = align_up(self.cursor, PAGE_SIZE)
        self._check_size()
        if self.cursor > start:
            numbers = tuple(section.index for section in sections)
            self.regions.append(Region(name, start, self.cursor - start, prot, numbers))

    def _check_size(self) -> None:
        if self.cursor - self.base > MEMORY_LIMIT:
            raise InputError(
                f"{self.module.file_name}: takes more than {MEMORY_LIMIT >> 20} MiB of memory, the limit for one module"
            )

    def _reserve_veneers(self, name: str, sections: list[Section]) -> None:
        targets = self._far_call_candidates({section.index for section in sections})
        if targets:
            self.cursor = align_up(self.cursor, 16)
            self.veneers.append(VeneerArea(name, self.cursor, targets * VENEER_SIZE))
            self.cursor += targets * VENEER_SIZE

    def _far_call_candidates(self, sections: set[int]) -> int:
        """Count the distinct branch targets that may turn out to be beyond ±128 MiB.

        Those are the undefined symbols, and in a very large module also other sections.
        """
        symbols = self.module.symbols
        is_far = sum(section.size for section in self.module.sections if section.is_alloc) > _FAR_LAYOUT
        targets = set()
        for part in self.module.relocation_sections:
            if part.target not in sections:
                continue
            for entry in part.entries:
                if entry.type in BRANCH_TYPES:
                    home = symbols[entry.symbol].shndx
                    if home == 0 or (is_far and home != part.target):
                        targets.add((entry.symbol, entry.addend))
        return len(targets)


def _group_of(section: Section) -> _Group:
    """Sort a section the way the loader does: by flags, with ``.init`` in front of the name deciding about init."""
    if section.name in _INIT_METADATA:
        return _Group.INIT_RODATA
    is_init = section.name.startswith(".init")
    if section.is_code:
        return _Group.INIT_TEXT if is_init else _Group.TEXT
    if section.name.startswith(_RO_AFTER_INIT):
        return _Group.RO_AFTER_INIT
    if section.is_writable:
        return _Group.INIT_DATA if is_init else _Group.DATA
    return _Group.INIT_RODATA if is_init else _Group.RODATA
