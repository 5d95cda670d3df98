"""Files mapped into user memory: ``struct vm_area_struct``, page faults that the driver answers, and access from Python.

Sources: ``mm/{mmap,memory}.c``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import EFAULT, EINVAL, ENOMEM
from pkvm_emu.abi.file_structs import file_structs
from pkvm_emu.kernel.exports.io import device_load, device_store
from pkvm_emu.kernel.fs.node import FsError
from pkvm_emu.kernel.fs.result import as_user_sees
from pkvm_emu.kernel.fs.user_memory import UserMemory
from pkvm_emu.kernel.layout import PAGE_SIZE
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.kernel.vmemmap import Vmemmap
from pkvm_emu.kernel.vsprintf_env import GuestFault
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.fs.open_file import OpenFile
    from pkvm_emu.kernel.kernel import Kernel

VM_WRITE, VM_READ = 2, 1
#: vm_operations_struct: offsets of open, close, fault.
_VM_OPEN, _VM_CLOSE, _VM_FAULT = 0, 8, 40
_FAULT_WRITE, _FAULT_USER = 1, 0x40
_FAULT_ERRORS, _FAULT_NO_PAGE, _FAULT_LOCKED = 0x0001 | 0x0002 | 0x0010 | 0x0020 | 0x0040, 0x0100, 0x0200
_FAULT_NEEDS_PAGE = _FAULT_ERRORS | _FAULT_NO_PAGE
#: PAGE_SHARED of arm64: valid, user, inner shareable, access flag, not global, never executed.
_PAGE_SHARED = 1 << 54 | 1 << 53 | 1 << 51 | 1 << 11 | 1 << 10 | 3 << 8 | 1 << 6 | 3
_RDONLY = 1 << 7
_BY_MEMORY_TYPE = {3: "device", 4: "device"}


class Mapping(State):
    """A file mapped into the memory of the process.

    Attributes:
        address: user VA.
        length: bytes.
        is_mapped: False after :meth:`close`.
        pages: physical address of each page that is there, by user VA.
    """

    def __init__(self, kernel: Kernel, handle: OpenFile, vma: int, address: int, length: int, flags: int) -> None:
        super().__init__(kernel.machine.journal)
        self._kernel = kernel
        self._handle = handle
        self._vma = vma
        self._flags = flags
        self.address = address
        self.length = length
        self.is_mapped = True
        self.pages: StateDict[int, int] = StateDict(kernel.machine.journal)

    def __len__(self) -> int:
        return self.length

    @property
    def vma(self) -> int:
        """Kernel VA of the ``struct vm_area_struct``."""
        return self._vma

    def read(self, offset: int = 0, size: int | None = None) -> bytes:
        """Bytes of the mapping, loaded as the process loads them.

        Raises:
            FsError: EFAULT where the process would get a signal: no page, or one that the hypervisor took away.
        """
        size = self.length - offset if size is None else size
        out = bytearray()
        for va, count in self._pieces(offset, size):
            pa = self._physical(va, write=False)
            if pa in self._kernel.machine.ram:
                out += self._kernel.machine.ram.read(pa, count)
            else:
                for at, width in _steps(va, count):
                    out += self._device(pa + at - va, width, None).to_bytes(width, "little")
        return bytes(out)

    def write(self, offset: int, data: bytes) -> None:
        """Store bytes into the mapping.

        Raises:
            FsError: EFAULT, also where it is mapped without write permission.
        """
        done = 0
        for va, count in self._pieces(offset, len(data)):
            piece = data[done : done + count]
            done += count
            if not self._flags & VM_WRITE:
                raise FsError(EFAULT, self._handle.path)
            pa = self._physical(va, write=True)
            if pa in self._kernel.machine.ram:
                self._kernel.machine.ram.write(pa, piece)
            else:
                for at, width in _steps(va, count):
                    self._device(pa + at - va, width, int.from_bytes(piece[at - va : at - va + width], "little"))

    def close(self) -> None:
        """``munmap``: the driver's ``close`` is called; a second close does nothing."""
        if not self.is_mapped:
            return
        self.is_mapped = False
        kernel = self._kernel
        operations = kernel.memory.read_u64(self._vma + file_structs(kernel.generation.kernel).vma.vm_ops)
        closer = kernel.memory.read_u64(operations + _VM_CLOSE) if operations else 0
        if closer:
            kernel.call(closer, self._vma)
        for va in list(self.pages):
            kernel.memory.unmap_user(va, PAGE_SIZE)
        self.pages.clear()
        kernel.part(Mappings).areas.pop(self._vma, None)
        kernel.part(Slab).kfree(self._vma, "munmap")

    # Pages

    def _pieces(self, offset: int, size: int) -> list[tuple[int, int]]:
        if not self.is_mapped or offset < 0 or size < 0 or offset + size > self.length:
            raise FsError(EFAULT, self._handle.path)
        pieces = []
        at, end = self.address + offset, self.address + offset + size
        while at < end:
            count = min(end - at, PAGE_SIZE - at % PAGE_SIZE)
            pieces.append((at, count))
            at += count
        return pieces

    def _physical(self, va: int, write: bool) -> int:
        page = va & -PAGE_SIZE
        if page not in self.pages:
            self._fault(page, write)
        try:
            pa = self._kernel.memory.to_pa(va)
        except GuestFault:
            raise FsError(EFAULT, self._handle.path) from None
        if self._kernel.is_taken_away(pa & -PAGE_SIZE):
            raise FsError(EFAULT, self._handle.path)
        return pa

    def _fault(self, page: int, write: bool) -> None:
        """Let the driver bring a page (``vm_ops->fault``)."""
        kernel, rows = self._kernel, file_structs(self._kernel.generation.kernel)
        memory, layout = kernel.memory, rows.fault
        operations = memory.read_u64(self._vma + rows.vma.vm_ops)
        handler = memory.read_u64(operations + _VM_FAULT) if operations else 0
        if not handler:
            raise FsError(EFAULT, self._handle.path)
        facts = line_facts(kernel.generation.kernel)
        request = kernel.part(Slab).kmalloc(layout.size, facts.gfp_zero)
        if request is None:
            raise FsError(ENOMEM, self._handle.path)
        try:
            memory.write_u64(request + layout.vma, self._vma)
            memory.write_u32(request + layout.gfp_mask, 0xCC0)
            first = memory.read_u64(self._vma + rows.vma.vm_pgoff)
            memory.write_u64(request + layout.pgoff, first + (page - self.address) // PAGE_SIZE)
            memory.write_u64(request + layout.address, page)
            if layout.real_address is not None:
                memory.write_u64(request + layout.real_address, page)
            memory.write_u32(request + layout.flags, _FAULT_USER | (_FAULT_WRITE if write else 0))
            result = kernel.call(handler, request) & 0xFFFF_FFFF
            given = memory.read_u64(request + layout.page)
        finally:
            kernel.part(Slab).kfree(request)
        if not result & _FAULT_NEEDS_PAGE and given:
            pa = kernel.part(Vmemmap).physical(given)
            if pa is not None:
                self.insert(page, pa, "rw")

    def insert(self, va: int, pa: int, prot: str) -> None:
        """Map one page."""
        self._kernel.memory.map_user(va, pa, PAGE_SIZE, prot)
        self.pages[va] = pa

    def _device(self, pa: int, width: int, value: int | None) -> int:
        """An access to a device behind the mapping, by a kernel alias of its page."""
        memory = self._kernel.memory
        alias = memory.reserve_vmalloc_area(PAGE_SIZE)
        memory.map(alias, pa & -PAGE_SIZE, PAGE_SIZE, "device")
        try:
            if value is None:
                return device_load(self._kernel, alias + pa % PAGE_SIZE, width)
            device_store(self._kernel, alias + pa % PAGE_SIZE, value, width)
            return 0
        except GuestFault:
            raise FsError(EFAULT, self._handle.path) from None
        finally:
            memory.unmap(alias, PAGE_SIZE)


def _steps(va: int, count: int) -> list[tuple[int, int]]:
    """The accesses that a copy makes to device memory: doublewords and words where aligned, bytes elsewhere."""
    steps, at, end = [], va, va + count
    while at < end:
        width = next(size for size in (8, 4, 2, 1) if not at % size and end - at >= size)
        steps.append((at, width))
        at += width
    return steps


@kernel_part
class Mappings(State):
    """The mappings that there are, by the address of their ``struct vm_area_struct``."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.mappings")
        self.areas: StateDict[int, Mapping] = StateDict(kernel.machine.journal, "kernel.mappings.areas")


def map_file(
    kernel: Kernel, handle: OpenFile, file: int, function: int, length: int, offset: int, flags: int
) -> Mapping | int:
    """Make a ``struct vm_area_struct`` and call a driver's ``mmap`` with it; the mapping, or -errno."""
    rows = file_structs(kernel.generation.kernel).vma
    memory = kernel.memory
    vma = kernel.part(Slab).kmalloc(rows.size, line_facts(kernel.generation.kernel).gfp_zero)
    if vma is None:
        return -ENOMEM
    address = kernel.part(UserMemory).reserve(length)
    memory.write_u64(vma + rows.vm_start, address)
    memory.write_u64(vma + rows.vm_end, address + length)
    memory.write_u64(vma + rows.vm_page_prot, _PAGE_SHARED | (0 if flags & VM_WRITE else _RDONLY))
    memory.write_u64(vma + rows.vm_flags, flags)
    memory.write_u64(vma + rows.vm_pgoff, offset // PAGE_SIZE)
    memory.write_u64(vma + rows.vm_file, file)
    mapping = Mapping(kernel, handle, vma, address, length, flags)
    kernel.part(Mappings).areas[vma] = mapping
    result = as_user_sees(kernel.call_s32(function, file, vma))
    if result < 0:
        for va in mapping.pages:
            memory.unmap_user(va, PAGE_SIZE)
        mapping.is_mapped = False
        del kernel.part(Mappings).areas[vma]
        kernel.part(Slab).kfree(vma)
        return result
    return mapping


def insert_pages(kernel: Kernel, vma: int, address: int, pa: int, size: int, pgprot: int) -> int:
    """Put physically contiguous pages into a mapping; 0, -EINVAL (outside it), -EBUSY (a page is there)."""
    mapping = kernel.part(Mappings).areas.get(vma)
    if mapping is None or address % PAGE_SIZE or pa % PAGE_SIZE:
        return -EINVAL
    if not mapping.address <= address <= address + size <= mapping.address + mapping.length:
        return -EINVAL
    prot = _BY_MEMORY_TYPE.get(pgprot >> 2 & 7, "rw")
    for page in range(0, size, PAGE_SIZE):
        if address + page in mapping.pages:
            return -16
        mapping.insert(address + page, pa + page, prot)
    return 0
