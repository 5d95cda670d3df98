"""What the trace buffer looks like in memory that the hypervisor and the host share.

A CPU's buffer is a meta page and at least two data pages. A data page holds its first time stamp, the number of bytes that are
committed, and events one behind the other: a word with a 5-bit type and a 27-bit time delta, a word with the length, the payload.
Nothing is aligned. Sources: include/uapi/linux/trace_mmap.h, include/linux/ring_buffer.h, kernel/trace/ring_buffer.c,
arch/arm64/include/asm/kvm_hyptrace.h.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

PAGE_SIZE = 4096

# A data page.
PAGE_TIME_STAMP, PAGE_COMMIT, PAGE_DATA = 0, 8, 16
DATA_SIZE = PAGE_SIZE - PAGE_DATA
#: The low bits of the commit word count bytes; the kernel keeps flags above them.
COMMIT_MASK = (1 << 20) - 1

# An event: header word, length word, payload.
TYPE_BITS, DELTA_BITS = 5, 27
TYPE_MASK, DELTA_MASK = (1 << TYPE_BITS) - 1, (1 << DELTA_BITS) - 1
TYPE_DATA, TYPE_TIME_EXTEND = 0, 30
EVENT_HEADER = 8
LENGTH_WORD = 4
TIME_EXTEND_SIZE = 8
MAX_PAYLOAD = DATA_SIZE - EVENT_HEADER
ENTRY_ID_SIZE = 2

# The meta page (``struct trace_buffer_meta``, 80 bytes).
META_PAGE_SIZE, META_SUBBUFS = 0, 12
META_LOST, META_READER_ID, META_READER_READ = 16, 24, 28
META_ENTRIES, META_OVERRUN, META_READ, META_PAGES_LOST, META_PAGES_TOUCHED = 40, 48, 56, 64, 72
META_SIZE = 80

# The end of a data page of android14 (``struct rb_ext_page_footer``): what the page is to writer and reader, and counts.
FOOTER_WRITER, FOOTER_READER, FOOTER_ENTRIES, FOOTER_TOUCHED, FOOTER_OVERRUN = 4064, 4068, 4072, 4080, 4088
FOOTER_SIZE = PAGE_SIZE - FOOTER_WRITER
IS_HEAD, IS_READER, IS_COMMIT = 1, 2, 4

_CPU_ROW = struct.Struct("<iiQ")
_CLOCK = struct.Struct("<IIQQ")
_BACKING = struct.Struct("<QQ")


class Clock(NamedTuple):
    """Turns counter ticks into nanoseconds since boot: ``((ticks - epoch_cyc) * mult >> shift) + epoch_ns``."""

    mult: int
    shift: int
    epoch_ns: int
    epoch_cyc: int

    def nanoseconds(self, ticks: int) -> int:
        """The time at a value of the counter."""
        return ((ticks - self.epoch_cyc) * self.mult >> self.shift) + self.epoch_ns


class CpuPages(NamedTuple):
    """The pages of one CPU's buffer by kernel VA; the first data page is the reader's."""

    cpu: int
    meta_va: int
    page_vas: tuple[int, ...]


class Descriptor(NamedTuple):
    """``struct hyp_trace_desc``: what the host hands over when it loads a buffer.

    ``backing`` (kernel VA, bytes) is memory for the hypervisor's own bookkeeping, ``clock`` the clock's parameters; which of them
    a generation has is in :class:`DescriptorFormat`.
    """

    cpus: tuple[CpuPages, ...]
    clock: Clock | None = None
    backing: tuple[int, int] | None = None


class DescriptorFormat(NamedTuple):
    """Which parts a generation's descriptor has before the list of pages, and whether data pages have a footer.

    android14 gives memory and clock, android15 the clock, android16 neither: it takes the memory from the hypervisor's heap, as
    android15 does, and the clock from a hypercall of its own. (The fields of android14 and android15 are those of related trees.)
    """

    has_backing: bool
    has_clock: bool
    has_footers: bool = False

    @property
    def room(self) -> int:
        """Bytes for events in a data page."""
        return DATA_SIZE - FOOTER_SIZE * self.has_footers

    def pack(self, descriptor: Descriptor) -> bytes:
        """The bytes of a descriptor."""
        out = bytearray()
        if self.has_backing:
            out += _BACKING.pack(*(descriptor.backing or (0, 0)))
        if self.has_clock:
            out += _CLOCK.pack(*(descriptor.clock or (0, 0, 0, 0)))
        out += struct.pack("<i", len(descriptor.cpus))
        for row in descriptor.cpus:
            out += _CPU_ROW.pack(row.cpu, len(row.page_vas), row.meta_va)
            out += struct.pack(f"<{len(row.page_vas)}Q", *row.page_vas)
        return bytes(out)

    def size(self, cpus: int, pages: int) -> int:
        """Bytes of a descriptor for so many CPUs with so many data pages each."""
        head = self.has_backing * _BACKING.size + self.has_clock * _CLOCK.size + 4
        return head + cpus * (_CPU_ROW.size + 8 * pages)

    def unpack(self, data: bytes) -> Descriptor | None:
        """Read a descriptor; None where it says more than it holds."""
        position = 0
        backing = clock = None
        try:
            if self.has_backing:
                backing = _BACKING.unpack_from(data, position)
                position += _BACKING.size
            if self.has_clock:
                clock = Clock(*_CLOCK.unpack_from(data, position))
                position += _CLOCK.size
            (count,) = struct.unpack_from("<i", data, position)
            position += 4
            rows = []
            for _ in range(max(count, 0)):
                cpu, pages, meta = _CPU_ROW.unpack_from(data, position)
                position += _CPU_ROW.size
                if pages < 0:
                    return None
                rows.append(CpuPages(cpu, meta, struct.unpack_from(f"<{pages}Q", data, position)))
                position += 8 * pages
        except struct.error:
            return None
        return Descriptor(tuple(rows), clock, backing)


DESCRIPTORS = {
    "a14": DescriptorFormat(has_backing=True, has_clock=True, has_footers=True),
    "a15": DescriptorFormat(has_backing=False, has_clock=True),
    "a16": DescriptorFormat(has_backing=False, has_clock=False),
}


class EventHeader(NamedTuple):
    """The two words in front of an event's payload: type, nanoseconds since the event before, length word."""

    type_len: int
    delta: int
    word: int

    @classmethod
    def parse(cls, data: bytes, offset: int = 0) -> EventHeader:
        """From a page's bytes."""
        first, second = struct.unpack_from("<II", data, offset)
        return cls(first & TYPE_MASK, first >> TYPE_BITS, second)

    @property
    def size(self) -> int:
        """Bytes from this event to the next."""
        return TIME_EXTEND_SIZE if self.type_len == TYPE_TIME_EXTEND else self.word + LENGTH_WORD

    @property
    def full_delta(self) -> int:
        """Nanoseconds of a time extend: its length word holds what does not fit into 27 bits."""
        return self.delta | self.word << DELTA_BITS


def data_header(payload: int, delta: int) -> bytes:
    """The header of an event of ``payload`` bytes."""
    return struct.pack("<II", TYPE_DATA | delta << TYPE_BITS, payload + LENGTH_WORD)


def time_extend(delta: int) -> bytes:
    """The event that stands in front of one which comes too late for 27 bits."""
    return struct.pack("<II", TYPE_TIME_EXTEND | (delta & DELTA_MASK) << TYPE_BITS, delta >> DELTA_BITS & 0xFFFF_FFFF)


def pack_fields(event_id: int, sizes: Sequence[int], values: Sequence[int]) -> bytes:
    """The payload of an event: its id and its fields, without padding."""
    out = bytearray(event_id.to_bytes(ENTRY_ID_SIZE, "little"))
    for size, value in zip(sizes, values, strict=True):
        out += (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    return bytes(out)
