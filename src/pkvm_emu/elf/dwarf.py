"""Source lines of module code, read from DWARF only when somebody asks.

A relocatable object has no addresses: every section starts at 0. Before pyelftools reads the line programs, each
symbol is given the address (section number << 40) + offset, so that an address found in a line program says which
section it is of.
"""

from __future__ import annotations

import io
import struct
from bisect import bisect_right
from typing import Any, NamedTuple

from pkvm_emu.elf.elements import MEMORY_LIMIT, SHN_LORESERVE, SHT_RELA, SHT_SYMTAB, printable
from pkvm_emu.elf.module_file import DebugPart, ModuleFile
from pkvm_emu.errors import InputError

_SECTION_SHIFT = 40
_OFFSET_MASK = (1 << _SECTION_SHIFT) - 1
_SYMBOL_SIZE = 24
_RELA_SIZE = 24


class SourceLine(NamedTuple):
    """A place in the source: file name as the compiler recorded it, line from 1."""

    file: str
    line: int


class _Row(NamedTuple):
    offset: int
    line: SourceLine | None


class SourceLines:
    """The line tables of one module. Reading happens at the first lookup; a stripped module answers None throughout."""

    def __init__(self, module: ModuleFile) -> None:
        self._module = module
        self._rows: dict[int, list[_Row]] | None = None

    def lookup(self, section_index: int, offset: int) -> SourceLine | None:
        """Return the source line of byte ``offset`` in section number ``section_index``, or None.

        Raises:
            InputError: the module has debug information that cannot be read. Further lookups answer None.
        """
        if self._rows is None:
            self._rows = {}
            self._rows = self._read()
        rows = self._rows.get(section_index, [])
        position = bisect_right(rows, offset, key=lambda row: row.offset) - 1
        found = rows[position].line if position >= 0 else None
        # Line 0 is the compiler's word for code that belongs to no line (merged from several).
        return found if found is not None and found.line else None

    def places(self, file: str, line: int) -> list[tuple[int, int]]:
        """Where the code of a source line begins: (section number, byte offset), the first place of each section.

        Args:
            file: the file's name as the compiler recorded it, or the end of it (``el2.c``, ``hyp/el2.c``).
            line: from 1.

        Raises:
            InputError: as for :meth:`lookup`.
        """
        if self._rows is None:
            self._rows = self._read()
        found = []
        for section, rows in sorted(self._rows.items()):
            for row in rows:
                here = row.line
                if here is not None and here.line == line and (here.file == file or here.file.endswith(f"/{file}")):
                    found.append((section, row.offset))
                    break
        return found

    def _read(self) -> dict[int, list[_Row]]:
        found: dict[int, list[_Row]] = {}
        for part in self._module.debug_parts:
            try:
                sequences = _line_rows(part)
            except Exception as error:  # pyelftools answers bad DWARF with exceptions of many kinds
                reason = printable(str(error).partition("\n")[0]) or type(error).__name__
                message = f"{self._module.file_name}: its debug information cannot be read: {reason}"
                raise InputError(message) from None
            for address, line in sequences:
                home = part.sections.get(address >> _SECTION_SHIFT)
                if home is not None:
                    found.setdefault(home[0], []).append(_Row(home[1] + (address & _OFFSET_MASK), line))
        # An end-of-sequence row (line None) gives way to the start of a sequence at the same place.
        return {
            section: sorted(rows, key=lambda row: (row.offset, row.line is not None)) for section, rows in found.items()
        }


def _line_rows(part: DebugPart) -> list[tuple[int, SourceLine | None]]:
    from elftools.elf.elffile import ELFFile

    elf = ELFFile(io.BytesIO(_with_section_addresses(part.data)))
    if not elf.has_dwarf_info():
        return []
    _refuse_bombs(elf)
    dwarf = elf.get_dwarf_info()
    rows: list[tuple[int, SourceLine | None]] = []
    for unit in dwarf.iter_CUs():
        program = dwarf.line_program_for_CU(unit)
        if program is None:
            continue
        names = _file_names(program.header)
        for entry in program.get_entries():
            state = entry.state
            if state is None:
                continue
            line = None if state.end_sequence else SourceLine(names.get(state.file, "?"), state.line)
            rows.append((state.address, line))
    return rows


def _refuse_bombs(elf: Any) -> None:
    """Refuse sections that claim to be enormous once they are decompressed."""
    total = 0
    for section in elf.iter_sections():
        if section.name.startswith(".zdebug"):
            raise InputError(f"{section.name} is compressed in the old GNU format")
        if section.compressed:
            total += section.data_size
    if total > MEMORY_LIMIT:
        raise InputError(f"its compressed sections would take {total >> 20} MiB, the limit is {MEMORY_LIMIT >> 20} MiB")


def _file_names(header: Any) -> dict[int, str]:
    """Return the file names of one line program by number: from 0 in DWARF 5, from 1 before."""
    is_v5 = header["version"] >= 5
    directories = [_decode(name) for name in header["include_directory"]]
    if not is_v5:
        directories.insert(0, "")
    names = {}
    for number, entry in enumerate(header["file_entry"], 0 if is_v5 else 1):
        name = _decode(entry["name"])
        directory = entry.get("dir_index", 0) or 0
        inside = 0 < directory < len(directories) and directories[directory] and not name.startswith("/")
        names[number] = f"{directories[directory]}/{name}" if inside else name
    return names


def _decode(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _with_section_addresses(data: bytes) -> bytes:
    image = bytearray(data)
    offset, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
    for header in range(offset, offset + 64 * count, 64):
        (kind,) = struct.unpack_from("<I", data, header + 4)
        if kind == SHT_RELA:
            _drop_empty_relocations(image, header)
        if kind != SHT_SYMTAB:
            continue
        start, size = struct.unpack_from("<QQ", data, header + 24)
        for symbol in range(start, start + size - _SYMBOL_SIZE + 1, _SYMBOL_SIZE):
            shndx, value = struct.unpack_from("<HQ", data, symbol + 6)
            if 0 < shndx < SHN_LORESERVE and not _is_debug_section(data, offset, shndx):
                address = (shndx << _SECTION_SHIFT) | (value & _OFFSET_MASK)
                struct.pack_into("<Q", image, symbol + 8, address)
    return bytes(image)


def _drop_empty_relocations(image: bytearray, header: int) -> None:
    """Take R_AARCH64_NONE entries out of a relocation section: linkers leave them, pyelftools knows no such type."""
    start, size = struct.unpack_from("<QQ", image, header + 24)
    entries = [image[at : at + _RELA_SIZE] for at in range(start, start + size - _RELA_SIZE + 1, _RELA_SIZE)]
    kept = b"".join(entry for entry in entries if struct.unpack_from("<I", entry, 8)[0])
    if len(kept) < len(entries) * _RELA_SIZE:
        image[start : start + len(kept)] = kept
        struct.pack_into("<Q", image, header + 32, len(kept))


def _is_debug_section(data: bytes, headers: int, number: int) -> bool:
    """True for a section without memory: references into debug sections have to stay plain offsets."""
    (flags,) = struct.unpack_from("<Q", data, headers + 64 * number + 8)
    return not flags & 2
