"""Bit searches, bitmaps and population counts (``lib/find_bit.c``, ``lib/bitmap.c``, ``lib/hweight.c``)."""

from __future__ import annotations

from collections.abc import Callable
from errno import EBUSY, EINVAL, ENOMEM, EOVERFLOW, ERANGE

from pkvm_emu.kernel.guest_access import load, load_string, store
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.registry import kernel_symbol, kernel_variable
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.kernel.varargs import ValueArgs
from pkvm_emu.machine.calling import S32, U8, U32, U64, Bool, Ptr

_PAGE_SIZE = 4096


def _words(bits: int) -> int:
    return (bits + 63) // 64 * 8


def read_bits(kernel: Kernel, address: int, bits: int) -> int:
    """A bitmap as a number; bits behind its end are 0."""
    return int.from_bytes(load(kernel, address, _words(bits)), "little") & ((1 << bits) - 1)


def write_bits(kernel: Kernel, address: int, bits: int, value: int) -> None:
    """Store a bitmap; bits behind its end become 0."""
    store(kernel, address, (value & ((1 << bits) - 1)).to_bytes(_words(bits), "little"))


def first_set(value: int, size: int, start: int = 0) -> int:
    """The first 1 from ``start`` on, or ``size``."""
    rest = value >> start << start if start < size else 0
    return (rest & -rest).bit_length() - 1 if rest else size


def _all(bits: int) -> int:
    return (1 << bits) - 1


# Searches


@kernel_symbol("_find_first_bit", "find_first_bit", runs_guest=True)
def find_first_bit(kernel: Kernel, address: Ptr, size: U64) -> int:
    """First 1, or ``size``."""
    return first_set(read_bits(kernel, address, size), size)


@kernel_symbol("_find_first_zero_bit", "find_first_zero_bit", runs_guest=True)
def find_first_zero_bit(kernel: Kernel, address: Ptr, size: U64) -> int:
    """First 0, or ``size``."""
    return first_set(read_bits(kernel, address, size) ^ _all(size), size)


@kernel_symbol("_find_first_and_bit", runs_guest=True)
def find_first_and_bit(kernel: Kernel, left: Ptr, right: Ptr, size: U64) -> int:
    """First bit that is 1 in both, or ``size``."""
    return first_set(read_bits(kernel, left, size) & read_bits(kernel, right, size), size)


@kernel_symbol("_find_next_bit", runs_guest=True)
def find_next_bit(kernel: Kernel, first: Ptr, second: Ptr, third: Ptr, fourth: Ptr, invert: Ptr, little: Ptr) -> int:
    """First 1 from ``start`` on, or ``size``.

    From 6.1 the arguments are (address, size, start); before (address, other or NULL, size, start, inversion, byte order).
    """
    if not line_facts(kernel.generation.kernel).find_next_bit_combined:
        return first_set(read_bits(kernel, first, second), second, third)
    value = read_bits(kernel, first, third)
    if second:
        value &= read_bits(kernel, second, third)
    return first_set(value ^ _all(third) if invert else value, third, fourth)


@kernel_symbol("_find_next_zero_bit", runs_guest=True)
def find_next_zero_bit(kernel: Kernel, address: Ptr, size: U64, start: U64) -> int:
    """First 0 from ``start`` on, or ``size``."""
    return first_set(read_bits(kernel, address, size) ^ _all(size), size, start)


@kernel_symbol("_find_next_and_bit", runs_guest=True)
def find_next_and_bit(kernel: Kernel, left: Ptr, right: Ptr, size: U64, start: U64) -> int:
    """First bit from ``start`` on that is 1 in both, or ``size``."""
    return first_set(read_bits(kernel, left, size) & read_bits(kernel, right, size), size, start)


@kernel_symbol("_find_next_andnot_bit", runs_guest=True)
def find_next_andnot_bit(kernel: Kernel, left: Ptr, right: Ptr, size: U64, start: U64) -> int:
    """First bit from ``start`` on that is 1 in ``left`` and 0 in ``right``, or ``size``."""
    return first_set(read_bits(kernel, left, size) & ~read_bits(kernel, right, size), size, start)


@kernel_symbol("_find_next_or_bit", runs_guest=True)
def find_next_or_bit(kernel: Kernel, left: Ptr, right: Ptr, size: U64, start: U64) -> int:
    """First bit from ``start`` on that is 1 in one of them, or ``size``."""
    return first_set(read_bits(kernel, left, size) | read_bits(kernel, right, size), size, start)


@kernel_symbol("_find_last_bit", "find_last_bit", runs_guest=True)
def find_last_bit(kernel: Kernel, address: Ptr, size: U64) -> int:
    """Last 1, or ``size``."""
    return read_bits(kernel, address, size).bit_length() - 1 if read_bits(kernel, address, size) else size


@kernel_symbol("__find_nth_bit", runs_guest=True)
def find_nth_bit(kernel: Kernel, address: Ptr, size: U64, n: U64) -> int:
    """The 1 with number ``n`` (from 0), or ``size``."""
    value = read_bits(kernel, address, size)
    if n >= value.bit_count():
        return size
    for _ in range(n):
        value &= value - 1
    return first_set(value, size)


