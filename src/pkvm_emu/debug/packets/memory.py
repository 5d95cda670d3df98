"""Memory: ``m M x X``, physical addresses, and what is mapped where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.debug import codec
from pkvm_emu.debug.packets.registry import (
    BAD_REQUEST,
    NO_MEMORY,
    OK,
    Answer,
    Malformed,
    address_and_size,
    escape_text,
    from_hex,
    hex_number,
    packet,
)

if TYPE_CHECKING:
    from pkvm_emu.debug.session import Session

#: Bytes that one packet reads at most.
_MOST = codec.PACKET_LIMIT // 4


@packet("m")
def read(session: Session, data: bytes) -> Answer:
    """``m addr,length``: fewer bytes where memory ends."""
    address, size = address_and_size(data)
    found = session.debugger.memory.read(address, min(size, _MOST))
    return escape_text(found) if found or not size else NO_MEMORY


@packet("x")
def read_binary(session: Session, data: bytes) -> Answer:
    """``x addr,length``, as lldb uses it: the bytes themselves; ``OK`` for no bytes says that the packet is known."""
    address, size = address_and_size(data)
    if not size:
        return OK
    found = session.debugger.memory.read(address, min(size, _MOST))
    return codec.escape(found) if found else NO_MEMORY


@packet("M")
def write(session: Session, data: bytes) -> Answer:
    """``M addr,length:bytes`` in hexadecimal."""
    place, _, digits = data.partition(b":")
    address, size = address_and_size(place)
    raw = from_hex(digits)
    if len(raw) != size:
        return BAD_REQUEST
    return OK if session.debugger.memory.write(address, raw) else NO_MEMORY


@packet("X")
def write_binary(session: Session, data: bytes) -> Answer:
    """``X addr,length:bytes``."""
    place, colon, escaped = data.partition(b":")
    if not colon:
        raise Malformed("X needs data")
    address, size = address_and_size(place)
    raw = codec.unescape(escaped)
    if len(raw) != size:
        return BAD_REQUEST
    return OK if session.debugger.memory.write(address, raw) else NO_MEMORY


@packet("qqemu.PhyMemMode")
def ask_physical(session: Session, _data: bytes) -> Answer:
    """Whether addresses are physical."""
    return b"1" if session.debugger.memory.physical else b"0"


@packet("Qqemu.PhyMemMode:")
def choose_physical(session: Session, data: bytes) -> Answer:
    """Take addresses of memory packets as physical (1) or virtual (0)."""
    session.debugger.memory.physical = hex_number(data) != 0
    return OK


@packet("qMemoryRegionInfo:")
def region(session: Session, data: bytes) -> Answer:
    """The stretch around an address, its permissions and what lies there."""
    address = hex_number(data)
    memory = session.debugger.memory
    if memory.physical:
        ram = session.debugger.system.machine.ram
        inside = address in ram
        start, end = (ram.base, ram.end) if inside else ((0, ram.base) if address < ram.base else (ram.end, 1 << 64))
        return _region(start, end, "rw" if inside else "", "RAM" if inside else "")
    extent = memory.extent(address)
    if extent.leaf is None:
        return _region(extent.start, extent.end, "", "")
    rights = "r" + ("w" if extent.leaf.writable else "") + ("x" if extent.leaf.executable else "")
    return _region(extent.start, extent.end, rights, session.debugger.name_of_region(extent.start))


def _region(start: int, end: int, rights: str, name: str) -> bytes:
    out = f"start:{start:x};size:{end - start:x};"
    if rights:
        out += f"permissions:{rights};"
    if name:
        out += f"name:{name.encode().hex()};"
    return out.encode()
