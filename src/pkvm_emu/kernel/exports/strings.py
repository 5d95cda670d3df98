"""String functions (``lib/string.c``, ``lib/string_helpers.c``, ``lib/ctype.c``)."""

from __future__ import annotations

from errno import E2BIG, EINVAL

from pkvm_emu.kernel.guest_access import load, load_string, load_u64, require_mapped, store, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import bug, fortify_panic
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.registry import kernel_symbol, kernel_variable
from pkvm_emu.machine.calling import S32, U8, U32, U64, Ptr

_INT_MAX = (1 << 31) - 1
_SPACE = b"\t\n\v\f\r \xa0"


def _compare(left: bytes, right: bytes) -> int:
    return (left > right) - (left < right)


def _fold(data: bytes) -> bytes:
    return data.lower()


# Length and comparison


@kernel_symbol("strlen", runs_guest=True)
def strlen(kernel: Kernel, s: Ptr) -> int:
    """Bytes before the NUL."""
    return len(load_string(kernel, s))


@kernel_symbol("strnlen", runs_guest=True)
def strnlen(kernel: Kernel, s: Ptr, count: U64) -> int:
    """Bytes before the NUL, ``count`` at most."""
    return len(load_string(kernel, s, count))


@kernel_symbol("strcmp", runs_guest=True)
def strcmp(kernel: Kernel, left: Ptr, right: Ptr) -> int:
    """-1, 0 or 1."""
    return _compare(load_string(kernel, left), load_string(kernel, right))


@kernel_symbol("strncmp", runs_guest=True)
def strncmp(kernel: Kernel, left: Ptr, right: Ptr, count: U64) -> int:
    """Compare ``count`` bytes at most."""
    return _compare(load_string(kernel, left, count), load_string(kernel, right, count))


@kernel_symbol("strcasecmp", runs_guest=True)
def strcasecmp(kernel: Kernel, left: Ptr, right: Ptr) -> int:
    """Compare without case; the difference of the first bytes that differ."""
    return _case_difference(load_string(kernel, left), load_string(kernel, right))


@kernel_symbol("strncasecmp", runs_guest=True)
def strncasecmp(kernel: Kernel, left: Ptr, right: Ptr, count: U64) -> int:
    """Compare ``count`` bytes at most without case."""
    return _case_difference(load_string(kernel, left, count), load_string(kernel, right, count))


def _case_difference(left: bytes, right: bytes) -> int:
    for a, b in zip(_fold(left) + b"\0", _fold(right) + b"\0", strict=False):
        if a != b:
            return a - b
    return 0


@kernel_symbol("sysfs_streq", runs_guest=True)
def sysfs_streq(kernel: Kernel, left: Ptr, right: Ptr) -> int:
    """Equal but for one newline at the end."""
    first, second = load_string(kernel, left), load_string(kernel, right)
    return first == second or first.removesuffix(b"\n") == second or first == second.removesuffix(b"\n")


@kernel_symbol("match_string", runs_guest=True)
def match_string(kernel: Kernel, array: Ptr, count: U64, string: Ptr) -> int:
    """Index of a string in an array of ``count`` pointers (-1: up to a NULL), or -EINVAL."""
    return _match(kernel, array, count, load_string(kernel, string), newline=False)


@kernel_symbol("__sysfs_match_string", runs_guest=True)
def sysfs_match_string(kernel: Kernel, array: Ptr, count: U64, string: Ptr) -> int:
    """As ``match_string``, but for one newline at the end."""
    return _match(kernel, array, count, load_string(kernel, string), newline=True)


def _match(kernel: Kernel, array: int, count: int, wanted: bytes, newline: bool) -> int:
    for index in range(min(count, 1 << 20)):
        pointer = load_u64(kernel, array + 8 * index)
        if not pointer:
            break
        item = load_string(kernel, pointer)
        if item == wanted or (newline and item == wanted.removesuffix(b"\n")):
            return index
    return -EINVAL


# Copying


@kernel_symbol("strcpy", runs_guest=True)
def strcpy(kernel: Kernel, dest: Ptr, src: Ptr) -> int:
    """Copy with the NUL; returns ``dest``."""
    store(kernel, dest, load_string(kernel, src) + b"\0")
    return dest


@kernel_symbol("stpcpy", runs_guest=True)
def stpcpy(kernel: Kernel, dest: Ptr, src: Ptr) -> int:
    """Copy with the NUL; returns where the NUL is."""
    data = load_string(kernel, src)
    store(kernel, dest, data + b"\0")
    return dest + len(data)


@kernel_symbol("strncpy", runs_guest=True)
def strncpy(kernel: Kernel, dest: Ptr, src: Ptr, count: U64) -> int:
    """Copy ``count`` bytes, filled up with NULs; without one where the text is longer."""
    if count:
        store(kernel, dest, load_string(kernel, src, count).ljust(count, b"\0"))
    return dest


@kernel_symbol("strlcpy", runs_guest=True)
def strlcpy(kernel: Kernel, dest: Ptr, src: Ptr, size: U64) -> int:
    """Copy what fits into ``size`` bytes with its NUL; returns the length of ``src``."""
    data = load_string(kernel, src)
    if size:
        store(kernel, dest, data[: size - 1] + b"\0")
    return len(data)


