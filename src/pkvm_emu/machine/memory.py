"""Guest RAM with copy-on-write snapshots.

The RAM that Unicorn executes from is a private mapping of an anonymous file. The file holds the contents of the
*base* snapshot, the mapping the pages written since; going back to the base drops the private pages, so a restore costs
what was written and not what exists. Other snapshots form a tree: each holds its difference to its parent, and moving
the base from one to another applies the differences on the path.

:class:`CowRam` is the fast form (Linux: memfd, ``/proc/self/pagemap``, ``MADV_DONTNEED``). :class:`CopyRam` gives the
same answers on any host by comparing pages. :func:`make_ram` chooses.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

PAGE_SIZE = 4096
_ENTRIES_PER_CHUNK = 512
_PRIVATE_MASK = 7 << 61
_PRESENT = 1 << 63
_SWAPPED = 1 << 62


@dataclass(slots=True, eq=False)
class RamSnapshot:
    """One saved state of the RAM: its difference to ``parent`` by page index, both ways."""

    parent: RamSnapshot | None
    after: dict[int, bytes] = field(default_factory=dict)
    before: dict[int, bytes] = field(default_factory=dict)
    depth: int = 0

    def take_over(self, parent: RamSnapshot) -> None:
        """Hold the difference to the parent of ``parent`` from now on, so that the latter can go."""
        self.after = {**parent.after, **self.after}
        self.before = {**self.before, **parent.before}
        self.parent = parent.parent


class GuestRam:
    """One contiguous block of guest physical memory.

    Args:
        base: guest physical address of the first byte (multiple of 4 KiB).
        size: bytes (multiple of 4 KiB).

    All accessors take guest physical addresses and raise :class:`IndexError` outside the block.
    """

    def __init__(self, base: int, size: int) -> None:
        self.base = base
        self.size = size
        self.end = base + size
        self._map = self._new_mapping()
        self._view = memoryview(self._map)
        self._u64 = self._view.cast("Q")
        self.host_address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._snapshot: RamSnapshot | None = None

    def _new_mapping(self) -> mmap.mmap:
        raise NotImplementedError

    def __contains__(self, pa: int) -> bool:
        return self.base <= pa < self.end

    def _offset(self, pa: int, size: int) -> int:
        if pa < self.base or pa + size > self.end:
            raise IndexError(f"no RAM at physical address {pa:#x}")
        return pa - self.base

    def read(self, pa: int, size: int) -> bytes:
        """``size`` bytes from ``pa``."""
        offset = self._offset(pa, size)
        return bytes(self._view[offset : offset + size])

    def write(self, pa: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` at ``pa``. Translated code of those pages is not invalidated: see ``Machine.patch_code``."""
        offset = self._offset(pa, len(data))
        self._view[offset : offset + len(data)] = data

    def fill(self, pa: int, size: int, byte: int = 0) -> None:
        """Set ``size`` bytes to ``byte``."""
        offset = self._offset(pa, size)
        self._view[offset : offset + size] = bytes((byte,)) * size

    def read_u64(self, pa: int) -> int:
        """The 64-bit little-endian value at ``pa`` (any alignment)."""
        offset = pa - self.base
        if not offset & 7 and 0 <= offset < self.size:
            return self._u64[offset >> 3]
        return int.from_bytes(self.read(pa, 8), "little")

    def write_u64(self, pa: int, value: int) -> None:
        """Store a 64-bit little-endian value (any alignment)."""
        offset = pa - self.base
        if not offset & 7 and 0 <= offset < self.size:
            self._u64[offset >> 3] = value
        else:
            self.write(pa, value.to_bytes(8, "little"))

    def read_u32(self, pa: int) -> int:
        """The 32-bit little-endian value at ``pa``."""
        return int.from_bytes(self.read(pa, 4), "little")

    def write_u32(self, pa: int, value: int) -> None:
        """Store a 32-bit little-endian value."""
        self.write(pa, value.to_bytes(4, "little"))

    def nonzero_pages(self) -> Iterator[tuple[int, bytes]]:
        """The index and contents of each page that holds anything (for digests; reads the whole block)."""
        chunk_size = 64 * PAGE_SIZE
        zero_chunk, zero_page = bytes(chunk_size), bytes(PAGE_SIZE)
        for start in range(0, self.size, chunk_size):
            chunk = bytes(self._view[start : start + chunk_size])
            if chunk == zero_chunk[: len(chunk)]:
                continue
            for offset in range(0, len(chunk), PAGE_SIZE):
                page = chunk[offset : offset + PAGE_SIZE]
                if page != zero_page:
                    yield (start + offset) // PAGE_SIZE, page

    # Snapshots

    def snapshot(self) -> RamSnapshot:
        """Save the present contents as a child of the base, and make it the base."""
        parent = self._snapshot
        saved = RamSnapshot(parent, depth=parent.depth + 1 if parent else 0)
        for index in self._dirty_pages():
            start = index * PAGE_SIZE
            now = bytes(self._view[start : start + PAGE_SIZE])
            then = self._base_page(index)
            if now != then:
                saved.after[index] = now
                saved.before[index] = then
        self._store_base(saved.after)
        self._drop_private()
        self._snapshot = saved
        return saved

    def restore(self, saved: RamSnapshot) -> set[int]:
        """Bring back the contents of ``saved``.

        Returns:
            The indexes of the pages that differ between the old base and the new one (empty on the fast path).
        """
        changed: set[int] = set()
        if saved is not self._snapshot:
            changed = self._move_base(saved)
        self._drop_private()
        return changed

    def _move_base(self, saved: RamSnapshot) -> set[int]:
        up: RamSnapshot | None = self._snapshot
        down: RamSnapshot | None = saved
        forward: list[RamSnapshot] = []
        pages: dict[int, bytes] = {}
        while up is not down:
            if up is not None and (down is None or up.depth >= down.depth):
                pages.update(up.before)
                up = up.parent
            else:
                assert down is not None
                forward.append(down)
                down = down.parent
        for step in reversed(forward):
            pages.update(step.after)
        self._store_base(pages)
        self._snapshot = saved
        return set(pages)

    def _dirty_pages(self) -> list[int]:
        raise NotImplementedError

    def _base_page(self, index: int) -> bytes:
        raise NotImplementedError

    def _store_base(self, pages: dict[int, bytes]) -> None:
        raise NotImplementedError

    def _drop_private(self) -> None:
        raise NotImplementedError


