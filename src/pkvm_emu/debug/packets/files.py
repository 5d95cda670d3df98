"""``vFile``: the debugger reads the ELF files from us. No file of the host is ever opened here."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from pkvm_emu.debug import codec
from pkvm_emu.debug.packets.registry import EMPTY, Answer, Malformed, from_hex, hex_number, packet

if TYPE_CHECKING:
    from pkvm_emu.debug.session import Session

_ENOENT, _EACCES, _EBADF, _EMFILE = 2, 13, 9, 24
_ACCESS_MODE = 3
_MOST_OPEN = 64
_MOST = codec.PACKET_LIMIT // 2 - 32
_REGULAR_READABLE = 0o100444


@packet("vFile:")
def operate(session: Session, data: bytes) -> Answer:
    """``setfs``, ``open``, ``pread``, ``fstat``, ``close``; everything else is not there."""
    operation, _, rest = data.partition(b":")
    if operation == b"setfs":
        return b"F0"
    if operation == b"open":
        return _open(session, rest)
    if operation == b"close":
        return b"F0" if session.files.pop(hex_number(rest), None) is not None else _error(_EBADF)
    if operation == b"pread":
        return _read(session, rest)
    if operation == b"fstat":
        return _status(session, rest)
    return EMPTY


def _error(number: int) -> bytes:
    return b"F-1,%x" % number


def _open(session: Session, data: bytes) -> bytes:
    fields = data.split(b",")
    if len(fields) != 3:
        raise Malformed("open takes a name, flags and a mode")
    if hex_number(fields[1]) & _ACCESS_MODE:
        return _error(_EACCES)
    contents = session.debugger.libraries.read(from_hex(fields[0]).decode("utf-8", "replace"))
    if contents is None:
        return _error(_ENOENT)
    number = next((n for n in range(3, 3 + _MOST_OPEN) if n not in session.files), None)
    if number is None:
        return _error(_EMFILE)
    session.files[number] = contents
    return b"F%x" % number


def _read(session: Session, data: bytes) -> bytes:
    fields = data.split(b",")
    if len(fields) != 3:
        raise Malformed("pread takes a file, a count and an offset")
    number, count, offset = (hex_number(field) for field in fields)
    contents = session.files.get(number)
    if contents is None:
        return _error(_EBADF)
    piece = contents[offset : offset + min(count, _MOST)]
    return b"F%x;" % len(piece) + codec.escape(piece)


def _status(session: Session, data: bytes) -> bytes:
    contents = session.files.get(hex_number(data))
    if contents is None:
        return _error(_EBADF)
    # struct stat of the protocol: big-endian, times of 0.
    blocks = (len(contents) + 511) // 512
    status = struct.pack(">IIIIIIIQQQIII", 0, 0, _REGULAR_READABLE, 1, 0, 0, 0, len(contents), 512, blocks, 0, 0, 0)
    return b"F%x;" % len(status) + codec.escape(status)
