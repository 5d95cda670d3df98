"""What modules export to each other, and what they need from each other (the part of ``modpost`` that matters here)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pkvm_emu.build.elfobj import SHN_UNDEF, ElfObject, Symbol
from pkvm_emu.errors import BuildError, UsageError

_EXPORT_SECTIONS = ("___ksymtab+", "___ksymtab_gpl+")
_EXPORT_SYMBOL = "__ksymtab_"
_OF_TABLE_PREFIX = "__mod_of__"
_TABLE_SUFFIX = "_device_table"
_OF_ENTRY_BYTES = 200
_OF_FIELDS = ((0, 32), (32, 32), (64, 128))


def exported_by_objects(objects: Iterable[ElfObject]) -> list[str]:
    """Symbols that EXPORT_SYMBOL names in the EL1 *objects* of one module, sorted."""
    names = set()
    for item in objects:
        for section in item.sections:
            for prefix in _EXPORT_SECTIONS:
                if section.name.startswith(prefix):
                    names.add(section.name.removeprefix(prefix))
    return sorted(names)


def read_symbol_list(path: Path) -> dict[str, str]:
    """Symbol name to the exporting module (its file name without ``.ko``), from a ``.ko`` or a ``Module.symvers``.

    Raises UsageError if *path* cannot be read, BuildError if it is neither.
    """
    if not path.is_file():
        raise UsageError(f"no symbol list {path}: give the .ko or the Module.symvers of the module that exports")
    if path.suffix == ".ko":
        module = ElfObject.read(path)
        symbols = [s.name.removeprefix(_EXPORT_SYMBOL) for s in module.symbols if s.name.startswith(_EXPORT_SYMBOL)]
        return {symbol: path.stem for symbol in symbols or _strings(module, "__ksymtab_strings") if symbol}
    exports = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 4 or not fields[0].startswith("0x"):
            raise BuildError(f"{path}:{number}: not a line of a Module.symvers (CRC, symbol, module, export type)")
        exports[fields[1]] = Path(fields[2]).name
    return exports


def symvers_text(exports: Mapping[str, str]) -> str:
    """*exports* (symbol to module) in the format of ``Module.symvers``; the CRCs are 0, as without modversions."""
    return "".join(f"0x00000000\t{symbol}\t{module}\tEXPORT_SYMBOL\t\n" for symbol, module in exports.items())


def modinfo_tags(objects: Iterable[ElfObject]) -> set[str]:
    """The tags (``license``, ``author`` …) that the sources put into ``.modinfo``."""
    return {text.partition("=")[0] for item in objects for text in _strings(item, ".modinfo")}


def defined_names(objects: Iterable[ElfObject]) -> set[str]:
    """Names of all symbols that the *objects* define."""
    return {symbol.name for item in objects for symbol in item.symbols if symbol.name and symbol.section != SHN_UNDEF}


def dependencies(needed: Sequence[str], exports: Mapping[str, str], name: str) -> list[str]:
    """The other modules that give the *needed* symbols, in the order of first use."""
    return list(dict.fromkeys(exports[symbol] for symbol in needed if exports.get(symbol, name) != name))


def device_aliases(objects: Iterable[ElfObject]) -> list[str]:
    """The ``of:`` aliases of the tables that MODULE_DEVICE_TABLE names (``scripts/mod/file2alias.c``)."""
    aliases: list[str] = []
    for item in objects:
        for symbol in item.symbols:
            if symbol.name.startswith(_OF_TABLE_PREFIX) and symbol.name.endswith(_TABLE_SUFFIX):
                aliases += _of_aliases(item, symbol)
    return list(dict.fromkeys(aliases))


def _of_aliases(item: ElfObject, symbol: Symbol) -> list[str]:
    data = item.sections[symbol.section].data[symbol.value : symbol.value + symbol.size]
    aliases = []
    for start in range(0, len(data) - _OF_ENTRY_BYTES + 1, _OF_ENTRY_BYTES):
        entry = data[start : start + _OF_ENTRY_BYTES]
        name, kind, compatible = (
            entry[offset : offset + size].split(b"\0")[0].decode("ascii", "replace") for offset, size in _OF_FIELDS
        )
        if name or kind or compatible:
            text = f"of:N{name or '*'}T{kind or '*'}C{compatible.replace(' ', '_') or '*'}"
            aliases += [text, *([f"{text}C*"] if compatible else [])]
    return aliases


def _strings(item: ElfObject, section: str) -> list[str]:
    return [
        text.decode("utf-8", "replace")
        for part in item.sections
        if part.name == section
        for text in part.data.split(b"\0")
        if text
    ]
