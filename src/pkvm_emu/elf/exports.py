"""What a module exports: the ``__ksymtab*`` tables of a linked module, or the export records of a raw object."""

from __future__ import annotations

from typing import NamedTuple

from pkvm_emu.elf.elements import SHN_ABS, Section
from pkvm_emu.elf.object_file import ObjectFile

#: struct kernel_symbol with place-relative references: value, name, namespace, s32 each. Source:
#: include/linux/export.h.
_ENTRY_SIZE, _NAMESPACE = 12, 8
_NAME_MAX = 512
_RECORD_PREFIX = "__export_symbol_"


class Export(NamedTuple):
    """One exported symbol, at byte ``offset`` of section number ``section``.

    ``crc`` is None without modversions, ``namespace`` empty without a namespace.
    """

    name: str
    section: int
    offset: int
    gpl_only: bool
    crc: int | None
    namespace: str = ""


def read_exports(object_file: ObjectFile) -> list[Export]:
    """List the exports of a module in table order.

    A linked module has ``__ksymtab`` and ``__ksymtab_gpl``; an object that modpost has not seen has ``___ksymtab+name``
    sections (5.15, 6.1) or ``__export_symbol_name`` records (6.6 and later).
    """
    exports: list[Export] = []
    for section in object_file.sections:
        if section.name.startswith(("__ksymtab", "___ksymtab")) and section.name != "__ksymtab_strings":
            exports += _table_exports(object_file, section)
    return exports or _record_exports(object_file)


def _table_exports(object_file: ObjectFile, table: Section) -> list[Export]:
    gpl_only = table.name.startswith(("__ksymtab_gpl", "___ksymtab_gpl"))
    crcs = _crcs(object_file, "__kcrctab_gpl" if gpl_only else "__kcrctab")
    exports = []
    entries = sorted(object_file.relocations_of(table.index))
    namespaces = {
        entry.offset // _ENTRY_SIZE: _string_at(object_file, entry.symbol, entry.addend)
        for entry in entries
        if entry.offset % _ENTRY_SIZE == _NAMESPACE
    }
    for entry in entries:
        number, member = divmod(entry.offset, _ENTRY_SIZE)
        symbol = object_file.symbols[entry.symbol]
        place = object_file.symbol_offset(symbol, entry.addend)
        if member != 0 or place is None:
            continue
        name = _name_at(object_file, symbol.name, place)
        exports.append(Export(name, *place, gpl_only, crcs.get(number), namespaces.get(number, "")))
    return exports


def _crcs(object_file: ObjectFile, name: str) -> dict[int, int]:
    """The versions of a table's symbols by number: words, or (up to 5.18) relocations that give them.

    Those refer to an absolute symbol ``__crc_NAME`` whose value is the version, or to a word that holds it.
    """
    table = object_file.section(name)
    if table is None:
        return {}
    words = range(len(table.data) // 4)
    found = {number: int.from_bytes(table.data[number * 4 : number * 4 + 4], "little") for number in words}
    for entry in object_file.relocations_of(table.index):
        symbol = object_file.symbols[entry.symbol]
        place = object_file.symbol_offset(symbol, entry.addend)
        if symbol.shndx == SHN_ABS:
            found[entry.offset // 4] = (symbol.value + entry.addend) & 0xFFFF_FFFF
        elif place is not None:
            data = object_file.sections[place[0]].data
            found[entry.offset // 4] = int.from_bytes(data[place[1] : place[1] + 4], "little")
        else:
            # A symbol whose version nobody worked out: it has none.
            found.pop(entry.offset // 4, None)
    return found


def _string_at(object_file: ObjectFile, symbol: int, addend: int) -> str:
    place = object_file.symbol_offset(object_file.symbols[symbol], addend)
    data = object_file.sections[place[0]].data[place[1] :] if place is not None else b""
    return bytes(data[:_NAME_MAX]).partition(b"\0")[0].decode("utf-8", "replace")


def _name_at(object_file: ObjectFile, name: str, place: tuple[int, int]) -> str:
    """Return the symbol's own name, or for a section symbol the name of what starts at ``place``."""
    if name != object_file.sections[place[0]].name:
        return name
    found = object_file.symbol_table.find(*place)
    return found.symbol.name if found and found.offset == 0 else name


def _record_exports(object_file: ObjectFile) -> list[Export]:
    defined = {symbol.name: symbol for symbol in object_file.symbols if symbol.in_section}
    exports = []
    for record in object_file.symbols:
        name = record.name.removeprefix(_RECORD_PREFIX)
        target = defined.get(name)
        if name == record.name or target is None or not record.in_section:
            continue
        # The record: licence and namespace as strings, then the address.
        texts = bytes(object_file.sections[record.shndx].data[record.value : record.value + _NAME_MAX]).split(b"\0")
        namespace = texts[1].decode("utf-8", "replace") if len(texts) > 2 else ""
        exports.append(Export(name, target.shndx, target.value, texts[0] == b"GPL", None, namespace))
    return exports
