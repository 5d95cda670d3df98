"""Pages that devices reach: while an IOMMU maps them they may not change hands.

RAM pages are counted, MMIO pages are marked once and for ever (a module cannot donate them any more). Source:
arch/arm64/kvm/hyp/nvhe/mem_protect.c (__pkvm_use_dma, __pkvm_unuse_dma; 6.6: __pkvm_host_use_dma).
"""

from __future__ import annotations

from errno import EINVAL, EPERM

from pkvm_emu.hyp.ownership_state import OwnershipState
from pkvm_emu.hyp.page_state import MMIO_DMA, NOPAGE, OWNED, SHARED_BORROWED, SHARED_OWNED, U64_MAX
from pkvm_emu.hyp.pgtable import HOST_MMIO_PROT, with_state
from pkvm_emu.machine.pagetable import PAGE_MASK, PAGE_SHIFT


class DmaUse(OwnershipState):
    """References that IOMMU mappings hold."""

    def use_dma(self, pa: int, size: int, origin: str = "", by_guest: bool = False) -> int:
        """Count a device mapping of memory.

        Args:
            pa, size: page-aligned range in bytes, inside one region or gap.
            origin: who asks, for the pages' histories.
            by_guest: a guest asks, which is known to have access; registers are refused with 22, a positive number (as in the
                original).

        Errors: -EPERM (not the host's own; 6.6 accepts pages shared with others than the hypervisor), -EINVAL.
        """
        op, args = "use_dma", (pa, size)
        self._need_alignment(op, args)
        where = self._memory.find(pa)
        if not where.start <= (pa + size - 1) & U64_MAX < where.end:
            return self._refuse(op, args, -EINVAL, "the range is not inside one memory region or one gap", pa)
        if where.region is None and by_guest:
            return EINVAL
        if where.region is None:
            error = self._taint_mmio(op, args, pa, size)
        else:
            error = self._count_ram(op, args, pa, size, by_guest)
        if not error:
            owner = "a GUEST" if by_guest else "HOST"
            self._record(op, pa, size >> PAGE_SHIFT, origin, f"OWNED by {owner}", f"OWNED by {owner}, used for DMA")
        return error

    def unuse_dma(self, pa: int, size: int, origin: str = "", by_guest: bool = False) -> int:
        """End one use. Raises :class:`HypBug` for a page that is not in use; MMIO stays as it is, and is a BUG for a guest."""
        op, args = "pkvm_unuse_dma", (pa, size)
        self._need_alignment(op, args)
        if not self._memory.range_is_memory(pa, pa + size & U64_MAX):
            if by_guest:
                self._bug(op, args, "a guest's DMA reached what is no memory")
            return 0
        for page in self._pages(pa, size):
            self._vmemmap.add_refcount(page, -1)
        self._record(op, pa, size >> PAGE_SHIFT, origin, "used for DMA", "one use less")
        return 0

    def _need_alignment(self, op: str, args: tuple[int, int]) -> None:
        if (args[0] | args[1]) & PAGE_MASK:
            self._bug(op, args, "the range is not page aligned")

    def _taint_mmio(self, op: str, args: tuple[int, ...], pa: int, size: int) -> int:
        before = self.last_refusal
        if not self._check_host(op, args, pa, size, MMIO_DMA):
            return 0
        self.last_refusal = before
        error = self._check_host(op, args, pa, size, OWNED)
        return error or self._host.idmap(pa, size, with_state(HOST_MMIO_PROT, MMIO_DMA))

    def _count_ram(self, op: str, args: tuple[int, ...], pa: int, size: int, by_guest: bool) -> int:
        for page in () if by_guest else self._pages(pa, size):
            state = self.host_state(page)
            shared = state in (SHARED_OWNED, SHARED_BORROWED)
            if state == OWNED or (shared and not self._rules.dma_needs_owned and self.hyp_state(page) == NOPAGE):
                continue
            return self._refuse(op, args, -EPERM, "devices may only reach pages that the host owns alone", page)
        for page in self._pages(pa, size):
            self._vmemmap.add_refcount(page, 1)
        return 0
