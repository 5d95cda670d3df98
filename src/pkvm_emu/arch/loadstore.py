"""What a load or store instruction moves, and how. Source: Arm ARM, C4.1.94 "Loads and stores"."""

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


def is_one_access(word: int) -> bool:
    """Whether a load or store is done once its one access is: no second register, no write-back, nothing to extend afterwards.

    >>> is_one_access(0xB9400108)  # ldr w8, [x8]
    True
    >>> is_one_access(0xB8404428)  # ldr w8, [x1], #4
    False
    """
    group, opc = word >> 24 & 0x3F, word >> 22 & 3
    if group == 0x08:
        # LDAR, STLR and their limited-order forms.
        return word >> 21 & 5 == 4
    if group not in (0x38, 0x39) or (opc == 3 and word >> 30 < 2):
        return False
    # Of those without the long offset: an unscaled offset, or a register.
    return group == 0x39 or (word >> 21 & 1, word >> 10 & 3) in ((0, 0), (1, 2))