@kernel_symbol("find_next_clump8", runs_guest=True)
def find_next_clump8(kernel: Kernel, clump: Ptr, address: Ptr, size: U64, offset: U64) -> int:
    """First byte from bit ``offset`` on that is not 0: its bit number, itself in ``*clump``."""
    value = read_bits(kernel, address, size)
    found = first_set(value, size, offset)
    if found == size:
        return size
    found &= ~7
    store(kernel, clump, (value >> found & 0xFF).to_bytes(8, "little"))
    return found


# Counting. The assembly-friendly entries keep all other registers, which the stub does anyway.


@kernel_symbol("__sw_hweight64")
def sw_hweight64(kernel: Kernel, value: U64) -> int:
    """Ones of 64 bits."""
    return value.bit_count()


@kernel_symbol("__sw_hweight32")
def sw_hweight32(kernel: Kernel, value: U32) -> int:
    """Ones of 32 bits."""
    return value.bit_count()


@kernel_symbol("__sw_hweight16")
def sw_hweight16(kernel: Kernel, value: U32) -> int:
    """Ones of 16 bits."""
    return (value & 0xFFFF).bit_count()


@kernel_symbol("__sw_hweight8")
def sw_hweight8(kernel: Kernel, value: U8) -> int:
    """Ones of 8 bits."""
    return value.bit_count()


@kernel_variable("byte_rev_table", 256, section="rodata")
def byte_rev_table(kernel: Kernel) -> bytes:
    """Every byte with its bits in reverse."""
    return bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


# Bitmaps


def _register_operation(name: str, combine: Callable[[int, int], int], reports: bool) -> None:
    def operate(kernel: Kernel, dest: Ptr, left: Ptr, right: Ptr, bits: U32) -> int | None:
        """``dest`` from two bitmaps; for and/andnot whether anything is left."""
        value = combine(read_bits(kernel, left, bits), read_bits(kernel, right, bits)) & _all(bits)
        write_bits(kernel, dest, bits, value)
        return bool(value) if reports else None

    kernel_symbol(f"__bitmap_{name}", runs_guest=True)(operate)


_register_operation("and", lambda a, b: a & b, True)
_register_operation("andnot", lambda a, b: a & ~b, True)
_register_operation("or", lambda a, b: a | b, False)
_register_operation("xor", lambda a, b: a ^ b, False)


def _register_test(name: str, test: Callable[[int, int], bool]) -> None:
    def ask(kernel: Kernel, left: Ptr, right: Ptr, bits: U32) -> int:
        """Whether two bitmaps stand in the relation."""
        return test(read_bits(kernel, left, bits), read_bits(kernel, right, bits))

    kernel_symbol(f"__bitmap_{name}", runs_guest=True)(ask)


_register_test("equal", lambda a, b: a == b)
_register_test("intersects", lambda a, b: bool(a & b))
_register_test("subset", lambda a, b: not a & ~b)


@kernel_symbol("__bitmap_complement", runs_guest=True)
def bitmap_complement(kernel: Kernel, dest: Ptr, src: Ptr, bits: U32) -> None:
    """``dest`` is the inverse."""
    write_bits(kernel, dest, bits, ~read_bits(kernel, src, bits))


@kernel_symbol("__bitmap_weight", runs_guest=True)
def bitmap_weight(kernel: Kernel, address: Ptr, bits: U32) -> int:
    """Number of ones."""
    return read_bits(kernel, address, bits).bit_count()


def _change(kernel: Kernel, address: int, start: int, length: int, value: bool) -> None:
    size = _words(start + length) * 8
    old, mask = read_bits(kernel, address, size), _all(max(length, 0)) << start
    write_bits(kernel, address, size, old | mask if value else old & ~mask)


@kernel_symbol("__bitmap_set", runs_guest=True)
def bitmap_set(kernel: Kernel, address: Ptr, start: U32, length: S32) -> None:
    """Set ``length`` bits."""
    _change(kernel, address, start, length, True)


@kernel_symbol("__bitmap_clear", runs_guest=True)
def bitmap_clear(kernel: Kernel, address: Ptr, start: U32, length: S32) -> None:
    """Clear ``length`` bits."""
    _change(kernel, address, start, length, False)


@kernel_symbol("__bitmap_shift_left", runs_guest=True)
def bitmap_shift_left(kernel: Kernel, dest: Ptr, src: Ptr, shift: U32, bits: U32) -> None:
    """Shift towards higher bit numbers."""
    write_bits(kernel, dest, bits, read_bits(kernel, src, bits) << shift)


@kernel_symbol("__bitmap_shift_right", runs_guest=True)
def bitmap_shift_right(kernel: Kernel, dest: Ptr, src: Ptr, shift: U32, bits: U32) -> None:
    """Shift towards lower bit numbers."""
    write_bits(kernel, dest, bits, read_bits(kernel, src, bits) >> shift)


