"""The hypervisor's address space: the linear map's tag, and the private range with what grows in it.

A hyp VA of the linear map is the low bits of the kernel's linear address under a tag, as ``kern_hyp_va`` makes it. The
private range starts at bit 46 of a 48-bit space and only ever grows. A device chooses the tag
at random at boot; here it is fixed. Source: arch/arm64/kvm/va_layout.c, hyp/nvhe/mm.c.
"""

from __future__ import annotations

VA_BITS = 48
#: The tag over the low bits of the linear map; RAM may span 16 GiB.
TAG_LSB = 34
TAG = 0x6C_0000_0000
LOW_MASK = (1 << TAG_LSB) - 1
PRIVATE_BASE = 1 << 46
#: Also the upper end of the private range.
VMEMMAP_BASE = PRIVATE_BASE | 1 << 45
#: Where the first module lands on the recorded kernel: what lies below are stacks, fixmaps and the heap.
FIRST_MODULE_VA = PRIVATE_BASE + 0x840_0000

STACK_SIZE = 0x2000
OVERFLOW_STACK_SIZE = 0x1000
#: One page a CPU: the host context, both sets of pointer-authentication keys.
PER_CPU_SIZE = 0x1000
HOST_KEYS_OFFSET = 0xD00
HYP_KEYS_OFFSET = 0xD80

#: One page a CPU, then the one 2 MiB slot, then the address space of ``hyp_alloc`` up to the first module.
FIXMAP_VA = PRIVATE_BASE + 0x10_0000
FIXBLOCK_VA = PRIVATE_BASE + 0x20_0000
FIXBLOCK_SIZE = 2 << 20
HEAP_VA = PRIVATE_BASE + 0x40_0000
HEAP_SIZE = 128 << 20


def kern_hyp_va(kernel_va: int) -> int:
    """Hyp VA of a kernel linear-map VA: its low bits under the tag; a linear hyp VA stays as it is (no check)."""
    return kernel_va & LOW_MASK | TAG


def linear_offset(memstart: int) -> int:
    """Hyp VA minus PA of the linear map, where the kernel's linear map starts at ``memstart``."""
    return TAG - memstart
