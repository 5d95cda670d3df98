"""The kernel's EL1 stage-1 address space: linear map, image, module and vmalloc areas, in real page tables."""

from __future__ import annotations

from pkvm_emu.errors import EmulatorError, UsageError
from pkvm_emu.kernel import layout
from pkvm_emu.kernel.vsprintf_env import GuestFault
from pkvm_emu.machine.machine import Machine
from pkvm_emu.machine.pagetable import PageTable, TableAllocator
from pkvm_emu.machine.state import State

_AF_SH = 1 << 10 | 3 << 8
_READ_ONLY, _USER = 1 << 7, 1 << 6
_UXN, _PXN = 1 << 54, 1 << 53
_GUARDED = 1 << 50
_DEVICE_INDEX, _NON_CACHEABLE_INDEX = 4 << 2, 2 << 2
_BLOCK_2M = 2

#: Leaf attributes by protection: read-execute, read-only, read-write, device, normal non-cacheable.
ATTRIBUTES = {
    "rx": _AF_SH | _READ_ONLY | _UXN,
    "ro": _AF_SH | _READ_ONLY | _UXN | _PXN,
    "rw": _AF_SH | _UXN | _PXN,
    "device": 1 << 10 | _DEVICE_INDEX | _UXN | _PXN,
    "nc": 1 << 10 | _NON_CACHEABLE_INDEX | _UXN | _PXN,
}
#: The same for EL0.
USER_ATTRIBUTES = {
    "rx": _AF_SH | _READ_ONLY | _USER | _PXN,
    "rw": _AF_SH | _USER | _UXN | _PXN,
    "device": 1 << 10 | _DEVICE_INDEX | _USER | _UXN | _PXN,
}
#: MAIR_EL1: normal, normal tagged, non-cacheable, nGnRnE, nGnRE.
MAIR = 0x0000_0004_0044_FFFF
_SCTLR_RES1 = 0x30D0_0800
_SCTLR_M, _SCTLR_C, _SCTLR_SA, _SCTLR_I, _SCTLR_SPAN = 1 << 0, 1 << 2, 1 << 3, 1 << 12, 1 << 23
_SCTLR_PAUTH = 1 << 31 | 1 << 30 | 1 << 27 | 1 << 13
_SCTLR_BT0_BT1 = 3 << 35
#: 4 KiB granules, write-back inner-shareable walks, 48-bit output; T0SZ and T1SZ come with the layout.
_TCR = 2 << 30 | 5 << 32 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 24 | 1 << 26 | 3 << 28


