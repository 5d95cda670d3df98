"""The trace buffer as the host manages it: loading and unloading, on and off, readers.

Every step that is a hypercall in the kernel is one here. Source: arch/arm64/kvm/hyp_trace.c.
"""

from __future__ import annotations

from errno import E2BIG, EBUSY, ENOMEM
from typing import TYPE_CHECKING

from pkvm_emu.hyp import trace_layout as tl
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.kernel.tracing.reader import CpuReader, Entry
from pkvm_emu.kernel.tracing.text import TraceText
from pkvm_emu.machine.state import State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

ALL_CPUS = -1
DEFAULT_SIZE_KB = 7
PAGE_SHIFT = 12
_MAX_PAGES = 1 << 20
_RECORD_BYTES = 64
_NS_PER_SECOND = 1_000_000_000
_CLOCK_MAX_CONVERSION_S = 600
_CALL_TRIES = 8


def clock_parameters(hz: int) -> tuple[int, int]:
    """``mult`` and ``shift`` that turn ticks into nanoseconds and hold for ten minutes (``clocks_calc_mult_shift``)."""
    accuracy, left = 32, _CLOCK_MAX_CONVERSION_S * hz >> 32
    while left:
        left >>= 1
        accuracy -= 1
    for shift in range(32, 0, -1):
        mult = ((_NS_PER_SECOND << shift) + hz // 2) // hz
        if not mult >> accuracy:
            return mult, shift
    return _NS_PER_SECOND // hz, 0


@kernel_part
class HypTrace(State):
    """The hypervisor's trace buffer of one kernel.

    Attributes:
        size_kb: what ``buffer_size_kb`` says; counts when a buffer is loaded next.
        tracing_on: the hypervisor takes events.
        readers: open readers.
        cpus: the reading position by CPU; empty while no buffer is loaded.
        pages: PAs of all pages of the loaded buffer.
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.hyp_trace")
        self._kernel = kernel
        self._rules = kernel.generation.tracing
        self._format = tl.DESCRIPTORS[kernel.generation.layout]
        self.size_kb = DEFAULT_SIZE_KB
        self.tracing_on = False
        self.readers = 0
        self.cpus: StateDict[int, CpuReader] = StateDict(journal)
        self.pages: StateList[int] = StateList(journal)
        #: Order and PA of the memory for the hypervisor's records, in generations where the host gives it.
        self.backing: tuple[int, int] | None = None

    @property
    def is_loaded(self) -> bool:
        """The hypervisor has a buffer."""
        return bool(self.cpus)

    @property
    def has_events(self) -> bool:
        """There is something to read."""
        return any(reader.pending for reader in self.cpus.values())

    # Hypercalls

    def _call(self, name: str, *args: int) -> tuple[int, ...]:
        from pkvm_emu.kernel.exports.pkvm import hypercall

        return hypercall(self._kernel, name, *args)

    def _errno(self, name: str, *args: int) -> int:
        """A hypercall whose x1 is an errno; a refused one counts as -EPERM."""
        answer = self._call(name, *args)
        return -1 if answer[0] else ((answer[1] & 0xFFFF_FFFF) ^ 1 << 31) - (1 << 31)

    def _call_with_memory(self, name: str, *args: int) -> int:
        """The same, topping up the hypervisor's heap as long as it lacks pages."""
        from pkvm_emu.kernel.exports.pkvm_memory import pkvm_topup_hyp_alloc

        result = -ENOMEM
        for _ in range(_CALL_TRIES):
            answer = self._call(name, *args)
            result = -1 if answer[0] else ((answer[1] & 0xFFFF_FFFF) ^ 1 << 31) - (1 << 31)
            missing = answer[3] & 0xFF
            if result != -ENOMEM or not missing or pkvm_topup_hyp_alloc(self._kernel, missing):
                break
        return result

    # Loading

    @property
    def _data_pages(self) -> int:
        """Data pages a CPU: the size in whole pages, and the reader's."""
        return -(-(self.size_kb << 10) // tl.PAGE_SIZE) + 1

    def load(self) -> int:
        """Load a buffer unless there is one; 0 or -errno."""
        if self.is_loaded:
            return 0
        kernel, count = self._kernel, self._data_pages
        cpus = kernel.machine.profile.cpus
        if count * cpus > _MAX_PAGES:
            return -E2BIG if count > 1 << 40 else -ENOMEM
        desc_size = -(-self._format.size(cpus, count) // tl.PAGE_SIZE) * tl.PAGE_SIZE
        order = (desc_size // tl.PAGE_SIZE - 1).bit_length()
        descriptor_pa = kernel.pages.alloc_pages(order, zero=True)
        if descriptor_pa is None:
            return -ENOMEM
        error = self._alloc(cpus * (count + 1), cpus * count)
        shared = 0
        if not error:
            shared, error = self._share()
        if not error:
            descriptor = self._describe(cpus, count)
            kernel.machine.ram.write(descriptor_pa, self._format.pack(descriptor))
            error = self._call_with_memory("load_tracing", kernel.memory.linear_va(descriptor_pa), desc_size)
        kernel.pages.free_pages(descriptor_pa, order)
        if error:
            self._release(shared)
            return error
        for cpu in range(cpus):
            own = list(self.pages)[cpu * (count + 1) : (cpu + 1) * (count + 1)]
            self.cpus[cpu] = CpuReader(
                kernel.machine.journal, kernel.machine.ram, cpu, own[0], tuple(own[1:]), self._swap
            )
        return 0

    def _alloc(self, pages: int, data_pages: int) -> int:
        for _ in range(pages):
            pa = self._kernel.pages.alloc_pages(0, zero=True)
            if pa is None:
                return -ENOMEM
            self.pages.append(pa)
        if self._format.has_backing:
            order = (-(-data_pages * _RECORD_BYTES // tl.PAGE_SIZE) - 1).bit_length()
            pa = self._kernel.pages.alloc_pages(order)
            if pa is None:
                return -ENOMEM
            self.backing = (order, pa)
        return 0

    def _share(self) -> tuple[int, int]:
        """Share all pages with the hypervisor: how many are, and 0 or -errno."""
        for position, pa in enumerate(self.pages):
            error = self._errno("host_share_hyp", pa >> PAGE_SHIFT, 1)
            if error:
                return position, error
        return len(self.pages), 0

    def _describe(self, cpus: int, count: int) -> tl.Descriptor:
        memory, pages = self._kernel.memory, list(self.pages)
        rows = []
        for cpu in range(cpus):
            own = [memory.linear_va(pa) for pa in pages[cpu * (count + 1) : (cpu + 1) * (count + 1)]]
            rows.append(tl.CpuPages(cpu, own[0], tuple(own[1:])))
        backing = None
        if self.backing is not None:
            order, pa = self.backing
            backing = (memory.linear_va(pa), tl.PAGE_SIZE << order)
        return tl.Descriptor(tuple(rows), self._clock() if self._format.has_clock else None, backing)

    def _clock(self) -> tl.Clock:
        kernel = self._kernel
        mult, shift = clock_parameters(kernel.machine.profile.counter_hz)
        return tl.Clock(mult, shift, kernel.uptime_ns(), kernel.machine.core.ticks)

    def _release(self, shared: int) -> None:
        for position, pa in enumerate(self.pages):
            if position < shared:
                self._errno("host_unshare_hyp", pa >> PAGE_SHIFT, 1)
            self._kernel.pages.free_pages(pa, 0)
        self.pages.clear()
        if self.backing is not None:
            order, pa = self.backing
            self.backing = None
            self._kernel.pages.free_pages(pa, order)

    def _swap(self, cpu: int) -> int:
        name = "swap_reader_tracing"
        return self._errno(name if name in self._kernel.generation.hypercalls else "rb_swap_reader_page", cpu)

    def _unload(self) -> None:
        if self._errno("teardown_tracing"):
            return
        for cpu in list(self.cpus):
            del self.cpus[cpu]
        self._release(len(self.pages))

    def _unload_if_idle(self) -> None:
        if not self._rules.unloads_when_idle or not self.is_loaded or self.readers or self.tracing_on:
            return
        if not self.has_events:
            self._unload()

    # On and off

    def start(self) -> int:
        """``echo 1 > tracing_on``; 0 or -errno."""
        if self.tracing_on:
            return 0
        error = self.load()
        if error:
            return error
        if not self._format.has_clock:
            self._errno("update_clock_tracing", *self._clock())
        error = self._errno("enable_tracing", 1)
        if error:
            self._unload_if_idle()
            return error
        self.tracing_on = True
        return 0

    def stop(self) -> None:
        """``echo 0 > tracing_on``: what is in the buffer stays to be read."""
        if self.tracing_on and not self._errno("enable_tracing", 0):
            self.tracing_on = False
            self._unload_if_idle()

    def open_for_write(self, cpu: int) -> int:
        """Somebody opens ``trace`` for writing: the buffer is emptied, or unloaded, by generation; 0 or -errno."""
        if not self.is_loaded:
            return 0
        if self._rules.trace_write_unloads:
            if self.tracing_on or self.readers:
                return -EBUSY
            self._unload()
            return 0
        for index, reader in self.cpus.items():
            if cpu in (ALL_CPUS, index):
                self._errno("reset_tracing", index)
                reader.rewind()
        return 0

    # Readers

    def open_reader(self) -> int:
        """Somebody opens a ``trace_pipe``: a buffer is loaded for it; 0 or -errno."""
        error = self.load()
        if not error:
            self.readers += 1
        return error

    def close_reader(self) -> None:
        """The reader is gone."""
        self.readers -= 1
        self._unload_if_idle()

    def peek(self, cpu: int = ALL_CPUS) -> Entry | None:
        """The next event of a CPU, or of all of them in the order of time."""
        if cpu != ALL_CPUS:
            return self.cpus[cpu].peek() if cpu in self.cpus else None
        best: Entry | None = None
        for reader in self.cpus.values():
            entry = reader.peek()
            if entry is not None and (best is None or entry.time_ns < best.time_ns):
                best = entry
        return best

    def consume(self, entry: Entry) -> None:
        """Take an event that :meth:`peek` gave."""
        self.cpus[entry.cpu].consume(entry)

    def read_text(self, cpu: int, limit: int | None = None) -> bytes:
        """Take as many events as fit into ``limit`` bytes of text (None: one reader's buffer)."""
        text = self._kernel.part(TraceText)
        limit = text.limit if limit is None else limit
        out = bytearray()
        while (entry := self.peek(cpu)) is not None:
            line = text.line(entry)
            if out and len(out) + len(line) > limit:
                break
            out += line
            self.consume(entry)
        return bytes(out)

    def read_page(self, cpu: int) -> bytes:
        """Take the rest of a page of a CPU's buffer, as ``trace_pipe_raw`` gives it; empty where there is nothing."""
        return self.cpus[cpu].read_page() if cpu in self.cpus else b""
