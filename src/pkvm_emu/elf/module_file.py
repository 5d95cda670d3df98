"""One kernel module as a file: its sections, and the facts that its loader and its user want to know.

Nothing is decided here (that is ``detect``) and nothing is placed in memory (that is ``layout``).
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from pkvm_emu.elf import kcfi
from pkvm_emu.elf.elements import MEMORY_LIMIT, STB_WEAK, RelocationSection, Section, Symbol, printable
from pkvm_emu.elf.exports import Export, read_exports
from pkvm_emu.elf.object_file import ObjectFile
from pkvm_emu.elf.signature import ModuleSignature, split_signature
from pkvm_emu.elf.va_bits import InlinedShadow, VaBits, detect_inlined_shadow, detect_va_bits
from pkvm_emu.errors import InputError

THIS_MODULE_SECTION = ".gnu.linkonce.this_module"

#: Sections that the loader maps at EL2, with their protection there. Any other ``.hyp.*`` section is ordinary EL1 data.
#: Source: arch/arm64/kvm/pkvm.c.
HYP_MAPPED_SECTIONS = {
    ".hyp.text": "rx",
    ".hyp.bss": "rw",
    ".hyp.rodata": "ro",
    ".hyp.event_ids": "ro",
    ".hyp.patchable_function_entries": "ro",
    ".hyp.data": "rw",
}

_VERSION_ENTRY = struct.Struct("<Q56s")
_INSTRUCTION_SIZE = 4
_POINTER_SIZE = 8


class SymbolUse(NamedTuple):
    """Where a symbol is used: a byte ``offset`` in section number ``section``; ``text`` names the place for people."""

    section: int
    offset: int
    text: str


class UndefinedSymbol(NamedTuple):
    """A symbol that somebody else has to define; ``first_use`` is None when no loaded section refers to it."""

    name: str
    is_weak: bool
    first_use: SymbolUse | None


class ThisModule(NamedTuple):
    """``struct module`` as the file carries it; offsets of ``init`` and ``exit`` in bytes, None when not set."""

    section: Section
    init_offset: int | None
    exit_offset: int | None


@dataclass(frozen=True, slots=True)
class GenerationFacts:
    """Raw facts that tell which Android branch a module was built for."""

    vermagic: str
    has_event_ids: bool
    has_patchable_function_entries: bool
    has_printk_fmts: bool
    has_static_keys: bool


@dataclass(frozen=True, slots=True)
class DebugPart:
    """One ELF image with debug information; ``sections`` maps section numbers to the module's (number, byte offset)."""

    data: bytes
    sections: dict[int, tuple[int, int]]


