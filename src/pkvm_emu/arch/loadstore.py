"""How many bytes a load or store instruction moves at a time. Source: Arm ARM, C4.1.94 "Loads and stores"."""

from __future__ import annotations


def access_size(word: int) -> int | None:
    """Bytes of one access of a load or store: 1 to 16; of one register where it moves a pair. None for anything else.

    >>> access_size(0xF9000420)  # str x0, [x1, #8]
    8
    >>> access_size(0xB9400020)  # ldr w0, [x1]
    4
    """
    size, group, is_vector = word >> 30, word >> 24 & 0x3B, bool(word >> 26 & 1)
    if group & 0x3A == 0x38:
        return 16 if is_vector and word >> 23 & 1 else 1 << size
    if group & 0x3A == 0x28:
        return 4 << size if is_vector else 8 if size == 2 else 4
    if group == 0x08 and not is_vector:
        is_pair = not word >> 23 & 1 and bool(word >> 21 & 1)
        return (4 << (size & 1) if size & 2 else None) if is_pair else 1 << size
    if group == 0x19 and not is_vector:
        return 1 << size
    if group == 0x18:
        return 4 << size if is_vector else (4, 8, 4, None)[size]
    return None
