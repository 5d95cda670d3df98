"""Registers: ``g G p P``, and the thread that they are about: ``Hg``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.debug.packets.registry import (
    BAD_REQUEST,
    NO_SUCH,
    OK,
    Answer,
    Malformed,
    escape_text,
    from_hex,
    hex_number,
    packet,
)
from pkvm_emu.debug.registers import IN_G, REGISTERS

if TYPE_CHECKING:
    from pkvm_emu.debug.session import Session


def split_thread(session: Session, data: bytes) -> tuple[bytes, int]:
    """What comes before ``;thread:ID;`` (lldb), and the CPU; without it the CPU chosen by ``Hg``."""
    rest, separator, suffix = data.partition(b";thread:")
    if not separator:
        return data.rstrip(b";"), session.cpu
    return rest, session.cpu_of(suffix.rstrip(b";"))


def encode(value: int, bits: int) -> bytes:
    """A register as its bytes, lowest first."""
    return escape_text(value.to_bytes(bits // 8, "little"))


@packet("g")
def read_all(session: Session, data: bytes) -> Answer:
    """The core, SIMD and PAC mask registers."""
    _, cpu = split_thread(session, data)
    chosen = REGISTERS[:IN_G]
    values = session.debugger.registers.read_many(cpu, chosen)
    return b"".join(encode(value, register.bits) for value, register in zip(values, chosen, strict=True))


@packet("G")
def write_all(session: Session, data: bytes) -> Answer:
    """Write as many of them as the packet has."""
    digits, cpu = split_thread(session, data)
    raw = from_hex(digits)
    position = 0
    for register in REGISTERS[:IN_G]:
        size = register.bits // 8
        if position + size > len(raw):
            break
        session.debugger.registers.write(cpu, register.name, int.from_bytes(raw[position : position + size], "little"))
        position += size
    return OK


@packet("p")
def read_one(session: Session, data: bytes) -> Answer:
    """One register by number."""
    digits, cpu = split_thread(session, data)
    number = hex_number(digits)
    if number >= len(REGISTERS):
        return NO_SUCH
    register = REGISTERS[number]
    return encode(session.debugger.registers.read_many(cpu, [register])[0], register.bits)


@packet("P")
def write_one(session: Session, data: bytes) -> Answer:
    """Write one register."""
    rest, cpu = split_thread(session, data)
    digits, equals, value = rest.partition(b"=")
    number = hex_number(digits)
    if not equals or number >= len(REGISTERS):
        return NO_SUCH
    register = REGISTERS[number]
    raw = from_hex(value)
    if len(raw) != register.bits // 8:
        return BAD_REQUEST
    session.debugger.registers.write(cpu, register.name, int.from_bytes(raw, "little"))
    return OK


@packet("H")
def choose_thread(session: Session, data: bytes) -> Answer:
    """``Hg``: whose registers are meant; ``Hc``: who is to be stepped by ``s``. 0 and -1 leave the choice."""
    if data[:1] not in (b"g", b"c"):
        raise Malformed("H takes g or c")
    if data[1:] in (b"0", b"-1", b""):
        return OK
    cpu = session.cpu_of(data[1:])
    if data[:1] == b"g":
        session.cpu = cpu
    return OK