@kernel_symbol("strscpy", "sized_strscpy", runs_guest=True)
def strscpy(kernel: Kernel, dest: Ptr, src: Ptr, count: U64) -> int:
    """Copy what fits with its NUL; the length, or -E2BIG where it was cut (and for sizes of 0 and above INT_MAX)."""
    if count == 0 or count > _INT_MAX:
        return -E2BIG
    data = load_string(kernel, src, count)
    if len(data) < count:
        store(kernel, dest, data + b"\0")
        return len(data)
    store(kernel, dest, data[:-1] + b"\0")
    return -E2BIG


@kernel_symbol("strscpy_pad", runs_guest=True)
def strscpy_pad(kernel: Kernel, dest: Ptr, src: Ptr, count: U64) -> int:
    """As ``strscpy``, and fills the rest with NULs."""
    written = strscpy(kernel, dest, src, count)
    if 0 <= written < count - 1:
        require_mapped(kernel, dest, count)
        store(kernel, dest + written + 1, bytes(count - written - 1))
    return written


@kernel_symbol("strcat", runs_guest=True)
def strcat(kernel: Kernel, dest: Ptr, src: Ptr) -> int:
    """Append."""
    store(kernel, dest + len(load_string(kernel, dest)), load_string(kernel, src) + b"\0")
    return dest


@kernel_symbol("strncat", runs_guest=True)
def strncat(kernel: Kernel, dest: Ptr, src: Ptr, count: U64) -> int:
    """Append ``count`` bytes at most, and a NUL."""
    if count:
        store(kernel, dest + len(load_string(kernel, dest)), load_string(kernel, src, count) + b"\0")
    return dest


@kernel_symbol("strlcat", runs_guest=True)
def strlcat(kernel: Kernel, dest: Ptr, src: Ptr, size: U64) -> int:
    """Append what fits into ``size`` bytes; the length that was wanted. A ``dest`` that fills them is a kernel BUG."""
    present = len(load_string(kernel, dest, size))
    data = load_string(kernel, src)
    if present >= size:
        raise bug(kernel, "lib/string.c")
    store(kernel, dest + present, data[: size - present - 1] + b"\0")
    return present + len(data)


# Searching


def _found(base: int, index: int) -> int:
    return base + index if index >= 0 else 0


@kernel_symbol("strchr", runs_guest=True)
def strchr(kernel: Kernel, s: Ptr, c: U8) -> int:
    """First place of a byte (its NUL included), or NULL."""
    return _found(s, (load_string(kernel, s) + b"\0").find(c))


@kernel_symbol("strchrnul", runs_guest=True)
def strchrnul(kernel: Kernel, s: Ptr, c: U8) -> int:
    """First place of a byte, or of the NUL."""
    data = load_string(kernel, s)
    index = data.find(c)
    return s + (index if index >= 0 else len(data))


@kernel_symbol("strnchrnul", runs_guest=True)
def strnchrnul(kernel: Kernel, s: Ptr, count: U64, c: U32) -> int:
    """As ``strchrnul`` in ``count`` bytes at most."""
    data = load_string(kernel, s, count)
    index = data.find(c & 0xFF)
    return s + (index if index >= 0 else len(data))


@kernel_symbol("strrchr", runs_guest=True)
def strrchr(kernel: Kernel, s: Ptr, c: U8) -> int:
    """Last place of a byte, or NULL."""
    return _found(s, (load_string(kernel, s) + b"\0").rfind(c))


@kernel_symbol("strnchr", runs_guest=True)
def strnchr(kernel: Kernel, s: Ptr, count: U64, c: U8) -> int:
    """First place of a byte in ``count`` bytes at most, or NULL."""
    data = load_string(kernel, s, count)
    return _found(s, (data + b"\0" if len(data) < count else data).find(c))


@kernel_symbol("strstr", runs_guest=True)
def strstr(kernel: Kernel, s: Ptr, wanted: Ptr) -> int:
    """First place of a string, or NULL."""
    return _found(s, load_string(kernel, s).find(load_string(kernel, wanted)))


@kernel_symbol("strnstr", runs_guest=True)
def strnstr(kernel: Kernel, s: Ptr, wanted: Ptr, length: U64) -> int:
    """First place of a string in the ``length`` bytes at ``s`` (NULs do not end them), or NULL."""
    pattern = load_string(kernel, wanted)
    return s if not pattern else _found(s, load(kernel, s, length).find(pattern))


@kernel_symbol("strspn", runs_guest=True)
def strspn(kernel: Kernel, s: Ptr, accept: Ptr) -> int:
    """Length of the part that has only bytes of ``accept``."""
    data = load_string(kernel, s)
    return len(data) - len(data.lstrip(load_string(kernel, accept) or b"\0"))


@kernel_symbol("strcspn", runs_guest=True)
def strcspn(kernel: Kernel, s: Ptr, reject: Ptr) -> int:
    """Length of the part without a byte of ``reject``."""
    return _first_of(load_string(kernel, s), load_string(kernel, reject))


