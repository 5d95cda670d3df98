"""Where things are in the emulated kernel's address space: 39-bit VAs and 4 KiB pages, as every GKI kernel is built.

The numbers follow ``arch/arm64/include/asm/memory.h`` of 6.12 for VA_BITS=39; code in modules computes with
``memstart_addr`` and ``kimage_voffset``, so what matters is that the three areas fit together.
"""

from __future__ import annotations

VA_BITS = 39
PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT

#: Start of the linear map: ``PAGE_OFFSET``.
PAGE_OFFSET = 0xFFFF_FF80_0000_0000
LINEAR_END = PAGE_OFFSET + (1 << (VA_BITS - 1))
#: ``KIMAGE_VADDR``; the module area lies below it, so that calls between modules and kernel need no veneer.
KIMAGE_VADDR = 0xFFFF_FFC0_8000_0000
MODULES_VADDR = 0xFFFF_FFC0_7800_0000
MODULES_END = KIMAGE_VADDR
VMALLOC_START = 0xFFFF_FFC0_8800_0000
VMALLOC_END = 0xFFFF_FFFD_C000_0000

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

#: Kernel stacks: 16 KiB each, with an unmapped guard of the same size below.
STACK_SIZE = 0x4000
STACKS_VADDR = 0xFFFF_FFC0_8700_0000

_HYP_RESERVED_FIRST_GIB, _HYP_RESERVED_PER_GIB = 12 << 20, 6 << 20


def hyp_reserved_size(ram_size: int) -> int:
    """Bytes reserved at the end of RAM for the hypervisor (``kvm [0]: Reserved 12 MiB at ...`` with 1 GiB).

    Its vmemmap and its page tables grow with RAM, as ``hyp_vmemmap_pages`` and ``hyp_s1_pgtable_pages`` have it.
    """
    further = max(0, (ram_size - 1) >> 30)
    return _HYP_RESERVED_FIRST_GIB + further * _HYP_RESERVED_PER_GIB
