"""The archives of an initramfs: cpio "newc" (070701, and 070702 with checksums), one after another, packed or not.

Source: Documentation/driver-api/early-userspace/buffer-format.rst, ``init/initramfs.c``.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import NamedTuple

from pkvm_emu.elf.decompress import UNPACKED_LIMIT, compression_of, decompress
from pkvm_emu.elf.elements import printable
from pkvm_emu.errors import InputError

_NEWC, _CRC, _ODC = b"070701", b"070702", b"070707"
_HEADER = 110
_FIELDS = 13
_PATH_MAX = 4096
_TRAILER = "TRAILER!!!"
#: Entries of one initramfs; a phone's has some hundreds.
ENTRY_LIMIT = 100_000


class Entry(NamedTuple):
    """One file, directory, symbolic link or device of an archive.

    Attributes:
        path: without a leading slash, ``.`` and ``..`` taken out; empty for the root.
        mode: file type and permissions, as in ``struct stat``.
        data: contents of a file, target of a symbolic link; else empty.
    """

    path: str
    mode: int
    data: memoryview

    @property
    def is_file(self) -> bool:
        """A regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        """A symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def is_directory(self) -> bool:
        """A directory."""
        return stat.S_ISDIR(self.mode)


class _Header(NamedTuple):
    inode: int
    mode: int
    uid: int
    gid: int
    links: int
    mtime: int
    size: int
    major: int
    minor: int
    special_major: int
    special_minor: int
    name_size: int
    checksum: int


def read_archives(data: bytes | memoryview, name: str) -> Iterator[Entry]:
    """The entries of everything that an initramfs image holds, in order; later ones replace earlier ones.

    Args:
        data: cpio archives and compressed cpio archives one after another, with zeros between them.
        name: what messages call the input.

    Raises:
        InputError: at the first damage; more than ``UNPACKED_LIMIT`` bytes or ``ENTRY_LIMIT`` entries.
    """
    view, position = memoryview(data), 0
    room, count = UNPACKED_LIMIT, 0
    while True:
        position = _skip_zeros(view, position)
        if position >= len(view):
            return
        rest = view[position:]
        if compression_of(rest) is not None:
            unpacked = decompress(rest, room, name)
            room -= len(unpacked.data)
            position += unpacked.consumed
            source, inner = memoryview(unpacked.data), True
        else:
            source, inner = rest, False
        archive = _Archives(source, name, inner)
        for entry in archive.entries():
            count += 1
            if count > ENTRY_LIMIT:
                raise InputError(f"{name}: more than {ENTRY_LIMIT} files, the limit")
            yield entry
        if not inner:
            position += archive.position


def _skip_zeros(view: memoryview, position: int) -> int:
    step = 4096
    while position < len(view):
        piece = bytes(view[position : position + step])
        stripped = piece.lstrip(b"\0")
        if stripped:
            return position + len(piece) - len(stripped)
        position += len(piece)
    return position


class _Archives:
    """The archives in one unpacked buffer.

    Outside of a packed part the first archive ends the reading, because something packed may follow.
    """

    def __init__(self, view: memoryview, name: str, whole: bool) -> None:
        self._view = view
        self._name = name
        self._whole = whole
        self.position = 0
        #: Contents of hard-linked files by device and inode; only one of the links carries them.
        self._linked: dict[tuple[int, int, int], memoryview] = {}
        self._waiting: dict[tuple[int, int, int], list[Entry]] = {}

    def entries(self) -> Iterator[Entry]:
        """Every entry; directories, devices and so on too."""
        while True:
            self.position = _skip_zeros(self._view, self.position)
            if self.position >= len(self._view):
                break
            yield from self._archive()
            if not self._whole:
                break
        yield from (entry for waiting in self._waiting.values() for entry in waiting)

    def _archive(self) -> Iterator[Entry]:
        # The kernel takes the end of the input for the end of the archive; a missing trailer is fine.
        while self.position < len(self._view):
            header = self._header()
            path = self._text(self.position + _HEADER, header.name_size)
            start = self.position + (_HEADER + header.name_size + 3 & ~3)
            if path == _TRAILER:
                self.position = min(start, len(self._view))
                self._linked.clear()
                return
            end = start + header.size
            if end > len(self._view):
                raise self._damage(f"{printable(path)} reaches beyond the end")
            data = self._view[start:end]
            if header.checksum and sum(data) & 0xFFFF_FFFF != header.checksum:
                raise self._damage(f"{printable(path)} has a wrong checksum")
            self.position = min(end + 3 & ~3, len(self._view))
            yield from self._entry(header, Entry(_clean(path), header.mode, data))

    def _entry(self, header: _Header, entry: Entry) -> Iterator[Entry]:
        if header.links < 2 or not entry.is_file:
            yield entry
            return
        key = (header.major, header.minor, header.inode)
        if len(entry.data):
            self._linked[key] = entry.data
            yield entry
            yield from (other._replace(data=entry.data) for other in self._waiting.pop(key, ()))
        elif key in self._linked:
            yield entry._replace(data=self._linked[key])
        else:
            self._waiting.setdefault(key, []).append(entry)

    def _header(self) -> _Header:
        raw = bytes(self._view[self.position : self.position + _HEADER])
        magic = raw[:6]
        if magic == _ODC:
            raise self._damage("old cpio format (070707); the kernel takes newc: cpio -H newc")
        if magic not in (_NEWC, _CRC):
            raise self._damage("no cpio archive (magic 070701) begins there, and no known compression")
        if len(raw) < _HEADER:
            raise self._damage("a header is cut off")
        try:
            fields = [int(raw[6 + 8 * index : 14 + 8 * index].decode("ascii"), 16) for index in range(_FIELDS)]
        except ValueError:
            raise self._damage("a header has fields that are no hexadecimal numbers") from None
        header = _Header(*fields)
        if magic == _NEWC:
            header = header._replace(checksum=0)
        if not 0 < header.name_size <= _PATH_MAX or header.size < 0:
            raise self._damage(f"a name of {header.name_size} bytes")
        return header

    def _text(self, start: int, size: int) -> str:
        raw = bytes(self._view[start : start + size])
        if len(raw) < size:
            raise self._damage("a name is cut off")
        return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")

    def _damage(self, what: str) -> InputError:
        return InputError(f"{self._name}: bad cpio data at offset {self.position:#x}: {what}")


def _clean(path: str) -> str:
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)
