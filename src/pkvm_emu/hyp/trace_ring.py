"""One CPU's trace buffer as the hypervisor writes it: a ring of pages that the host shares, and one page the host reads.

The pages are in a ring in which the writer goes round. The reader's page lies outside; when the host has read it, it has it swapped
against the oldest page of the ring. A writer that comes to the oldest page drops what is in it.
Source: arch/arm64/kvm/hyp/nvhe/trace.c.
"""

from __future__ import annotations

from errno import EBUSY, EINVAL, ENODEV
from typing import TYPE_CHECKING

from pkvm_emu.hyp import trace_layout as tl
from pkvm_emu.hyp.errors import HypFault, HypMisuse
from pkvm_emu.hyp.layout import kern_hyp_va
from pkvm_emu.machine.state import State

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

UNAVAILABLE, READY, WRITING = 0, 1, 2
#: In the page of a CPU, behind the pointer-authentication keys: what changes with every event.
STATUS_AT, WRITE_STAMP_AT = 0xE00, 0xE08
#: There too, of the host's trap: x0 then, whether EL3 has been called with it, the pages that were guests' alone, the syndrome.
TRAP_ID_AT, TRAP_FORWARDED_AT, TRAP_PAGES_AT, TRAP_ESR_AT = 0xE10, 0xE18, 0xE20, 0xE28

# The hypervisor's record of a data page: neighbours in the ring (numbers), hyp VA, bytes and events written.
RECORD_SIZE = 48
_NEXT, _PREVIOUS, _PAGE, _WRITE, _ENTRIES = 0, 8, 16, 24, 32
_PAGE_FIELD_OFFSET = 16


