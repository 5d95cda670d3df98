"""Where things are in the emulated kernel's address space, by bits of a kernel address; pages are 4 KiB.

Code in modules computes with ``PAGE_OFFSET`` and ``VMEMMAP_START`` of the kernel that it was compiled for, and with
``memstart_addr`` and ``kimage_voffset``. The first two follow from VA_BITS: 39 as stock GKI kernels have it, 48 as kernels with
another configuration may. Source: ``arch/arm64/include/asm/memory.h``.
"""

from __future__ import annotations

from dataclasses import dataclass

from pkvm_emu.errors import UsageError

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
DEFAULT_VA_BITS = 39


@dataclass(frozen=True, slots=True)
class AddressLayout:
    """The areas of a kernel with so many address bits.

    Attributes:
        va_bits: bits of a kernel address, and of a user's.
        page_offset: ``PAGE_OFFSET``: start of the linear map.
        linear_end: ``PAGE_END``: its end.
        modules_vaddr, modules_end: the module area; it lies right below the image, so that calls between modules and kernel
            need no veneer.
        kimage_vaddr: ``KIMAGE_VADDR``.
        stacks_vaddr: kernel stacks, 16 KiB each, with an unmapped guard of the same size below.
        vmalloc_start, vmalloc_end: the vmalloc area. It ends below the vmemmap of every kernel line.
    """

    va_bits: int
    page_offset: int
    linear_end: int
    modules_vaddr: int
    modules_end: int
    kimage_vaddr: int
    stacks_vaddr: int
    vmalloc_start: int
    vmalloc_end: int


#: By VA_BITS.
LAYOUTS = {
    39: AddressLayout(
        va_bits=39,
        page_offset=0xFFFF_FF80_0000_0000,
        linear_end=0xFFFF_FFC0_0000_0000,
        modules_vaddr=0xFFFF_FFC0_7800_0000,
        modules_end=0xFFFF_FFC0_8000_0000,
        kimage_vaddr=0xFFFF_FFC0_8000_0000,
        stacks_vaddr=0xFFFF_FFC0_8700_0000,
        vmalloc_start=0xFFFF_FFC0_8800_0000,
        vmalloc_end=0xFFFF_FFFD_C000_0000,
    ),
    48: AddressLayout(
        va_bits=48,
        page_offset=0xFFFF_0000_0000_0000,
        linear_end=0xFFFF_8000_0000_0000,
        modules_vaddr=0xFFFF_8000_7800_0000,
        modules_end=0xFFFF_8000_8000_0000,
        kimage_vaddr=0xFFFF_8000_8000_0000,
        stacks_vaddr=0xFFFF_8000_8700_0000,
        vmalloc_start=0xFFFF_8000_8800_0000,
        vmalloc_end=0xFFFF_FBFF_C000_0000,
    ),
}


def address_layout(va_bits: int | None) -> AddressLayout:
    """The layout for so many address bits; None: the default.

    Raises:
        UsageError: kernels with 4 KiB pages and so many bits are not emulated.
    """
    row = LAYOUTS.get(va_bits or DEFAULT_VA_BITS)
    if row is None:
        raise UsageError(
            f"a kernel with {va_bits}-bit addresses is not emulated; there are: {', '.join(map(str, LAYOUTS))}"
        )
    return row


#: Offset of the kernel image from the start of RAM, and the room it takes.
KIMAGE_OFFSET = 0x20_0000
KIMAGE_SIZE = 0x80_0000
#: Inside the image: vectors and entry stubs, stubs of exported functions, exported variables, per-CPU areas, the first tasks.
IMAGE_TEXT = 0x0000
IMAGE_STUBS = 0x1_0000
IMAGE_STUBS_SIZE = 0x4_0000
IMAGE_DATA = 0x10_0000
IMAGE_DATA_SIZE = 0x10_0000
IMAGE_TASKS = 0x30_0000
TASK_SIZE = 0x4000
IMAGE_PERCPU = 0x40_0000
PERCPU_SIZE = 0x1_0000
#: The hypervisor's code and data are part of the image, as in a real kernel.
IMAGE_HYP_TEXT = 0x50_0000

STACK_SIZE = 0x4000

_HYP_RESERVED_FIRST_GIB, _HYP_RESERVED_PER_GIB = 12 << 20, 6 << 20


def hyp_reserved_size(ram_size: int) -> int:
    """Bytes reserved at the end of RAM for the hypervisor (``kvm [0]: Reserved 12 MiB at ...`` with 1 GiB).

    Its vmemmap and its page tables grow with RAM, as ``hyp_vmemmap_pages`` and ``hyp_s1_pgtable_pages`` have it.
    """
    further = max(0, (ram_size - 1) >> 30)
    return _HYP_RESERVED_FIRST_GIB + further * _HYP_RESERVED_PER_GIB