class ModuleFile:
    """A vendor module read from a ``.ko``, or put together from its two raw objects.

    Attributes:
        file_name: what error messages call the module.
        object: the sections, symbols and relocations.
        signature: what was appended to the ELF image, or None.
        debug_parts: the images that ``dwarf`` reads source lines from.
    """

    def __init__(
        self,
        file_name: str,
        object_file: ObjectFile,
        signature: ModuleSignature | None = None,
        debug_parts: Sequence[DebugPart] = (),
    ) -> None:
        self.file_name = file_name
        self.object = object_file
        self.signature = signature
        self.debug_parts = tuple(debug_parts)

    @classmethod
    def load(cls, path: str | Path) -> ModuleFile:
        """Read a module from ``path``, which may be compressed (``.ko.gz``, ``.xz``, ``.zst``, ``.lz4``).

        Raises:
            InputError: the file cannot be read or is not a sound AArch64 module.
        """
        data, name = read_input(path), Path(path).name
        if not data.startswith(b"\x7fELF"):
            from pkvm_emu.elf.decompress import compression_of, decompress

            if compression_of(data) is not None:
                data = decompress(memoryview(data), MEMORY_LIMIT, printable(name)).data
                name = name if name.endswith(".ko") else name.rpartition(".")[0] or name
        return cls.parse(data, name)

    @classmethod
    def parse(cls, data: bytes, name: str) -> ModuleFile:
        """Read a module from the bytes of a ``.ko``; ``name`` is what error messages call it.

        Raises:
            InputError: the bytes are not a sound AArch64 relocatable object.
        """
        image, signature = split_signature(data, name)
        parsed = ObjectFile.parse(image, name)
        numbers = {index: (index, 0) for index in range(len(parsed.sections))}
        return cls(name, parsed, signature, [DebugPart(image, numbers)])

    @classmethod
    def from_objects(cls, el1: bytes, nvhe: bytes, name: str) -> ModuleFile:
        """Put a module together from its EL1 object and its EL2 object (``kvm_nvhe.o``), as the module link does.

        See ``combine.combine_objects`` for what is synthesised.

        Raises:
            InputError: one of the objects is unsound, or both define the same symbol.
        """
        from pkvm_emu.elf.combine import combine_objects

        combined, parts = combine_objects(el1, nvhe, name)
        return cls(name, combined, None, parts)

    @property
    def sections(self) -> list[Section]:
        """All sections, indexed by section number."""
        return self.object.sections

    @property
    def symbols(self) -> list[Symbol]:
        """All symbols, indexed by symbol number."""
        return self.object.symbols

    @property
    def relocation_sections(self) -> list[RelocationSection]:
        """The relocations of every section that takes memory."""
        return self.object.relocation_sections

    def section(self, name: str) -> Section | None:
        """Return the first section called ``name``, or None."""
        return self.object.section(name)

    @cached_property
    def name(self) -> str:
        """The module's name: ``name=`` of ``.modinfo``, else the file name without its suffix."""
        named = self.modinfo.get("name")
        return printable(named[0]) if named and named[0] else Path(self.file_name).stem.replace("-", "_")

    @cached_property
    def modinfo(self) -> dict[str, list[str]]:
        """``.modinfo`` as key -> values, in file order."""
        section = self.section(".modinfo")
        entries: dict[str, list[str]] = {}
        for text in section.data.split(b"\0") if section else ():
            key, separator, value = text.decode("utf-8", "replace").partition("=")
            if separator:
                entries.setdefault(key, []).append(value)
        return entries

    @property
    def vermagic(self) -> str:
        """The ``vermagic=`` text, empty when the file has none."""
        return self.modinfo.get("vermagic", [""])[0]

    @property
    def depends(self) -> list[str]:
        """Names of the modules that have to be loaded before this one."""
        return [name for value in self.modinfo.get("depends", []) for name in value.split(",") if name]

    @cached_property
    def has_el2(self) -> bool:
        """True when there is EL2 code. Size decides: every GKI module has empty or 1-byte ``.hyp.*`` sections."""
        text = self.section(".hyp.text")
        return text is not None and text.is_alloc and text.size >= _INSTRUCTION_SIZE

    @property
    def has_patchable_functions(self) -> bool:
        """Its EL2 functions begin with NOPs for function tracing (CONFIG_PKVM_FTRACE), and a table says where they are."""
        table = self.section(".hyp.patchable_function_entries")
        return self.has_el2 and table is not None and table.size >= _POINTER_SIZE

    @cached_property
    def hyp_sections(self) -> list[Section]:
        """The non-empty ``.hyp.*`` sections in file order; none for a module without EL2 code."""
        if not self.has_el2:
            return []
        return [part for part in self.sections if part.name.startswith(".hyp.") and part.is_alloc and part.size]

    @property
    def hyp_mapped_sections(self) -> list[Section]:
        """Those of ``hyp_sections`` that are mapped at EL2, in file order."""
        return [section for section in self.hyp_sections if section.name in HYP_MAPPED_SECTIONS]

    @cached_property
    def this_module(self) -> ThisModule | None:
        """The ``struct module`` that the file carries, or None for a raw object."""
        section = self.section(THIS_MODULE_SECTION)
        if section is None:
            return None
        offsets: dict[str, int] = {}
        for entry in self.object.relocations_of(section.index):
            # 5.15 with jump-table CFI refers to init_module.cfi_jt.
            offsets.setdefault(self.symbols[entry.symbol].name.partition(".")[0], entry.offset)
        return ThisModule(section, offsets.get("init_module"), offsets.get("cleanup_module"))

    @cached_property
    def exports(self) -> list[Export]:
        """What the module exports to others, in table order."""
        return read_exports(self.object)

    @cached_property
    def versions(self) -> dict[str, int]:
        """CRC of each imported symbol (modversions), from ``__versions`` or ``__version_ext_*``; empty without them."""
        # A kernel that knows the extended table looks at nothing else.
        crcs, names = self.section("__version_ext_crcs"), self.section("__version_ext_names")
        if crcs is not None and names is not None and crcs.size:
            values = [value for (value,) in struct.iter_unpack("<I", crcs.data[: len(crcs.data) & ~3])]
            return dict(zip([_text(name) for name in names.data.split(b"\0") if name], values))
        table = self.section("__versions")
        data = b"" if table is None else table.data[: len(table.data) // _VERSION_ENTRY.size * _VERSION_ENTRY.size]
        return {_text(name): crc & 0xFFFF_FFFF for crc, name in _VERSION_ENTRY.iter_unpack(data)}

    @cached_property
    def kcfi(self) -> kcfi.KcfiFacts:
        """Which kCFI type ids the two halves were built with."""
        return kcfi.read_kcfi(self.object)

    @cached_property
    def va_bits(self) -> VaBits | None:
        """The address bits of the kernel that the EL1 code was compiled for, where it shows."""
        return detect_va_bits(self.object)

    @cached_property
    def inlined_shadow(self) -> InlinedShadow | None:
        """The KASAN shadow that the EL1 code reads by itself, where its checks are inlined."""
        return detect_inlined_shadow(self.object)

    @property
    def generation_facts(self) -> GenerationFacts:
        """Raw facts for ``detect``."""
        return GenerationFacts(
            vermagic=self.vermagic,
            has_event_ids=self.section(".hyp.event_ids") is not None,
            has_patchable_function_entries=self.section(".hyp.patchable_function_entries") is not None,
            has_printk_fmts=self.section(".hyp.printk_fmts") is not None,
            has_static_keys=any(symbol.name == "cpu_hwcap_keys" for symbol in self.symbols),
        )

    def undefined_symbols(self) -> list[UndefinedSymbol]:
        """Return every undefined symbol in symbol-table order, with the first place that uses it."""
        first_uses: dict[int, SymbolUse] = {}
        symbols = self.symbols
        for part in self.relocation_sections:
            for entry in part.entries:
                number = entry.symbol
                if number and symbols[number].shndx == 0 and number not in first_uses:
                    text = self.object.describe(part.target, entry.offset)
                    first_uses[number] = SymbolUse(part.target, entry.offset, text)
        return [
            UndefinedSymbol(symbol.name, symbol.bind == STB_WEAK, first_uses.get(symbol.number))
            for symbol in symbols[1:]
            if symbol.shndx == 0 and symbol.name
        ]


def read_input(path: str | Path) -> bytes:
    """Read a whole input file, refusing what is not a regular file or is larger than the memory limit.

    Raises:
        InputError: with the reason in one line.
    """
    source = Path(path)
    name = printable(str(source))
    try:
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{name}: not a regular file")
        if status.st_size > MEMORY_LIMIT:
            raise InputError(f"{name}: {status.st_size >> 20} MiB, the limit is {MEMORY_LIMIT >> 20} MiB")
        return source.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{name}: cannot be read: {reason}") from None


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "replace")
