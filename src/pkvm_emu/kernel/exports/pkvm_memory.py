"""Topping up the hypervisor's allocators: the host's pages go to EL2 as a list in the pages themselves.

Source: arch/arm64/kvm/pkvm.c (__pkvm_topup_hyp_alloc), arch/arm64/include/asm/kvm_host.h (struct kvm_hyp_memcache).
"""

from __future__ import annotations

from errno import E2BIG, ENOMEM

from pkvm_emu.abi.errno import errno_name
from pkvm_emu.kernel.exports.pkvm import hypercall
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import U32, U64

_HEAP = 0
_PAGE_SIZE, _PAGE_SHIFT = 4096, 12


def _s32(value: int) -> int:
    return ((value & 0xFFFF_FFFF) ^ 1 << 31) - (1 << 31)


def _top_up(kernel: Kernel, allocator: int, blocks: int, order: int) -> int:
    """Allocate ``blocks`` blocks, link them and hand them to an allocator of the hypervisor; 0 or -errno."""
    if not kernel.protected:
        return 0
    if blocks << order > kernel.machine.ram.size >> _PAGE_SHIFT:
        return -ENOMEM  # After the kernel had taken all of its memory, and given it back.
    taken: list[int] = []
    head = 0
    for _ in range(blocks):
        pa = kernel.pages.alloc_pages(order)
        if pa is None:
            _free(kernel, taken, order)
            return -ENOMEM
        kernel.machine.ram.write_u64(pa, head)
        head = pa | order
        taken.append(pa)
    answer = hypercall(kernel, "hyp_alloc_mgt_refill", allocator, head, blocks)
    result = _s32(answer[1]) if answer[0] == 0 else -ENOMEM
    if result:
        kernel.kvm_log(f"the hypervisor's allocator {allocator} takes no pages ({errno_name(result)})", level=4)
        _free(kernel, taken, order)
    return result


def _free(kernel: Kernel, blocks: list[int], order: int) -> None:
    for pa in blocks:
        kernel.pages.free_pages(pa, order)


@kernel_symbol("__pkvm_topup_hyp_alloc", runs_guest=True)
def pkvm_topup_hyp_alloc(kernel: Kernel, pages: U64) -> int:
    """Give ``pages`` pages to the heap of the hypervisor (``hyp_alloc``); 0 or -ENOMEM."""
    return _top_up(kernel, _HEAP, pages, 0)


@kernel_symbol("__pkvm_topup_hyp_alloc_mgt_gfp", runs_guest=True)
def pkvm_topup_hyp_alloc_mgt_gfp(kernel: Kernel, allocator: U64, blocks: U64, size: U64, gfp: U32) -> int:
    """Give ``blocks`` blocks of ``size`` bytes each to an allocator: 0 the heap, 1 the IOMMU pool.

    0, -ENOMEM, -E2BIG for blocks of more than 2^12 pages, or what the hypervisor says (-EINVAL without an IOMMU driver).
    """
    order = max(0, (-(-size // _PAGE_SIZE) - 1).bit_length()) if size else 64 - _PAGE_SHIFT
    if order > _PAGE_SHIFT:
        return -E2BIG
    return _top_up(kernel, allocator, blocks, order)


@kernel_symbol("__pkvm_topup_hyp_alloc_mgt", runs_guest=True)
def pkvm_topup_hyp_alloc_mgt(kernel: Kernel, allocator: U64, blocks: U64, size: U64) -> int:
    """As ``__pkvm_topup_hyp_alloc_mgt_gfp`` with GFP_KERNEL (android15)."""
    return pkvm_topup_hyp_alloc_mgt_gfp(kernel, allocator, blocks, size, 0)
