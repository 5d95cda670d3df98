"""How a module uses the symbols that it takes from elsewhere: called, as a static key, or in any other way."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache

from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.elf.static_keys import SECTION as _JUMP_TABLE

#: R_AARCH64_JUMP26 and R_AARCH64_CALL26.
_BRANCHES = (282, 283)


class ImportUse(Enum):
    """The most telling use of an undefined symbol."""

    CALL = "call"
    STATIC_KEY = "static key"
    ADDRESS = "address"


@lru_cache(maxsize=64)
def import_uses(file: ModuleFile) -> dict[str, ImportUse]:
    """The undefined symbols that relocations name.

    What is branched to is a function; what ``__jump_table`` names is a static key; of the rest the module takes the address,
    to read a variable or to pass a function on.
    """
    found: dict[str, ImportUse] = {}
    for part in file.relocation_sections:
        in_jump_table = file.sections[part.target].name == _JUMP_TABLE
        for entry in part.entries:
            symbol = file.symbols[entry.symbol]
            if symbol.shndx or not symbol.name:
                continue
            if entry.type in _BRANCHES:
                found[symbol.name] = ImportUse.CALL
            elif in_jump_table:
                found.setdefault(symbol.name, ImportUse.STATIC_KEY)
                if found[symbol.name] is ImportUse.ADDRESS:
                    found[symbol.name] = ImportUse.STATIC_KEY
            else:
                found.setdefault(symbol.name, ImportUse.ADDRESS)
    return found
