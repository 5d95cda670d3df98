"""Which kCFI type ids a module was built with, read from the words in front of its functions.

A function built with kCFI has the 32-bit id of its prototype in the four bytes before its first instruction. The ids
depend on the compiler's integer normalisation, which Android switched on with 6.12. Source:
arch/arm64/include/asm/cfi.h and the ids that clang gives for the prototypes named below.
"""

from __future__ import annotations

from typing import NamedTuple

from pkvm_emu.elf.elements import NVHE_PREFIX, SHN_ABS, STT_FUNC, Symbol
from pkvm_emu.elf.object_file import ObjectFile

NORMALISED = "normalised"
PLAIN = "plain"

#: ids of ``int (void)``, the prototype of init_module.
_EL1_INIT_IDS = {0x6FBB3035: NORMALISED, 0x36B1C5A6: PLAIN}
#: ids of ``int (const struct pkvm_module_ops *)``, the prototype of the EL2 init function.
_EL2_INIT_IDS = {0xF175F853: NORMALISED, 0xC382D712: PLAIN}
_TYPE_ID_PREFIX = "__kcfi_typeid_"


class KcfiFacts(NamedTuple):
    """``el1`` and ``el2`` are "normalised", "plain" or None (no kCFI); ``el2_init`` is the EL2 function with that id.

    ``type_ids`` holds the ``__kcfi_typeid_*`` symbols: the ids that the EL1 half expects of functions by name.
    """

    el1: str | None
    el2: str | None
    el2_init: str | None
    type_ids: dict[str, int]


def read_kcfi(object_file: ObjectFile) -> KcfiFacts:
    """Read the kCFI facts of both halves of a module."""
    el1: str | None = None
    el2: str | None = None
    el2_init: str | None = None
    type_ids: dict[str, int] = {}
    for symbol in object_file.symbols:
        if symbol.name == "init_module" and symbol.in_section:
            el1 = _EL1_INIT_IDS.get(word_before(object_file, symbol) or 0)
        elif el2 is None and symbol.type == STT_FUNC and symbol.name.startswith(NVHE_PREFIX) and symbol.in_section:
            el2 = _EL2_INIT_IDS.get(word_before(object_file, symbol) or 0)
            el2_init = symbol.name if el2 else None
        elif symbol.shndx == SHN_ABS and symbol.name.startswith(_TYPE_ID_PREFIX):
            type_ids[symbol.name[len(_TYPE_ID_PREFIX) :]] = symbol.value & 0xFFFF_FFFF
    return KcfiFacts(el1, el2, el2_init, type_ids)


def word_before(object_file: ObjectFile, symbol: Symbol) -> int | None:
    """Return the 32-bit word in front of ``symbol``, or None where its section has none."""
    data = object_file.sections[symbol.shndx].data
    if not 4 <= symbol.value <= len(data):
        return None
    return int.from_bytes(data[symbol.value - 4 : symbol.value], "little")
