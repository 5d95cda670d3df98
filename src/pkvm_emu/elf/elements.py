"""The parts an ELF relocatable object is made of, and the numbers that name them.

Plain records without behaviour beyond reading their own flags, so that objects read from a file and objects put
together in memory (``combine``) are the same to every later stage. Source of the numbers: the ELF gABI and the
AArch64 ELF psABI.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

SHT_PROGBITS = 1
SHT_SYMTAB = 2
SHT_STRTAB = 3
SHT_RELA = 4
SHT_NOTE = 7
SHT_NOBITS = 8
SHT_REL = 9

SHF_WRITE = 1
SHF_ALLOC = 2
SHF_EXECINSTR = 4

SHN_UNDEF = 0
SHN_LORESERVE = 0xFF00
SHN_ABS = 0xFFF1
SHN_COMMON = 0xFFF2

STB_LOCAL = 0
STB_GLOBAL = 1
STB_WEAK = 2

STT_NOTYPE = 0
STT_OBJECT = 1
STT_FUNC = 2
STT_SECTION = 3
STT_FILE = 4

PAGE_SIZE = 4096
MASK64 = 0xFFFF_FFFF_FFFF_FFFF

#: The most memory one module may ask for, in bytes, NOBITS sections included.
MEMORY_LIMIT = 256 << 20

#: The prefix that the build gives to every symbol of the EL2 half.
NVHE_PREFIX = "__kvm_nvhe_"


class Symbol(NamedTuple):
    """One symbol table entry; a section symbol carries the name of its section."""

    number: int
    name: str
    value: int
    size: int
    bind: int
    type: int
    shndx: int

    @property
    def is_defined(self) -> bool:
        """True when the symbol lies in a section or is absolute."""
        return self.shndx != SHN_UNDEF

    @property
    def in_section(self) -> bool:
        """True when ``value`` is an offset in section ``shndx``."""
        return SHN_UNDEF < self.shndx < SHN_LORESERVE


class Relocation(NamedTuple):
    """One RELA entry: ``offset`` in bytes inside the target section, ``symbol`` an index into the symbol table."""

    offset: int
    type: int
    symbol: int
    addend: int


@dataclass(frozen=True, slots=True)
class Section:
    """One section; ``data`` is empty for NOBITS, ``size`` and ``align`` are in bytes.

    ``sh_addr`` is not kept: GNU ld leaves meaningless values in it.
    """

    index: int
    name: str
    type: int
    flags: int
    align: int
    size: int
    entsize: int
    link: int
    info: int
    data: bytes

    @property
    def is_alloc(self) -> bool:
        """True when the section takes memory in the loaded module."""
        return bool(self.flags & SHF_ALLOC)

    @property
    def is_writable(self) -> bool:
        """True when SHF_WRITE is set."""
        return bool(self.flags & SHF_WRITE)

    @property
    def is_code(self) -> bool:
        """True when SHF_EXECINSTR is set."""
        return bool(self.flags & SHF_EXECINSTR)

    @property
    def is_nobits(self) -> bool:
        """True when the section has no bytes in the file and starts as zeros."""
        return self.type == SHT_NOBITS


@dataclass(frozen=True, slots=True)
class RelocationSection:
    """The relocations of one loaded section. ``target`` comes from sh_info: two sections may share one name."""

    index: int
    name: str
    target: int
    entries: list[Relocation]


def is_mapping_symbol(name: str) -> bool:
    """Tell whether ``name`` marks code or data (``$x``, ``$d``, ``$x.12``), with or without the EL2 prefix.

    objcopy prefixes the mapping symbols of the EL2 half too, so ``__kvm_nvhe_$x`` is one.
    """
    if name.startswith(NVHE_PREFIX):
        name = name[len(NVHE_PREFIX) :]
    return name.startswith(("$x", "$d")) and (len(name) == 2 or name[2] == ".")


def printable(text: str) -> str:
    """Escape control characters, so that a name from a file cannot break a one-line message."""
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def align_up(value: int, alignment: int) -> int:
    """Round ``value`` up to a multiple of ``alignment`` (a power of two; 0 counts as 1)."""
    alignment = max(alignment, 1)
    return (value + alignment - 1) & ~(alignment - 1)