class CowRam(GuestRam):
    """RAM whose written pages the host kernel tracks: snapshots and restores cost what was written."""

    def _new_mapping(self) -> mmap.mmap:
        self._fd = os.memfd_create("pkvm_emu-ram", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, self.size)
        self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        return mmap.mmap(self._fd, self.size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)

    def __del__(self) -> None:
        for name in ("_fd", "_pagemap"):
            with contextlib.suppress(OSError, AttributeError):
                os.close(getattr(self, name))

    def _dirty_pages(self) -> list[int]:
        pages: list[int] = []
        raw = os.pread(self._pagemap, self.size // PAGE_SIZE * 8, self.host_address // mmap.PAGESIZE * 8)
        empty = bytes(_ENTRIES_PER_CHUNK * 8)
        for start in range(0, len(raw), len(empty)):
            chunk = raw[start : start + len(empty)]
            if chunk == empty:
                continue
            first = start // 8
            for index, entry in enumerate(memoryview(chunk).cast("Q")):
                if entry & _PRIVATE_MASK in (_PRESENT, _SWAPPED):
                    pages.append(first + index)
        return pages

    def _base_page(self, index: int) -> bytes:
        return os.pread(self._fd, PAGE_SIZE, index * PAGE_SIZE)

    def _store_base(self, pages: dict[int, bytes]) -> None:
        for index, data in pages.items():
            os.pwrite(self._fd, data, index * PAGE_SIZE)

    def _drop_private(self) -> None:
        self._map.madvise(mmap.MADV_DONTNEED)


class CopyRam(GuestRam):
    """RAM for hosts without memfd, pagemap or ``MADV_DONTNEED``: pages are compared and copied."""

    _CHUNK = 64 * PAGE_SIZE

    def _new_mapping(self) -> mmap.mmap:
        # A sparse file rather than bytes: the base costs no memory where nothing was ever written.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the object)
        self._file.truncate(self.size)
        self._base = mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_WRITE)
        return mmap.mmap(-1, self.size)

    def _dirty_pages(self) -> list[int]:
        pages: list[int] = []
        now, base = self._map, self._base
        # Slices of a mapping are bytes, which compare as fast as memory is read; memoryviews go byte by byte.
        for start in range(0, self.size, self._CHUNK):
            stop = min(start + self._CHUNK, self.size)
            if now[start:stop] == base[start:stop]:
                continue
            for page in range(start, stop, PAGE_SIZE):
                if now[page : page + PAGE_SIZE] != base[page : page + PAGE_SIZE]:
                    pages.append(page // PAGE_SIZE)
        return pages

    def _base_page(self, index: int) -> bytes:
        return self._base[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]

    def _store_base(self, pages: dict[int, bytes]) -> None:
        for index, data in pages.items():
            self._base[index * PAGE_SIZE : (index + 1) * PAGE_SIZE] = data

    def _drop_private(self) -> None:
        for index in self._dirty_pages():
            start = index * PAGE_SIZE
            self._view[start : start + PAGE_SIZE] = self._base_page(index)


def make_ram(base: int, size: int) -> GuestRam:
    """The fastest kind of RAM that this host offers (checked by trying, not by name)."""
    if sys.platform == "linux" and mmap.PAGESIZE == PAGE_SIZE and hasattr(os, "memfd_create"):
        try:
            probe = CowRam(0, 4 * PAGE_SIZE)
            probe.write_u64(PAGE_SIZE, 1)
            probe.read_u64(2 * PAGE_SIZE)
            works = probe._dirty_pages() == [1]
            probe._drop_private()
            if works and probe.read_u64(PAGE_SIZE) == 0:
                return CowRam(base, size)
        except OSError:
            pass
    return CopyRam(base, size)
