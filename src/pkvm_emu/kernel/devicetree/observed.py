"""Where ``of_node`` is in the ``struct device`` that a module was compiled with, seen in its code.

Locks before that member grow with lock debugging, so a debug build has another offset than the stock build of its line. Drivers
load it right before they call device-tree functions: from a ``struct device``, and from the ``struct platform_device`` around it,
which has ``dev`` at 16. The two offsets that differ by 16 are it.
"""

from __future__ import annotations

from functools import lru_cache
from struct import unpack_from

from pkvm_emu.arch.insn import is_ret
from pkvm_emu.elf.module_file import ModuleFile

#: Functions whose first argument is a node of a device, in drivers.
_TAKE_NODE = (
    "of_get_property", "of_find_property", "of_property_read_", "of_property_match_string", "of_property_count_elems_of_size",
    "of_parse_phandle", "__of_parse_phandle_with_args", "of_count_phandle_with_args", "of_device_is_compatible",
    "of_device_is_available", "of_get_child_by_name", "of_get_next_child", "of_irq_get", "of_address_to_resource",
)  # fmt: skip
_CALLS = (282, 283)
_PLATFORM = 16
#: No ``of_node`` lies before this.
_LEAST_OFFSET = 256
_SCAN = 400
_FIRST_SAVED, _STACK_POINTER = 19, 31


@lru_cache(maxsize=64)
def of_node_offset(file: ModuleFile, expected: int) -> int | None:
    """The offset that the module's code uses; None where it shows none, or nothing but ``expected``.

    Args:
        file: the module.
        expected: the offset in stock builds of its kernel line.
    """
    seen: set[int] = set()
    for part in file.relocation_sections:
        section = file.sections[part.target]
        if section.is_code and not section.name.startswith(".hyp."):
            words = unpack_from(f"<{len(section.data) // 4}I", section.data)
            for entry in part.entries:
                if entry.type in _CALLS and file.symbols[entry.symbol].name.startswith(_TAKE_NODE):
                    offset = _loaded_from(words, entry.offset // 4)
                    if offset is not None:
                        seen.add(offset)
    if not seen or expected in seen or expected + _PLATFORM in seen:
        return None
    pairs = [offset for offset in sorted(seen) if offset + _PLATFORM in seen]
    if pairs:
        return pairs[0]
    # One offset alone is that of a probe function, which has a platform device in hand.
    return min(seen) - _PLATFORM if len(seen) == 1 else None


def _loaded_from(words: tuple[int, ...], call: int) -> int | None:
    """The offset that the call's first argument was loaded from."""
    register = 0
    for index in range(call - 1, max(call - _SCAN, -1), -1):
        word = words[index]
        if register < _FIRST_SAVED and (is_ret(word) is not None or word >> 26 == 0x25):
            return None
        if word & 0x1F != register:
            continue
        if word & 0xFFE0_FFE0 == 0xAA00_03E0:  # MOV Xd, Xm
            register = word >> 16 & 0x1F
        elif word & 0xFFC0_0000 == 0xF940_0000:  # LDR Xt, [Xn, #offset]
            if word >> 5 & 0x1F != _STACK_POINTER:
                offset = (word >> 10 & 0xFFF) * 8
                return offset if offset >= _LEAST_OFFSET else None
        elif word >> 24 in (0x91, 0xD2, 0x90, 0xB0, 0xD0, 0xF0):
            return None
    return None