class KernelAddressSpace(State):
    """EL1 stage-1 translation and the kernel's view of memory for Python.

    Args:
        machine: RAM and CPU.
        allocate_page: gives zeroed pages for tables.

    All reads and writes take kernel virtual addresses and raise :class:`GuestFault` where nothing is mapped. They follow
    stage 1 only: what the host may not touch is enforced on the CPU, not on the model.
    """

    def __init__(self, machine: Machine, allocate_page: TableAllocator) -> None:
        super().__init__(machine.journal, "kernel.address_space")
        self._machine = machine
        self._ram = ram = machine.ram
        profile = machine.profile
        self._layout = rows = layout.address_layout(profile.va_bits)
        self._page_offset, self._linear_end = rows.page_offset, rows.linear_end
        #: ``memstart_addr``: RAM base rounded down to the linear map's alignment (1 GiB with 4 KiB pages).
        self.memstart = profile.ram_base & ~((1 << 30) - 1)
        if ram.end - self.memstart > rows.linear_end - rows.page_offset:
            raise UsageError(f"RAM up to {ram.end:#x} does not fit the {rows.va_bits}-bit linear map")
        self.image_pa = profile.ram_base + layout.KIMAGE_OFFSET
        #: ``kimage_voffset``
        self.kimage_voffset = rows.kimage_vaddr - self.image_pa
        self.next_module = rows.modules_vaddr
        self.next_vmalloc = rows.vmalloc_start
        # User space, for accesses from EL0: empty until something is mapped there.
        self._user = PageTable(ram, allocate_page, rows.va_bits, flush=machine.engine.flush_tlb)
        self._user.on_change = machine.engine.note_translation_change
        self._table = PageTable(
            ram, allocate_page, rows.va_bits, va_base=rows.page_offset, flush=machine.engine.flush_tlb
        )
        self._table.on_change = machine.engine.note_translation_change
        self._table.map(self.linear_va(ram.base), ram.base, ram.size, ATTRIBUTES["rw"], max_block_level=_BLOCK_2M)

    def enable(self) -> None:
        """Set the EL1 translation registers of the current CPU and switch the MMU on."""
        engine, profile = self._machine.engine, self._machine.profile
        engine.write_sysreg("MAIR_EL1", MAIR)
        size = 64 - self._layout.va_bits
        engine.write_sysreg("TCR_EL1", _TCR | size | size << 16)
        engine.write_sysreg("TTBR0_EL1", self._user.root)
        engine.write_sysreg("TTBR1_EL1", self._table.root)
        sctlr = _SCTLR_RES1 | _SCTLR_M | _SCTLR_C | _SCTLR_SA | _SCTLR_I | _SCTLR_SPAN
        if profile.pauth:
            sctlr |= _SCTLR_PAUTH
        if profile.bti:
            sctlr |= _SCTLR_BT0_BT1
        engine.write_sysreg("SCTLR_EL1", sctlr)

    # Addresses

    @property
    def layout(self) -> layout.AddressLayout:
        """Where its areas are."""
        return self._layout

    def linear_va(self, pa: int) -> int:
        """``phys_to_virt``: the linear-map address of ``pa``."""
        return pa - self.memstart + self._page_offset

    def linear_pa(self, va: int) -> int:
        """``virt_to_phys`` of a linear-map address (arithmetic, unchecked)."""
        return va - self._page_offset + self.memstart

    def image_va(self, offset: int) -> int:
        """Address of a place in the kernel image."""
        return self._layout.kimage_vaddr + offset

    def to_pa(self, va: int, size: int = 1) -> int:
        """Physical address of a kernel VA.

        Raises:
            GuestFault: not mapped at stage 1.
        """
        if self._page_offset <= va < self._linear_end:
            pa = va - self._page_offset + self.memstart
            if pa in self._ram:
                return pa
        elif self._page_offset <= va < 1 << 64:
            leaf = self._table.walk(va)
            if leaf.valid:
                return leaf.pa
        elif 0 <= va < 1 << self._layout.va_bits:
            leaf = self._user.walk(va)
            if leaf.valid:
                return leaf.pa
        raise GuestFault(va, size)

    def table_entries(self, va: int) -> list[int]:
        """The stage-1 descriptors that a walk of ``va`` reads, from the root down."""
        return self._table_of(va).descriptors(va)

    def table_root(self, va: int) -> int:
        """Physical address of the stage-1 root that translates ``va``."""
        return self._table_of(va).root

    def _table_of(self, va: int) -> PageTable:
        return self._table if va >= self._page_offset else self._user

    def is_writable(self, va: int) -> bool:
        """Whether stage 1 lets EL1 write at ``va``."""
        if self._page_offset <= va < self._linear_end:
            return self.to_pa(va) in self._ram
        self.to_pa(va)
        return not self._table_of(va).walk(va).descriptor & _READ_ONLY

    # Access

    def read(self, va: int, size: int) -> bytes:
        """``size`` bytes from ``va``."""
        out = bytearray()
        while size > 0:
            chunk = min(size, layout.PAGE_SIZE - va % layout.PAGE_SIZE)
            out += self._read_physical(self.to_pa(va, size), chunk, va)
            va += chunk
            size -= chunk
        return bytes(out)

    def write(self, va: int, data: bytes | bytearray) -> None:
        """Write ``data`` at ``va`` (read-only mappings included: this is the debugger's write)."""
        position = 0
        while position < len(data):
            chunk = min(len(data) - position, layout.PAGE_SIZE - (va + position) % layout.PAGE_SIZE)
            pa = self.to_pa(va + position, chunk)
            if pa not in self._ram:
                raise GuestFault(va + position, chunk)
            self._ram.write(pa, data[position : position + chunk])
            position += chunk

    def _read_physical(self, pa: int, size: int, va: int) -> bytes:
        if pa not in self._ram:
            raise GuestFault(va, size)
        return self._ram.read(pa, size)

    def read_u64(self, va: int) -> int:
        """The 64-bit value at ``va``."""
        if va & 7:
            return int.from_bytes(self.read(va, 8), "little")
        pa = self.to_pa(va, 8)
        if pa not in self._ram:
            raise GuestFault(va, 8)
        return self._ram.read_u64(pa)

    def read_u32(self, va: int) -> int:
        """The 32-bit value at ``va``."""
        return int.from_bytes(self.read(va, 4), "little")

    def write_u64(self, va: int, value: int) -> None:
        """Store 64 bits at ``va``."""
        self.write(va, (value & (1 << 64) - 1).to_bytes(8, "little"))

    def write_u32(self, va: int, value: int) -> None:
        """Store 32 bits at ``va``."""
        self.write(va, (value & 0xFFFF_FFFF).to_bytes(4, "little"))

    def read_cstr(self, va: int, limit: int = 1 << 16) -> bytes:
        """The string at ``va`` without its NUL, ``limit`` bytes at most."""
        out = bytearray()
        while len(out) < limit:
            chunk = self.read(va, min(layout.PAGE_SIZE - va % layout.PAGE_SIZE, limit - len(out)))
            end = chunk.find(0)
            if end >= 0:
                out += chunk[:end]
                break
            out += chunk
            va += len(chunk)
        return bytes(out)

    # Mappings

    def map(self, va: int, pa: int, size: int, prot: str, guarded: bool = False) -> None:
        """Map physically contiguous pages at ``va`` with protection ``rx``, ``ro``, ``rw`` or ``device``."""
        attributes = ATTRIBUTES[prot] | (_GUARDED if guarded and prot == "rx" else 0)
        self._table.map(va, pa, size, attributes)

    def unmap(self, va: int, size: int) -> None:
        """Remove a mapping."""
        self._table.unmap(va, size)

    def map_user(self, va: int, pa: int, size: int, prot: str) -> None:
        """Map pages for EL0 with protection ``rx``, ``rw`` or ``device``; none is executable at EL1."""
        self._user.map(va, pa, size, USER_ATTRIBUTES[prot])

    def unmap_user(self, va: int, size: int) -> None:
        """Remove a mapping of EL0's."""
        self._user.unmap(va, size)

    def reserve_module_area(self, size: int) -> int:
        """Address space for a module: ``size`` bytes, page aligned, with a guard page behind."""
        va = self.next_module
        self.next_module = va + _page_align(size) + layout.PAGE_SIZE
        end = self._layout.modules_end
        if self.next_module > end:
            raise EmulatorError(f"the module area is full: {size:#x} bytes do not fit below {end:#x}")
        return va

    def has_vmalloc_room(self, size: int) -> bool:
        """Whether a mapping of that many bytes, and its guard page, fit into the vmalloc area."""
        return self.next_vmalloc + _page_align(size) + layout.PAGE_SIZE <= self._layout.vmalloc_end

    def reserve_vmalloc_area(self, size: int) -> int:
        """Address space in the vmalloc area, with a guard page behind."""
        if not self.has_vmalloc_room(size):
            raise EmulatorError("the vmalloc area is full")
        va = self.next_vmalloc
        self.next_vmalloc = va + _page_align(size) + layout.PAGE_SIZE
        return va


def _page_align(size: int) -> int:
    return (size + layout.PAGE_SIZE - 1) & ~(layout.PAGE_SIZE - 1)
