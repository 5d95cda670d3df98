"""The host's side of one CPU's trace buffer: events one by one, the oldest first.

Source: kernel/trace/ring_buffer.c (a buffer with an external writer).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pkvm_emu.hyp import trace_layout as tl
from pkvm_emu.machine.memory import GuestRam
from pkvm_emu.machine.state import Journal, State


class Entry(NamedTuple):
    """One event in the buffer.

    Attributes:
        cpu: whose buffer.
        time_ns: its time stamp, nanoseconds since boot.
        pa: where its payload lies (the id first).
        size: bytes of the payload.
        lost: events that were dropped before this one.
        after: where in the page the next one begins.
    """

    cpu: int
    time_ns: int
    pa: int
    size: int
    lost: int
    after: int


class CpuReader(State):
    """Reads a CPU's buffer.

    Args:
        journal: owner of the position.
        ram: where the pages are.
        cpu: the CPU.
        meta: PA of the meta page.
        pages: PAs of the data pages, by their numbers.
        swap: asks the hypervisor for the next page.

    Attributes:
        page: number of the page that the host reads.
        offset: bytes of it that were read.
        read: events that were read since the last reset.
        lost: events lost before the next one.
        stamp: time of the last event that was read.
    """

    def __init__(
        self, journal: Journal, ram: GuestRam, cpu: int, meta: int, pages: tuple[int, ...], swap: Callable[[int], int]
    ) -> None:
        super().__init__(journal)
        self._ram = ram
        self._meta = meta
        self._pages = pages
        self._swap = swap
        self.cpu = cpu
        self.page = self.offset = self.read = self.lost = self.stamp = 0

    @property
    def meta(self) -> int:
        """PA of the meta page."""
        return self._meta

    @property
    def pages(self) -> tuple[int, ...]:
        """PAs of the data pages."""
        return self._pages

    @property
    def pending(self) -> int:
        """Events that can be read."""
        entries, overrun = (self._ram.read_u64(self._meta + offset) for offset in (tl.META_ENTRIES, tl.META_OVERRUN))
        return max(entries - overrun - self.read, 0)

    def peek(self) -> Entry | None:
        """The next event; None where there is none."""
        # A damaged page is left behind; no more than all of them can be.
        for _ in range(len(self._pages) + 1):
            if not self.pending:
                return None
            if self.offset >= self._committed:
                if not self._next_page():
                    return None
                continue
            entry = self._entry(self._pages[self.page], self.offset, self.stamp)
            if entry is not None:
                return entry
            self.offset = self._committed
        return None

    def consume(self, entry: Entry) -> None:
        """Go on behind an event that :meth:`peek` gave."""
        self.stamp = entry.time_ns
        self.offset = entry.after
        self.read += 1
        self.lost = 0

    def rewind(self) -> None:
        """The hypervisor has emptied the buffer."""
        self.offset = self.read = self.lost = 0

    def remaining(self, pages: list[int]) -> list[Entry]:
        """All events that were not read, without asking the hypervisor for pages.

        Args:
            pages: PAs of the data pages in order, the reader's first; only the hypervisor knows them.
        """
        out: list[Entry] = []
        for page in pages:
            offset, stamp = (self.offset, self.stamp) if page == self._pages[self.page] else (0, 0)
            while (entry := self._entry(page, offset, stamp)) is not None:
                out.append(entry)
                offset, stamp = entry.after, entry.time_ns
        return out

    def read_page(self) -> bytes:
        """The rest of the present page as ``trace_pipe_raw`` gives it: a page that begins with the next event."""
        entry = self.peek()
        if entry is None:
            return b""
        start = entry.pa - tl.EVENT_HEADER
        page = self._pages[self.page]
        first, out, count = entry, bytearray(), 0
        while entry is not None and entry.pa - page < tl.PAGE_SIZE and page == self._pages[self.page]:
            self.consume(entry)
            count += 1
            entry = self._entry(page, self.offset, self.stamp)
        out += self._ram.read(start, page + tl.PAGE_DATA + self.offset - start)
        head = first.time_ns.to_bytes(8, "little") + len(out).to_bytes(8, "little")
        # The first event of a page comes with its time, so its own difference is 0.
        word = int.from_bytes(out[:4], "little") & tl.TYPE_MASK
        out[:4] = word.to_bytes(4, "little")
        return (head + bytes(out)).ljust(tl.PAGE_SIZE, b"\0")

    @property
    def _committed(self) -> int:
        return self._committed_in(self._pages[self.page])

    def _committed_in(self, page: int) -> int:
        return min(self._ram.read_u64(page + tl.PAGE_COMMIT) & tl.COMMIT_MASK, tl.DATA_SIZE)

    def _next_page(self) -> bool:
        if self._swap(self.cpu):
            return False
        number = self._ram.read_u32(self._meta + tl.META_READER_ID)
        if number >= len(self._pages):
            return False
        self.page, self.offset = number, 0
        self.lost = self._ram.read_u64(self._meta + tl.META_LOST)
        return self._committed > 0

    def _entry(self, page: int, offset: int, stamp: int) -> Entry | None:
        """The event at an offset of a page, after one at ``stamp``; None at its end, or where it is damaged."""
        end = self._committed_in(page)
        data = self._ram.read(page + tl.PAGE_DATA, end)
        if offset == 0:
            stamp = self._ram.read_u64(page + tl.PAGE_TIME_STAMP)
        while offset + tl.EVENT_HEADER <= end:
            header = tl.EventHeader.parse(data, offset)
            after = offset + header.size
            if header.type_len == tl.TYPE_TIME_EXTEND:
                stamp += header.full_delta
                offset = after
                continue
            size = header.word - tl.LENGTH_WORD
            if header.type_len != tl.TYPE_DATA or size < tl.ENTRY_ID_SIZE or after > end:
                return None
            return Entry(
                self.cpu, stamp + header.delta, page + tl.PAGE_DATA + offset + tl.EVENT_HEADER, size, self.lost, after
            )
        return None
