"""The hypervisor's trace buffers: one a CPU, loaded and read by the host, written by the core and by modules.

Source: arch/arm64/kvm/hyp/nvhe/{trace,clock}.c.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL, ENOMEM
from typing import TYPE_CHECKING

from pkvm_emu.hyp import trace_layout as tl
from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.heap import HypHeap
from pkvm_emu.hyp.layout import kern_hyp_va
from pkvm_emu.hyp.registry import hyp_part
from pkvm_emu.hyp.trace_ring import READY, RECORD_SIZE, TraceRing
from pkvm_emu.machine.state import State

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

PAGE_SHIFT = 12


@hyp_part
class TraceBuffers(State):
    """The buffers of one hypervisor.

    Attributes:
        clock: how counter ticks become time stamps; None before the host said it.
        backing: hyp VA and bytes of the memory that the host gave for records, where the generation has no heap.
        backing_used: how many of them are taken.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.trace")
        self._hyp = hyp
        self.clock: tl.Clock | None = None
        self.backing: tuple[int, int] | None = None
        self.backing_used = 0
        self._format = tl.DESCRIPTORS[hyp.generation.layout]
        self._listener: Callable[[int, int], None] | None = None
        #: By CPU, PA and bytes of the entry between reserve and commit; only listeners ask.
        self._reserved: dict[int, tuple[int, int]] = {}
        self._rings = [TraceRing(hyp, index) for index in range(hyp.machine.profile.cpus)]
        #: So that a digest covers them.
        self.rings = tuple(self._rings)

    def ring(self, cpu: int) -> TraceRing | None:
        """A CPU's buffer."""
        return self._rings[cpu] if 0 <= cpu < len(self._rings) else None

    @property
    def is_on(self) -> bool:
        """Some CPU takes events."""
        return any(ring.records and ring.status >= READY for ring in self._rings)

    # Writing

    def now(self) -> int:
        """Nanoseconds since boot by the clock of the buffer; reading it takes time, as every counter read does."""
        ticks = self._hyp.machine.core.read_counter()
        return self.clock.nanoseconds(ticks) if self.clock is not None else ticks

    def reserve(self, length: int) -> int:
        """Hyp VA of room for an entry in the buffer of the current CPU; 0 while it takes none."""
        ring = self._rings[self._hyp.machine.current.index]
        if not ring.status:
            return 0
        pa = ring.reserve(length, self.now())
        self._reserved[self._hyp.machine.current.index] = (pa, length)
        return self._hyp.stage1.va_of(pa) if pa else 0

    def commit(self) -> None:
        """Publish the entry of the current CPU."""
        cpu = self._hyp.machine.current.index
        self._rings[cpu].commit()
        if self._listener is not None and cpu in self._reserved:
            self._listener(*self._reserved[cpu])

    def write(self, entry: bytes) -> None:
        """Add a whole entry to the buffer of the current CPU, if it takes any."""
        ring = self._rings[self._hyp.machine.current.index]
        if ring.status:
            pa = ring.reserve(len(entry), self.now())
            self._hyp.machine.ram.write(pa, entry)
            ring.commit()
            if self._listener is not None:
                self._listener(pa, len(entry))

    def listen(self, listener: Callable[[int, int], None]) -> None:
        """Call ``listener`` with PA and bytes of each entry that is published on the current CPU."""
        self._listener = listener

    # What the host asks

    def load(self, desc_va: int, size: int) -> int:
        """Take over the buffers that a descriptor lists; 0 or -errno.

        Args:
            desc_va: kernel VA of ``struct hyp_trace_desc``, page aligned; the host loses the pages while they are read.
            size: its bytes, whole pages.
        """
        if not size or (desc_va | size) % tl.PAGE_SIZE:
            return -EINVAL
        hyp = self._hyp
        first, pages = hyp.stage1.pa_of(kern_hyp_va(desc_va)) >> PAGE_SHIFT, size >> PAGE_SHIFT
        error = hyp.ownership.host_donate_hyp(first, pages, origin="load_tracing")
        if error:
            return error
        descriptor = self._format.unpack(hyp.machine.ram.read(first << PAGE_SHIFT, size))
        error = -EINVAL if descriptor is None else self._load(descriptor)
        if hyp.ownership.hyp_donate_host(first, pages, origin="load_tracing"):
            raise HypBug(f"load_tracing: the descriptor cannot be given back: {hyp.ownership.last_refusal}")
        return error

    def _load(self, descriptor: tl.Descriptor) -> int:
        error = self._take_backing(descriptor)
        for row in () if error else descriptor.cpus:
            ring = self.ring(row.cpu)
            if ring is None:
                error = -EINVAL
                break
            records, error = self._alloc_records(len(row.page_vas)) if len(row.page_vas) >= 2 else (0, -EINVAL)
            if not error:
                error = ring.load(row, records)
                if error:
                    self._free_records(records)
            if error:
                break
        if error:
            self.teardown()
        elif descriptor.clock is not None:
            self.clock = descriptor.clock
        return error

    def _take_backing(self, descriptor: tl.Descriptor) -> int:
        if descriptor.backing is None:
            return 0
        va, size = descriptor.backing
        if self.backing is not None or va % tl.PAGE_SIZE or size % tl.PAGE_SIZE:
            return -EINVAL
        first = self._hyp.stage1.pa_of(kern_hyp_va(va)) >> PAGE_SHIFT
        error = self._hyp.ownership.host_donate_hyp(first, size >> PAGE_SHIFT, origin="load_tracing")
        if not error:
            self.backing = (kern_hyp_va(va), size)
            self.backing_used = 0
            self._hyp.machine.ram.fill(first << PAGE_SHIFT, size)
        return error

    def _alloc_records(self, pages: int) -> tuple[int, int]:
        """Hyp VA of zeroed memory for the records of so many pages, and 0; or 0 and the errno."""
        size = pages * RECORD_SIZE
        if self.backing is not None:
            va, room = self.backing
            if self.backing_used + size > room:
                return 0, -ENOMEM
            self.backing_used += size
            return va + self.backing_used - size, 0
        heap = self._hyp.part(HypHeap)
        records = heap.alloc(size)
        return records, 0 if records else heap.errno.get(self._hyp.machine.current.index, -ENOMEM)

    def _free_records(self, records: int) -> None:
        if self.backing is None:
            self._hyp.part(HypHeap).free(records)

    def teardown(self) -> None:
        """Give all pages back to the host's use; what was not read is lost."""
        for ring in self._rings:
            records = ring.unload()
            if records:
                self._free_records(records)
        if self.backing is not None:
            va, size = self.backing
            self.backing = None
            first = self._hyp.stage1.pa_of(va) >> PAGE_SHIFT
            if self._hyp.ownership.hyp_donate_host(first, size >> PAGE_SHIFT, origin="teardown_tracing"):
                raise HypBug("teardown_tracing: the memory for records cannot be given back")

    def enable(self, on: bool) -> int:
        """Take events on every CPU that has a buffer, or on none; -EINVAL where there is no buffer to switch on."""
        results = [ring.enable(on) for ring in self._rings]
        return 0 if not on or 0 in results else -EINVAL

    def reset(self, cpu: int) -> int:
        """Forget the events of a CPU; 0, -EINVAL for a CPU that does not exist, -ENODEV without a buffer."""
        ring = self.ring(cpu)
        return -EINVAL if ring is None else ring.reset()

    def update_footers(self, cpu: int) -> int:
        """Tell the host in the footer of the page that it reads how many events there are; results as for :meth:`reset`."""
        ring = self.ring(cpu)
        return -EINVAL if ring is None else ring.update_footers()

    def swap_reader(self, cpu: int) -> int:
        """Give the host the next page of a CPU; results as for :meth:`reset`."""
        ring = self.ring(cpu)
        return -EINVAL if ring is None else ring.swap_reader()