@kernel_symbol("bitmap_find_next_zero_area_off", runs_guest=True)
def bitmap_find_next_zero_area_off(
    kernel: Kernel, address: Ptr, size: U64, start: U64, count: U32, align_mask: U64, align_offset: U64
) -> int:
    """First area of ``count`` zeros with the alignment; a number above ``size`` where there is none."""
    free = read_bits(kernel, address, size) ^ _all(size)
    while True:
        index = first_set(free, size, start)
        index = ((index + align_offset + align_mask) & ~align_mask) - align_offset
        if index + count > size:
            return index + count
        taken = first_set(~free & _all(index + count), index + count, index)
        if taken == index + count:
            return index
        start = taken + 1


@kernel_symbol("bitmap_find_free_region", runs_guest=True)
def bitmap_find_free_region(kernel: Kernel, address: Ptr, bits: U32, order: S32) -> int:
    """Take the first free aligned region of ``2**order`` bits; -ENOMEM where there is none."""
    value = read_bits(kernel, address, bits)
    for start in range(0, bits - (1 << order) + 1, 1 << order):
        if not value >> start & _all(1 << order):
            _change(kernel, address, start, 1 << order, True)
            return start
    return -ENOMEM


@kernel_symbol("bitmap_release_region", runs_guest=True)
def bitmap_release_region(kernel: Kernel, address: Ptr, start: U32, order: S32) -> None:
    """Give a region back."""
    _change(kernel, address, start, _region(order), False)


def _region(order: int) -> int:
    """``BIT(order)``: the CPU shifts by the low six bits."""
    return 1 << (order & 63)


@kernel_symbol("bitmap_allocate_region", runs_guest=True)
def bitmap_allocate_region(kernel: Kernel, address: Ptr, start: U32, order: S32) -> int:
    """Take a certain region; -EBUSY where a bit of it is set."""
    if read_bits(kernel, address, start + _region(order)) >> start:
        return -EBUSY
    _change(kernel, address, start, _region(order), True)
    return 0


@kernel_symbol("bitmap_alloc", runs_guest=True)
def bitmap_alloc(kernel: Kernel, bits: U32, flags: U32) -> int:
    """Memory for a bitmap; NULL without any."""
    return kernel.part(Slab).kmalloc(_words(bits), flags) or 0


@kernel_symbol("bitmap_zalloc", runs_guest=True)
def bitmap_zalloc(kernel: Kernel, bits: U32, flags: U32) -> int:
    """The same, zeroed."""
    return bitmap_alloc(kernel, bits, flags | line_facts(kernel.generation.kernel).gfp_zero)


@kernel_symbol("bitmap_free", runs_guest=True)
def bitmap_free(kernel: Kernel, address: Ptr) -> None:
    """Free a bitmap."""
    kernel.part(Slab).kfree(address, "bitmap_free")


@kernel_symbol("bitmap_parselist", runs_guest=True)
def bitmap_parselist(kernel: Kernel, text: Ptr, address: Ptr, bits: S32) -> int:
    """A bitmap from ``0-3,8,10-20:2/4``; -EINVAL for other text or a reverse range, -ERANGE behind the end."""
    value = 0
    for part in load_string(kernel, text).decode("latin-1").split(","):
        for piece in part.split():
            parsed = _parse_range(piece, bits)
            if isinstance(parsed, str):
                return {"range": -ERANGE, "overflow": -EOVERFLOW}.get(parsed, -EINVAL)
            value |= parsed[0]
    write_bits(kernel, address, bits, value)
    return 0


def _parse_range(piece: str, bits: int) -> tuple[int] | str:
    span, _, pattern = piece.partition(":")
    low_text, dash, high_text = ("0", "-", "N") if span.lower() == "all" else span.partition("-")
    numbers = []
    for text in (low_text, high_text if dash else low_text):
        if text == "N":
            numbers.append(bits - 1)
        elif text.isdecimal():
            numbers.append(int(text))
        else:
            return "invalid"
    low, high = numbers
    used = group = high - low + 1
    if pattern:
        used_text, slash, group_text = pattern.partition("/")
        if not (slash and used_text.isdecimal() and group_text.isdecimal()):
            return "invalid"
        used, group = int(used_text), int(group_text)
    if max(low, high, used, group) >> 32:
        return "overflow"
    if low > high or group == 0 or used > group:
        return "invalid"
    if high >= bits:
        return "range"
    return (sum(1 << bit for bit in range(low, high + 1) if (bit - low) % group < used),)


@kernel_symbol("bitmap_print_to_pagebuf", runs_guest=True)
def bitmap_print_to_pagebuf(kernel: Kernel, as_list: Bool, buffer: Ptr, mask: Ptr, bits: S32) -> int:
    """A bitmap and a newline into a page: hex, or a list of ranges."""
    text = kernel.format("%*pbl\n" if as_list else "%*pb\n", ValueArgs((bits, mask)))
    room = _PAGE_SIZE - buffer % _PAGE_SIZE
    data = text.encode("latin-1")[: room - 1]
    store(kernel, buffer, data + b"\0")
    return len(data)
