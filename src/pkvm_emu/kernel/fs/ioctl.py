"""Numbers of ioctl commands: direction, size, type and number, as ``include/uapi/asm-generic/ioctl.h`` packs them.

>>> hex(iowr("p", 1, 16))
'0xc0107001'
>>> describe(0xC0107001)
"_IOWR('p', 1, 16)"
"""

from __future__ import annotations

from typing import Final

from pkvm_emu.errors import UsageError

_NUMBER_BITS, _TYPE_SHIFT, _SIZE_SHIFT, _DIRECTION_SHIFT = 8, 8, 16, 30
_SIZE_LIMIT = 1 << 14
_NONE, _WRITE, _READ = 0, 1, 2
_NAMES: Final = ("_IO", "_IOW", "_IOR", "_IOWR")

#: What the kernel answers itself for every file.
FIONBIO, FIOASYNC, FIOCLEX, FIONCLEX = 0x5421, 0x5452, 0x5451, 0x5450


def _pack(direction: int, kind: str | int, number: int, size: int) -> int:
    code = ord(kind) if isinstance(kind, str) and len(kind) == 1 else kind
    if not isinstance(code, int) or not 0 <= code < 256:
        raise UsageError(f"ioctl type {kind!r}: one character, or a number below 256")
    if not 0 <= number < 1 << _NUMBER_BITS or not 0 <= size < _SIZE_LIMIT:
        raise UsageError(f"ioctl number {number}, size {size}: a number below 256 and a size below 16384")
    return direction << _DIRECTION_SHIFT | size << _SIZE_SHIFT | code << _TYPE_SHIFT | number


def io(kind: str | int, number: int) -> int:
    """``_IO``: a command without a structure."""
    return _pack(_NONE, kind, number, 0)


def ior(kind: str | int, number: int, size: int) -> int:
    """``_IOR``: the driver fills ``size`` bytes."""
    return _pack(_READ, kind, number, size)


def iow(kind: str | int, number: int, size: int) -> int:
    """``_IOW``: the driver reads ``size`` bytes."""
    return _pack(_WRITE, kind, number, size)


def iowr(kind: str | int, number: int, size: int) -> int:
    """``_IOWR``: the driver reads and fills ``size`` bytes."""
    return _pack(_READ | _WRITE, kind, number, size)


def size_of(command: int) -> int:
    """Bytes of the structure behind a command; 0 where its number names none."""
    return command >> _SIZE_SHIFT & _SIZE_LIMIT - 1


def describe(command: int) -> str:
    """A command in the words of a header."""
    kind = command >> _TYPE_SHIFT & 0xFF
    shown = f"'{chr(kind)}'" if 0x20 < kind < 0x7F else f"{kind:#x}"
    size = f", {size_of(command)}" if size_of(command) else ""
    return f"{_NAMES[command >> _DIRECTION_SHIFT & 3]}({shown}, {command & 0xFF}{size})"


#: The same by the names that headers use.
_IO, _IOR, _IOW, _IOWR = io, ior, iow, iowr
