"""DMA memory and mappings (``kernel/dma/{mapping,direct}.c``): no IOMMU is in between, so a DMA address is a physical one."""

from __future__ import annotations

from errno import EINVAL, EIO

from pkvm_emu.kernel.devicetree import devres
from pkvm_emu.kernel.devicetree.devices import Devices
from pkvm_emu.kernel.exports.scatterlist import DMA_ADDRESS, DMA_LENGTH, entries, length, physical
from pkvm_emu.kernel.guest_access import misuse, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.page_allocator import PAGE_SIZE
from pkvm_emu.kernel.registry import kernel_part, kernel_symbol
from pkvm_emu.kernel.vmemmap import Vmemmap
from pkvm_emu.machine.calling import S32, U32, U64, Ptr
from pkvm_emu.machine.state import State, StateDict

#: The error of ``dma_mapping_error``.
_DMA_MAPPING_ERROR = (1 << 64) - 1
_DIRECTION_NONE = 3
_SMALLEST_MASK = (1 << 24) - 1


@kernel_part
class CoherentMemory(State):
    """Blocks of ``dma_alloc_coherent``: bytes and order by kernel address."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.dma")
        self._kernel = kernel
        self.blocks: StateDict[int, tuple[int, int]] = StateDict(kernel.machine.journal, "kernel.dma.blocks")

    def allocate(self, size: int) -> int | None:
        """Zeroed pages; their kernel address."""
        order = max(size - 1, 0) // PAGE_SIZE
        order = order.bit_length()
        pa = self._kernel.pages.alloc_pages(order, zero=True)
        if pa is None:
            return None
        address = self._kernel.memory.linear_va(pa)
        self.blocks[address] = (size, order)
        return address

    def release(self, address: int) -> bool:
        """Give a block back; whether it was one."""
        block = self.blocks.pop(address, None)
        if block is not None:
            self._kernel.pages.free_pages(self._kernel.memory.linear_pa(address), block[1])
        return block is not None


def device_mask(kernel: Kernel, device: int) -> int:
    """Up to which address a device reaches; all of it where it says nothing."""
    found = kernel.part(Devices).at(device)
    offset = found.layout.dma_mask
    pointer = kernel.memory.read_u64(device + offset) if offset is not None else 0
    return kernel.memory.read_u64(pointer) if pointer else (1 << 64) - 1


# Masks


@kernel_symbol("dma_set_mask", runs_guest=True)
def dma_set_mask(kernel: Kernel, device: Ptr, mask: U64) -> int:
    """How far a device reaches; 0, or -EIO for a mask that is too small or a device that makes no DMA."""
    found = kernel.part(Devices).at(device)
    offset = found.layout.dma_mask
    pointer = kernel.memory.read_u64(device + offset) if offset is not None else 0
    if mask < _SMALLEST_MASK or (offset is not None and not pointer):
        return -EIO
    if pointer:
        store_uint(kernel, pointer, mask, 8)
    return 0


@kernel_symbol("dma_set_coherent_mask", runs_guest=True)
def dma_set_coherent_mask(kernel: Kernel, device: Ptr, mask: U64) -> int:
    """The same for coherent memory."""
    offset = kernel.part(Devices).at(device).layout.coherent_dma_mask
    if mask < _SMALLEST_MASK:
        return -EIO
    if offset is not None:
        store_uint(kernel, device + offset, mask, 8)
    return 0


@kernel_symbol("dma_get_required_mask")
def dma_get_required_mask(kernel: Kernel, device: Ptr) -> int:
    """The mask that reaches all RAM."""
    return (1 << (kernel.machine.ram.end - 1).bit_length()) - 1


@kernel_symbol("dma_max_mapping_size")
def dma_max_mapping_size(kernel: Kernel, device: Ptr) -> int:
    """No limit."""
    return (1 << 64) - 1


# Coherent memory


def _allocate(kernel: Kernel, device: int, size: int, handle: int) -> int:
    address = kernel.part(CoherentMemory).allocate(size)
    if address is None:
        return 0
    pa = kernel.memory.linear_pa(address)
    if pa + size - 1 > device_mask(kernel, device):
        kernel.part(CoherentMemory).release(address)
        return 0
    store_uint(kernel, handle, pa, 8)
    return address


@kernel_symbol("dma_alloc_attrs", runs_guest=True)
def dma_alloc_attrs(kernel: Kernel, device: Ptr, size: U64, handle: Ptr, flags: U32, attributes: U64) -> int:
    """Zeroed memory that a device can reach, and its DMA address; NULL without."""
    return _allocate(kernel, device, size, handle)


@kernel_symbol("dma_free_attrs", runs_guest=True)
def dma_free_attrs(kernel: Kernel, device: Ptr, size: U64, address: Ptr, handle: U64, attributes: U64) -> None:
    """Give it back; NULL is ignored.

    Raises:
        ModuleError: it is not memory of ``dma_alloc_attrs``.
    """
    if address and not kernel.part(CoherentMemory).release(address):
        raise misuse(kernel, f"dma_free_attrs({address:#x}): nothing is allocated there")


@kernel_symbol("dmam_alloc_attrs", runs_guest=True)
def dmam_alloc_attrs(kernel: Kernel, device: Ptr, size: U64, handle: Ptr, flags: U32, attributes: U64) -> int:
    """The same for the life of a device."""
    address = _allocate(kernel, device, size, handle)
    if address:
        release = kernel.symbols.resolve("pkvm_emu_dmam_release")
        devres.add(kernel.part(Devices).at(device), "action", release, address)
    return address


@kernel_symbol("pkvm_emu_dmam_release", runs_guest=True)
def dmam_release(kernel: Kernel, address: Ptr) -> None:
    """What a device does with such memory when it goes."""
    kernel.part(CoherentMemory).release(address)


# Streaming mappings


def _is_wrong(kernel: Kernel, direction: int) -> bool:
    if not 0 <= direction < _DIRECTION_NONE:
        warn(kernel, "kernel/dma/mapping.c")
        return True
    return False


@kernel_symbol("dma_map_page_attrs", runs_guest=True)
def dma_map_page_attrs(
    kernel: Kernel, device: Ptr, page: Ptr, offset: U64, size: U64, direction: S32, attributes: U64
) -> int:
    """The DMA address of part of a page; all ones where the device does not reach it."""
    pa = kernel.part(Vmemmap).physical(page)
    if pa is None or _is_wrong(kernel, direction):
        return _DMA_MAPPING_ERROR
    start = pa + offset
    if start + size - 1 <= device_mask(kernel, device):
        return start
    text = f"DMA addr {start:#018x}+{size} overflow (mask {device_mask(kernel, device):x}, bus limit 0)."
    warn(kernel, "kernel/dma/direct.h", text)
    return _DMA_MAPPING_ERROR


@kernel_symbol("dma_map_resource", runs_guest=True)
def dma_map_resource(kernel: Kernel, device: Ptr, start: U64, size: U64, direction: S32, attributes: U64) -> int:
    """The DMA address of device memory; all ones for RAM."""
    return _DMA_MAPPING_ERROR if start in kernel.machine.ram or _is_wrong(kernel, direction) else start


@kernel_symbol(
    *("dma_unmap_page_attrs", "dma_unmap_resource", "dma_unmap_sg_attrs", "dma_sync_single_for_cpu"),
    *("dma_sync_single_for_device", "__dma_sync_single_for_cpu", "__dma_sync_single_for_device"),
    *("dma_sync_sg_for_cpu", "dma_sync_sg_for_device", "__dma_sync_sg_for_cpu", "__dma_sync_sg_for_device"),
)
def dma_sync(kernel: Kernel, device: Ptr, address: U64, size: U64, direction: S32) -> None:
    """Memory is coherent here: nothing to be done."""


@kernel_symbol("__dma_need_sync", "dma_need_sync")
def dma_need_sync(kernel: Kernel, device: Ptr, address: U64) -> int:
    """It never has to be."""
    return 0


def _map_list(kernel: Kernel, device: int, first: int, count: int, direction: int) -> int:
    if _is_wrong(kernel, direction):
        return 0
    mask = device_mask(kernel, device)
    found = entries(kernel, first, count)
    for entry in found:
        start, size = physical(kernel, entry), length(kernel, entry)
        if not start or start + size - 1 > mask:
            return 0
        store_uint(kernel, entry + DMA_ADDRESS, start, 8)
        store_uint(kernel, entry + DMA_LENGTH, size, 4)
    return len(found)


@kernel_symbol("dma_map_sg_attrs", runs_guest=True)
def dma_map_sg_attrs(kernel: Kernel, device: Ptr, first: Ptr, count: U32, direction: S32, attributes: U64) -> int:
    """DMA addresses of a scatter list; how many, 0 where one cannot be reached."""
    return _map_list(kernel, device, first, count, direction)


@kernel_symbol("dma_map_sgtable", runs_guest=True)
def dma_map_sgtable(kernel: Kernel, device: Ptr, table: Ptr, direction: S32, attributes: U64) -> int:
    """The same of a ``struct sg_table``; 0, -EINVAL, -EIO."""
    memory = kernel.memory
    if _is_wrong(kernel, direction):
        return -EINVAL
    done = _map_list(kernel, device, memory.read_u64(table), memory.read_u32(table + 12), direction)
    if not done:
        return -EIO
    memory.write_u32(table + 8, done)
    return 0