def _first_of(data: bytes, wanted: bytes) -> int:
    return next((index for index, byte in enumerate(data) if byte in wanted), len(data))


@kernel_symbol("strpbrk", runs_guest=True)
def strpbrk(kernel: Kernel, s: Ptr, accept: Ptr) -> int:
    """First place of a byte of ``accept``, or NULL."""
    data = load_string(kernel, s)
    index = _first_of(data, load_string(kernel, accept))
    return s + index if index < len(data) else 0


@kernel_symbol("strsep", runs_guest=True)
def strsep(kernel: Kernel, cursor: Ptr, separators: Ptr) -> int:
    """The next piece of ``*cursor``, ended by a NUL; NULL at the end. ``*cursor`` moves on."""
    start = load_u64(kernel, cursor)
    if not start:
        return 0
    data = load_string(kernel, start)
    index = _first_of(data, load_string(kernel, separators))
    following = 0
    if index < len(data):
        store(kernel, start + index, b"\0")
        following = start + index + 1
    store_uint(kernel, cursor, following, 8)
    return start


# Editing


@kernel_symbol("skip_spaces", runs_guest=True)
def skip_spaces(kernel: Kernel, s: Ptr) -> int:
    """The first place that is no white space."""
    data = load_string(kernel, s)
    return s + len(data) - len(data.lstrip(_SPACE))


@kernel_symbol("strim", runs_guest=True)
def strim(kernel: Kernel, s: Ptr) -> int:
    """Cut the white space behind, and return the first place that is none."""
    data = load_string(kernel, s)
    if data:
        store(kernel, s + len(data.rstrip(_SPACE)), b"\0")
    kept = data.rstrip(_SPACE)
    return s + len(kept) - len(kept.lstrip(_SPACE))


@kernel_symbol("strreplace", runs_guest=True)
def strreplace(kernel: Kernel, s: Ptr, old: U8, new: U8) -> int:
    """Replace a byte everywhere; 5.15 and 6.1 return the end of the string, later kernels its start."""
    data = load_string(kernel, s)
    store(kernel, s, data.replace(bytes((old,)), bytes((new,))))
    return s if line_facts(kernel.generation.kernel).strreplace_returns_start else s + len(data)


@kernel_symbol("string_upper", runs_guest=True)
def string_upper(kernel: Kernel, dest: Ptr, src: Ptr) -> None:
    """Copy in upper case."""
    store(kernel, dest, load_string(kernel, src).upper() + b"\0")


@kernel_symbol("string_lower", runs_guest=True)
def string_lower(kernel: Kernel, dest: Ptr, src: Ptr) -> None:
    """Copy in lower case."""
    store(kernel, dest, load_string(kernel, src).lower() + b"\0")


@kernel_symbol("string_get_size", runs_guest=True)
def string_get_size(kernel: Kernel, size: U64, block: U64, units: S32, buffer: Ptr, length: S32) -> int:
    """``size`` blocks in words: units 0 decimal (kB), 1 binary (KiB); three significant digits."""
    base, names = (
        (1000, ("B", "kB", "MB", "GB", "TB", "PB", "EB"))
        if not units & 1
        else (
            1024,
            ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"),
        )
    )
    amount, step, divisor = size * block, 0, 1
    while amount // divisor >= base and step < len(names) - 1:
        divisor *= base
        step += 1
    whole = amount // divisor
    text = f"{whole}"
    places = 0 if not step else max(3 - len(text), 0)
    if places:
        scaled = (amount * 10**places * 2 + divisor) // (2 * divisor)
        text = f"{scaled // 10**places}.{scaled % 10**places:0{places}d}"
    data = f"{text} {names[step]}".encode()
    if length > 0:
        store(kernel, buffer, data[: length - 1] + b"\0")
    return len(data)


# Fortify and character classes


@kernel_symbol("fortify_panic", "__fortify_panic", runs_guest=True)
def fortify_panic_symbol(kernel: Kernel, reason: Ptr, available: U64, wanted: U64) -> None:
    """A checked string or memory function would write or read past an object: a kernel BUG."""
    raise fortify_panic(kernel, "", reason)


_U, _L, _D, _C, _P, _S, _X, _SP = 1, 2, 4, 8, 16, 32, 64, 128


def character_class(code: int) -> int:
    """The bits of ``_ctype`` for a latin-1 code."""
    char = chr(code)
    if code == 0x20:
        return _S | _SP
    if code < 0x20 or code == 0x7F:
        return _C | (_S if char in "\t\n\v\f\r" else 0)
    if code < 0x7F:
        if char.isdigit():
            return _D
        if char.isalpha():
            return (_U if char.isupper() else _L) | (_X if char in "abcdefABCDEF" else 0)
        return _P
    if code < 0xA0:
        return 0
    if code == 0xA0:
        return _S | _SP
    if code < 0xC0 or code in (0xD7, 0xF7):
        return _P
    return _U if code < 0xDF else _L


@kernel_variable("_ctype", 256, section="rodata")
def ctype_table(kernel: Kernel) -> bytes:
    """Character classes."""
    return bytes(character_class(code) for code in range(256))
