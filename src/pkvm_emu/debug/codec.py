"""Framing of the GDB remote protocol: bytes to packets and back. It knows no command.

``$data#cs`` with a two-digit checksum; ``}`` escapes ``$ # } *``; a run is ``x*n``. ``+`` and ``-`` acknowledge, byte 3 interrupts.
Source: "Debugging with GDB", appendix "GDB Remote Serial Protocol".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

#: Bytes of a packet at most, framing not counted; what is longer is not taken.
PACKET_LIMIT = 0x10000
_SPECIAL = frozenset(b"$#}*")
_HEX = frozenset(b"0123456789abcdefABCDEF")


class Signal(Enum):
    """What comes beside packets."""

    ACK = "+"
    NAK = "-"
    INTERRUPT = "\x03"
    #: A packet with a wrong checksum, or one that is too long.
    BROKEN = "?"


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet: its contents as they were sent, escapes still in."""

    data: bytes


class Decoder:
    """Takes bytes as they come and gives packets and signals; bytes outside of packets that mean nothing are dropped."""

    def __init__(self) -> None:
        self._body: bytearray | None = None
        self._sum: bytearray | None = None
        self._is_broken = False

    def feed(self, data: bytes) -> list[Packet | Signal]:
        """What ``data`` completes."""
        found: list[Packet | Signal] = []
        for byte in data:
            if self._sum is not None:
                self._take_checksum(byte, found)
            elif self._body is not None:
                self._take_body(byte)
            elif byte == 0x24:
                self._body, self._is_broken = bytearray(), False
            elif byte in (0x2B, 0x2D, 0x03):
                found.append(Signal(chr(byte)))
        return found

    def _take_body(self, byte: int) -> None:
        assert self._body is not None
        if byte == 0x23:
            self._sum = bytearray()
        elif byte == 0x24:
            # A packet that was cut off, and the next.
            self._body, self._is_broken = bytearray(), False
        elif len(self._body) >= PACKET_LIMIT:
            self._is_broken = True
        else:
            self._body.append(byte)

    def _take_checksum(self, byte: int, found: list[Packet | Signal]) -> None:
        assert self._sum is not None
        assert self._body is not None
        self._sum.append(byte)
        if len(self._sum) < 2:
            return
        is_right = all(digit in _HEX for digit in self._sum) and int(self._sum, 16) == checksum(self._body)
        found.append(Packet(bytes(self._body)) if is_right and not self._is_broken else Signal.BROKEN)
        self._body = self._sum = None


def checksum(data: bytes | bytearray) -> int:
    """Sum of the bytes, modulo 256."""
    return sum(data) & 0xFF


def frame(data: bytes) -> bytes:
    """A packet on the wire; ``data`` is escaped already where it is binary."""
    return b"$" + data + b"#%02x" % checksum(data)


def escape(data: bytes) -> bytes:
    """Binary data for the inside of a packet."""
    if _SPECIAL.isdisjoint(data):
        return data
    return b"".join(bytes((0x7D, byte ^ 0x20)) if byte in _SPECIAL else bytes((byte,)) for byte in data)


def unescape(data: bytes) -> bytes:
    """What :func:`escape` was given; a lone escape at the end is dropped."""
    if 0x7D not in data:
        return data
    out = bytearray()
    is_escaped = False
    for byte in data:
        if is_escaped:
            out.append(byte ^ 0x20)
            is_escaped = False
        elif byte == 0x7D:
            is_escaped = True
        else:
            out.append(byte)
    return bytes(out)
