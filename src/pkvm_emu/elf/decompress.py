"""Unpacking one compressed part of an initramfs: what it is, its contents, and how many bytes of the input it took.

The formats are those of the kernel's own decompressors (``lib/decompress*.c``) and the LZ4 frame format, which build tools make
too. LZO is refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from pkvm_emu.errors import InputError

#: All that one initramfs may unpack to, in bytes.
UNPACKED_LIMIT = 512 << 20
_CHUNK = 1 << 20
#: A Zstandard block of four bytes may stand for 128 KiB: small pieces bound what one step can make.
_ZSTD_CHUNK = 1 << 10
#: The largest window that the kernel takes (lib/decompress_unzstd.c).
_ZSTD_WINDOW = 1 << 27
_XZ_MEMORY = 256 << 20
#: A legacy LZ4 file is a sequence of blocks that unpack to up to 8 MiB, each behind its packed size.
_LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
_LZ4_BLOCK = 8 << 20
_LZ4_BLOCK_BOUND = _LZ4_BLOCK + _LZ4_BLOCK // 255 + 16


class Unpacked(NamedTuple):
    """What one compressed part holds, and the bytes of the input that it took."""

    data: bytes
    consumed: int


def compression_of(data: bytes | memoryview) -> str | None:
    """The name of the format that ``data`` begins with, or None where it is not compressed.

    >>> compression_of(b"\\x1f\\x8b\\x08..."), compression_of(b"070701")
    ('gzip', None)
    """
    head = bytes(data[:6])
    return next((name for magic, name in _MAGICS if head.startswith(magic)), None)


def decompress(data: memoryview, limit: int, name: str) -> Unpacked:
    """Unpack the compressed part at the beginning of ``data``.

    Args:
        data: begins with the magic of a known format; what follows the part is left alone.
        limit: bytes that the result may have.
        name: what messages call the input.

    Raises:
        InputError: damaged, in a format that is not supported, or larger than ``limit`` unpacked.
    """
    kind = compression_of(data)
    if kind not in _UNPACKERS:
        raise InputError(
            f"{name}: {kind or 'unknown'} compression is not supported; pack it with gzip, lz4, xz or zstd"
        )
    try:
        return _UNPACKERS[kind](data, limit)
    except _TooLargeError:
        raise InputError(f"{name}: unpacks to more than {UNPACKED_LIMIT >> 20} MiB, the limit") from None
    except (zlib.error, OSError, EOFError, ValueError, RuntimeError, MemoryError) as error:
        reason = str(error).strip() or type(error).__name__
        raise InputError(f"{name}: damaged {kind} data ({reason})") from None


class _TooLargeError(Exception):
    pass


class _Sink:
    """Collects output up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self.room = limit

    def add(self, piece: bytes) -> None:
        self.room -= len(piece)
        if self.room < 0:
            raise _TooLargeError
        if piece:
            self._pieces.append(piece)

    def result(self) -> bytes:
        return b"".join(self._pieces)


def _stream(make: Callable[[], Any], data: memoryview, limit: int) -> Unpacked:
    """Run a decompressor object with ``decompress(data, max_length)``, ``eof``, ``needs_input`` and ``unused_data``."""
    stream, sink, position = make(), _Sink(limit), 0
    while not stream.eof:
        piece = b""
        if stream.needs_input:
            piece = bytes(data[position : position + _CHUNK])
            position += len(piece)
            if not piece:
                raise EOFError("it ends early")
        sink.add(stream.decompress(piece, min(sink.room + 1, _CHUNK)))
    return Unpacked(sink.result(), position - len(stream.unused_data or b""))


def _gzip(data: memoryview, limit: int) -> Unpacked:
    stream, sink, position = zlib.decompressobj(31), _Sink(limit), 0
    while not stream.eof:
        piece = stream.unconsumed_tail
        if not piece:
            piece = bytes(data[position : position + _CHUNK])
            position += len(piece)
            if not piece:
                raise EOFError("it ends early")
        sink.add(stream.decompress(piece, min(sink.room + 1, _CHUNK)))
    return Unpacked(sink.result(), position - len(stream.unused_data))


def _bzip2(data: memoryview, limit: int) -> Unpacked:
    import bz2

    return _stream(bz2.BZ2Decompressor, data, limit)


def _xz(data: memoryview, limit: int) -> Unpacked:
    import lzma

    try:
        return _stream(lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY), data, limit)
    except lzma.LZMAError as error:
        raise ValueError(str(error)) from None


def _lz4_frame(data: memoryview, limit: int) -> Unpacked:
    import lz4.frame

    return _stream(lz4.frame.LZ4FrameDecompressor, data, limit)


def _lz4_legacy(data: memoryview, limit: int) -> Unpacked:
    import lz4.block

    sink, position = _Sink(limit), 0
    while position + 4 <= len(data):
        word = bytes(data[position : position + 4])
        size = int.from_bytes(word, "little")
        if word == _LZ4_LEGACY_MAGIC:
            position += 4
            continue
        # Padding, or the next part of the archive: "0707" reads as a size that no block has.
        if not size or size > _LZ4_BLOCK_BOUND:
            break
        if position + 4 + size > len(data):
            raise EOFError("it ends early")
        block = data[position + 4 : position + 4 + size]
        try:
            sink.add(lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK))
        except lz4.block.LZ4BlockError as error:
            raise ValueError(str(error)) from None
        position += 4 + size
    return Unpacked(sink.result(), position)


def _zstd(data: memoryview, limit: int) -> Unpacked:
    import zstandard

    stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
    sink, position = _Sink(limit), 0
    try:
        while not stream.eof:
            piece = bytes(data[position : position + _ZSTD_CHUNK])
            position += len(piece)
            if not piece:
                raise EOFError("it ends early")
            sink.add(stream.decompress(piece))
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None
    return Unpacked(sink.result(), position - len(stream.unused_data))


_MAGICS = (
    (b"\x1f\x8b", "gzip"),
    (b"\x1f\x9e", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x5d\x00\x00", "lzma"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (_LZ4_LEGACY_MAGIC, "lz4 (legacy)"),
    (b"\x04\x22\x4d\x18", "lz4 (frame)"),
    (b"\x89LZO", "LZO"),
)
_UNPACKERS: dict[str | None, Callable[[memoryview, int], Unpacked]] = {
    "gzip": _gzip,
    "bzip2": _bzip2,
    "xz": _xz,
    "lzma": _xz,
    "zstd": _zstd,
    "lz4 (legacy)": _lz4_legacy,
    "lz4 (frame)": _lz4_frame,
}
