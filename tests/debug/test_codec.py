"""Framing of packets: what is sent is received, and no bytes disturb what follows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pkvm_emu.debug.codec import PACKET_LIMIT, Decoder, Packet, Signal, checksum, escape, frame, unescape

PIECES = st.lists(st.binary(max_size=40), max_size=8)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return [*pieces, data[at:]]


@given(st.binary(max_size=300))
def test_escaped_bytes_come_back_and_hold_nothing_special(data: bytes) -> None:
    escaped = escape(data)
    assert unescape(escaped) == data
    assert not {0x23, 0x24, 0x2A} & set(escaped)


@given(PIECES, st.lists(st.integers(0, 9), max_size=60))
def test_packets_arrive_whole_however_the_bytes_are_cut(contents: list[bytes], sizes: list[int]) -> None:
    wire = b"".join(frame(escape(each)) for each in contents)
    decoder = Decoder()
    found = [event for piece in cut(wire, sizes) for event in decoder.feed(piece)]
    assert found == [Packet(escape(each)) for each in contents]


@given(st.binary(max_size=200))
def test_after_any_bytes_a_packet_is_understood_again(garbage: bytes) -> None:
    decoder = Decoder()
    decoder.feed(garbage)
    # At worst an open packet and its checksum swallow the first one.
    decoder.feed(frame(b"?"))
    assert Packet(b"vCont?") in decoder.feed(frame(b"g") + frame(b"vCont?"))


@given(st.binary(min_size=1, max_size=60).map(escape), st.integers(1, 255))
def test_a_wrong_checksum_is_a_broken_packet(data: bytes, error: int) -> None:
    wire = b"$" + data + b"#%02x" % ((checksum(data) + error) & 0xFF)
    assert Decoder().feed(wire) == [Signal.BROKEN]


def test_signs_between_packets_are_signals() -> None:
    assert Decoder().feed(b"+-x\x03$g#67+") == [
        Signal.ACK, Signal.NAK, Signal.INTERRUPT, Packet(b"g"), Signal.ACK,
    ]  # fmt: skip


def test_a_packet_longer_than_the_limit_is_refused_without_being_kept() -> None:
    decoder = Decoder()
    long = b"m" * (PACKET_LIMIT + 1)
    assert decoder.feed(b"$" + long) == []
    assert decoder.feed(b"#%02x" % checksum(long)) == [Signal.BROKEN]
    assert decoder.feed(frame(b"?")) == [Packet(b"?")]


def test_a_packet_that_is_cut_off_gives_way_to_the_next() -> None:
    assert Decoder().feed(b"$m1234" + frame(b"?")) == [Packet(b"?")]


def test_the_checksum_of_the_manual() -> None:
    assert frame(b"vCont?") == b"$vCont?#49"