class TraceRing(State):
    """The buffer of one CPU.

    Args:
        hyp: the hypervisor.
        index: the CPU.

    Attributes:
        records: hyp VA of the records of the data pages; 0 while no buffer is loaded.
        meta: hyp VA of the meta page.
        pages: number of data pages, the reader's among them.
        tail: the page that is written (by number).
        head: the oldest page of the ring.
        reader: the page outside the ring.
        last_overrun: events lost at the last swap.
        shown_head: the page whose footer says that it is the oldest (android14).
    """

    def __init__(self, hyp: Hypervisor, index: int) -> None:
        super().__init__(hyp.machine.journal)
        self._hyp = hyp
        self._ram = hyp.machine.ram
        self._index = index
        self._format = tl.DESCRIPTORS[hyp.generation.layout]
        self.shown_head = 0
        self.records = 0
        self.meta = 0
        self.pages = 0
        self.tail = self.head = self.reader = 0
        self.last_overrun = 0

    # Words that change with every event

    @property
    def _words(self) -> int:
        return self._hyp.cpu_memory(self._index).context_pa

    @property
    def status(self) -> int:
        """Whether events are taken: ``UNAVAILABLE``, ``READY``, or ``WRITING`` between reserve and commit."""
        return self._ram.read_u32(self._words + STATUS_AT)

    def _set_status(self, value: int) -> None:
        self._ram.write_u32(self._words + STATUS_AT, value)

    def _record(self, number: int) -> int:
        """PA of the record of a page."""
        pa = self._hyp.to_pa(self.records + number * RECORD_SIZE)
        assert pa is not None
        return pa

    def _page(self, number: int) -> int:
        """PA of a data page."""
        return self._hyp.stage1.pa_of(self._ram.read_u64(self._record(number) + _PAGE))

    def _meta_add(self, offset: int, amount: int) -> None:
        pa = self._hyp.stage1.pa_of(self.meta) + offset
        self._ram.write_u64(pa, self._ram.read_u64(pa) + amount)

    # Events

    def reserve(self, length: int, now: int) -> int:
        """Room for an entry of ``length`` bytes at time ``now`` (ns); its PA, or 0 while no events are taken.

        Raises:
            HypMisuse: longer than a page holds: a device writes over what lies behind the page.
        """
        if self.status == UNAVAILABLE:
            return 0
        if not 0 <= length <= tl.MAX_PAYLOAD:
            raise HypMisuse(
                f"tracing_reserve_entry({length:#x}) by {self._hyp.caller()}: a page of the trace buffer takes "
                f"{tl.MAX_PAYLOAD} bytes; a device writes over what lies behind it"
            )
        ram = self._ram
        self._set_status(WRITING)
        stamp_pa = self._words + WRITE_STAMP_AT
        delta = (now - ram.read_u64(stamp_pa)) & (1 << 64) - 1
        extend = tl.TIME_EXTEND_SIZE if delta >> tl.DELTA_BITS else 0
        size = length + tl.EVENT_HEADER
        record = self._record(self.tail)
        start = ram.read_u64(record + _WRITE)
        if start + size + extend > self._format.room:
            record = self._record(self._move_tail())
        page = self._hyp.stage1.pa_of(ram.read_u64(record + _PAGE))
        entries = ram.read_u64(record + _ENTRIES)
        if not entries:
            ram.write_u64(page + tl.PAGE_TIME_STAMP, now)
            delta = extend = start = 0
        ram.write_u64(record + _WRITE, start + extend + size)
        ram.write_u64(record + _ENTRIES, entries + 1)
        ram.write_u64(stamp_pa, now)
        at = page + tl.PAGE_DATA + start
        if extend:
            ram.write(at, tl.time_extend(delta))
            delta = 0
        ram.write(at + extend, tl.data_header(length, delta))
        return at + extend + tl.EVENT_HEADER

    def commit(self) -> None:
        """Publish what was reserved.

        Raises:
            HypFault: no buffer is loaded: the hypervisor reads through a NULL pointer.
        """
        if not self.records:
            raise HypFault(
                "tracing_commit_entry() without an entry: no trace buffer is loaded", _PAGE_FIELD_OFFSET, is_write=False
            )
        ram = self._ram
        written = ram.read_u64(self._record(self.tail) + _WRITE)
        ram.write_u64(self._page(self.tail) + tl.PAGE_COMMIT, written)
        self._meta_add(tl.META_ENTRIES, 1)
        # A writer that another CPU switched off in between ends its event, and then is off.
        if self.status == WRITING:
            self._set_status(READY)

    def _move_tail(self) -> int:
        ram = self._ram
        following = ram.read_u64(self._record(self.tail) + _NEXT)
        record = self._record(following)
        # The reader's page is written too, until it is full: what lies behind it is the head, and empty.
        if following == self.head and self.tail != self.reader:
            self._meta_add(tl.META_OVERRUN, ram.read_u64(record + _ENTRIES))
            self._meta_add(tl.META_PAGES_LOST, 1)
            self.head = ram.read_u64(record + _NEXT)
        self._footer(self.tail, tl.FOOTER_WRITER, 0)
        self._footer(following, tl.FOOTER_WRITER, tl.IS_COMMIT)
        self._clear(following)
        self._meta_add(tl.META_PAGES_TOUCHED, 1)
        self.tail = following
        return following

    def _clear(self, number: int) -> None:
        record = self._record(number)
        self._ram.write_u64(record + _WRITE, 0)
        self._ram.write_u64(record + _ENTRIES, 0)
        self._ram.write_u64(self._page(number) + tl.PAGE_COMMIT, 0)

    # Footers (android14)

    def _footer(self, number: int, offset: int, value: int) -> None:
        """Write a status into the footer of a page, where pages have one."""
        if self._format.has_footers:
            self._ram.write_u32(self._page(number) + offset, value)

    def _show_head(self) -> None:
        self._footer(self.shown_head, tl.FOOTER_READER, 0)
        self._footer(self.head, tl.FOOTER_READER, tl.IS_HEAD)
        self.shown_head = self.head

    def update_footers(self) -> int:
        """Write the counts into the footer of the reader's page; 0, or -ENODEV without a buffer."""
        if not self.records:
            return -ENODEV
        self._show_head()
        meta, footer = self._hyp.stage1.pa_of(self.meta), self._page(self.reader)
        for offset, source in (
            (tl.FOOTER_ENTRIES, tl.META_ENTRIES),
            (tl.FOOTER_TOUCHED, tl.META_PAGES_TOUCHED),
            (tl.FOOTER_OVERRUN, tl.META_OVERRUN),
        ):
            self._ram.write_u64(footer + offset, self._ram.read_u64(meta + source))
        return 0

    # What the host asks

    def load(self, row: tl.CpuPages, records: int) -> int:
        """Take over the pages of a descriptor; 0, -EINVAL, -EBUSY, or what pinning a page gives.

        Args:
            row: the pages.
            records: hyp VA of zeroed memory, ``RECORD_SIZE`` bytes a page; the caller frees it when this fails.
        """
        if len(row.page_vas) < 2:
            return -EINVAL
        if self.records:
            return -EBUSY
        ownership, ram = self._hyp.ownership, self._ram
        vas = [kern_hyp_va(va) for va in (row.meta_va, *row.page_vas)]
        for position, va in enumerate(vas):
            error = ownership.pin_shared_mem(va, va + tl.PAGE_SIZE, origin="load_tracing")
            if error:
                for pinned in vas[:position]:
                    ownership.unpin_shared_mem(pinned, pinned + tl.PAGE_SIZE, origin="load_tracing failed")
                return error
        self.records, self.meta, self.pages = records, vas[0], len(row.page_vas)
        meta = self._hyp.stage1.pa_of(self.meta)
        ram.fill(meta, tl.META_SIZE)
        ram.write_u32(meta + tl.META_PAGE_SIZE, tl.PAGE_SIZE)
        ram.write_u32(meta + tl.META_SUBBUFS, self.pages)
        for number, va in enumerate(vas[1:]):
            record = self._record(number)
            ram.write_u64(record + _PAGE, va)
            # Page 0 begins as the reader's; the others are the ring.
            ram.write_u64(record + _NEXT, number % (self.pages - 1) + 1)
            ram.write_u64(record + _PREVIOUS, (number - 2) % (self.pages - 1) + 1)
            self._clear(number)
        self.reader, self.head, self.tail = 0, 1, 1
        self.shown_head = 1
        for number in range(self.pages):
            self._footer(number, tl.FOOTER_WRITER, tl.IS_COMMIT if number == self.tail else 0)
            self._footer(number, tl.FOOTER_READER, tl.IS_READER if number == self.reader else 0)
        self._show_head()
        self.last_overrun = 0
        ram.write_u64(self._words + WRITE_STAMP_AT, 0)
        return 0

    def unload(self) -> int:
        """Give the pages back; the records' hyp VA (0 where nothing was loaded)."""
        records = self.records
        if records:
            self._set_status(UNAVAILABLE)
            vas = [self.meta, *(self._ram.read_u64(self._record(n) + _PAGE) for n in range(self.pages))]
            for va in vas:
                self._hyp.ownership.unpin_shared_mem(va, va + tl.PAGE_SIZE, origin="teardown_tracing")
            self.records = self.meta = self.pages = 0
        return records

    def enable(self, on: bool) -> int:
        """Take events or not; 0, or -ENODEV without a buffer."""
        if not on:
            if self._format.has_footers and self.status != UNAVAILABLE:
                self.update_footers()
            self._set_status(UNAVAILABLE)
            return 0
        if not self.records:
            return -ENODEV
        if self.status == UNAVAILABLE:
            self._set_status(READY)
        return 0

    def swap_reader(self) -> int:
        """Give the host the oldest page for the one it has read; 0, or -ENODEV without a buffer."""
        if not self.records:
            return -ENODEV
        ram, old, new = self._ram, self.reader, self.head
        self._footer(old, tl.FOOTER_READER, 0)
        self._footer(self.shown_head, tl.FOOTER_READER, 0)
        before, after = (ram.read_u64(self._record(new) + field) for field in (_PREVIOUS, _NEXT))
        meta = self._hyp.stage1.pa_of(self.meta)
        overrun = ram.read_u64(meta + tl.META_OVERRUN)
        # A ring of one page has no neighbours but itself.
        before, after = (old if neighbour == new else neighbour for neighbour in (before, after))
        ram.write_u64(self._record(old) + _PREVIOUS, before)
        ram.write_u64(self._record(old) + _NEXT, after)
        ram.write_u64(self._record(before) + _NEXT, old)
        ram.write_u64(self._record(after) + _PREVIOUS, old)
        if after == old:
            # The writer that leaves the page for the reader goes on at the one that came in.
            ram.write_u64(self._record(new) + _NEXT, old)
        self.head, self.reader = after, new
        ram.write_u64(meta + tl.META_LOST, overrun - self.last_overrun)
        ram.write_u32(meta + tl.META_READER_ID, new)
        self.last_overrun = overrun
        self._footer(new, tl.FOOTER_READER, tl.IS_READER)
        self.shown_head = self.head
        self._footer(self.head, tl.FOOTER_READER, tl.IS_HEAD)
        if self._format.has_footers:
            ram.write_u64(self._page(new) + tl.FOOTER_OVERRUN, overrun)
        return 0

    def reset(self) -> int:
        """Forget all events; 0, or -ENODEV without a buffer."""
        if not self.records:
            return -ENODEV
        self.tail = self.head
        for number in range(self.pages):
            self._clear(number)
        self.last_overrun = 0
        self._ram.write_u64(self._words + WRITE_STAMP_AT, 0)
        meta = self._hyp.stage1.pa_of(self.meta)
        for offset in (tl.META_LOST, tl.META_ENTRIES, tl.META_OVERRUN, tl.META_READ):
            self._ram.write_u64(meta + offset, 0)
        self._ram.write_u32(meta + tl.META_READER_READ, 0)
        for offset in (tl.META_PAGES_LOST, tl.META_PAGES_TOUCHED):
            self._ram.write_u64(meta + offset, 0)
        return 0

    def unread(self) -> list[int]:
        """PAs of the data pages, the reader's first, then from the oldest to the one that is written."""
        if not self.records:
            return []
        order = [self.reader]
        if self.tail != self.reader:
            number = self.head
            while number != self.tail:
                order.append(number)
                number = self._ram.read_u64(self._record(number) + _NEXT)
            order.append(self.tail)
        return [self._page(number) for number in order]
