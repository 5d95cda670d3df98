"""Which function answers which packet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pkvm_emu.debug.stops import Resume

if TYPE_CHECKING:
    from pkvm_emu.debug.session import Session

EMPTY, OK = b"", b"OK"
#: Errors by number: what was asked for is malformed, is not there, is not memory.
BAD_REQUEST, NO_SUCH, NO_MEMORY = b"E22", b"E03", b"E14"


@dataclass(frozen=True, slots=True)
class Go:
    """The packet lets the guest run; its answer is the next stop."""

    resume: Resume


@dataclass(frozen=True, slots=True)
class Leave:
    """The packet ends the session.

    Attributes:
        answer: what is sent before.
        kills: the run ends too.
    """

    answer: bytes
    kills: bool = False


Answer = bytes | Go | Leave
Handler = Callable[["Session", bytes], Answer]
_HANDLERS: dict[bytes, Handler] = {}
_LONGEST = 0


class Malformed(ValueError):
    """A packet that does not say what its command needs."""


def packet(*names: str) -> Callable[[Handler], Handler]:
    """Let a function answer packets that begin with one of ``names``; it gets what follows the name."""

    def register(handler: Handler) -> Handler:
        global _LONGEST
        for name in names:
            _HANDLERS[name.encode()] = handler
            _LONGEST = max(_LONGEST, len(name))
        return handler

    return register


def find(data: bytes) -> tuple[Handler, bytes] | None:
    """The function for a packet (that of the longest name) and what it is to get."""
    for length in range(min(len(data), _LONGEST), 0, -1):
        handler = _HANDLERS.get(data[:length])
        if handler is not None and _is_whole(data, length):
            return handler, data[length:]
    return None


def _is_whole(data: bytes, length: int) -> bool:
    """Names of several letters end where the packet does or at a sign: ``qC`` is not the beginning of ``qCRC``."""
    return length in (1, len(data)) or not (data[length - 1 : length].isalnum() and data[length : length + 1].isalnum())


# Numbers


def hex_number(data: bytes) -> int:
    """A hexadecimal number.

    Raises:
        Malformed: it is none.
    """
    if not data or len(data) > 32 or not all(byte in b"0123456789abcdefABCDEF" for byte in data):
        raise Malformed(f"{data[:40]!r} is no number")
    return int(data, 16)


def address_and_size(data: bytes) -> tuple[int, int]:
    """``addr,length``; errors as for :func:`hex_number`."""
    address, comma, size = data.partition(b",")
    if not comma:
        raise Malformed("an address and a length are needed")
    return hex_number(address), hex_number(size)


def from_hex(data: bytes) -> bytes:
    """Bytes from two digits each.

    Raises:
        Malformed: they are not.
    """
    try:
        return bytes.fromhex(data.decode("ascii"))
    except ValueError:
        raise Malformed("bytes are two hexadecimal digits each") from None


def escape_text(data: bytes) -> bytes:
    """Text as two digits a byte."""
    return data.hex().encode()
