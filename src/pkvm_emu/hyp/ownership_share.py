"""Sharing host pages with the hypervisor or the secure world, and pinning what is shared.

Source: arch/arm64/kvm/hyp/nvhe/mem_protect.c (__pkvm_host_share_hyp, __pkvm_host_unshare_hyp, hyp_pin_shared_mem,
hyp_unpin_shared_mem, __pkvm_host_share_ffa).
"""

from __future__ import annotations

from errno import EINVAL, EPERM

from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.ownership_state import OwnershipState
from pkvm_emu.hyp.page_state import OWNED, SHARED_BORROWED, SHARED_OWNED, U64_MAX, state_name
from pkvm_emu.hyp.pgtable import PAGE_HYP, with_state
from pkvm_emu.machine.pagetable import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE


class Sharing(OwnershipState):
    """Transitions between OWNED and SHARED_OWNED."""

    def host_share_hyp(self, pfn: int, origin: str = "") -> int:
        """Share one host page with the hypervisor, mapped RW in its linear map.

        Errors: -EPERM (not the host's own), -EINVAL (references; 6.12: not RAM), -ENOMEM (undone).
        """
        op, args, start = "host_share_hyp", (pfn,), pfn << PAGE_SHIFT & U64_MAX
        error = self._check_host_owned(op, args, start, 1, ram_only=True)
        if error:
            return error
        if not self._memory.is_memory(start):
            return self._refuse(op, args, -EPERM, "only RAM can be shared", start)
        error = self._share(op, args, start)
        if not error:
            self._record(op, start, 1, origin, "OWNED by HOST", "SHARED with HYP")
        return error

    def _share(self, op: str, args: tuple[int, ...], start: int) -> int:
        if not self._rules.hyp_mapped_first:
            error = self._set_host_state(start, PAGE_SIZE, SHARED_OWNED)
            if error:
                return self._refuse(op, args, error, "no page is left for the host stage-2", start)
        error = self._map_at_hyp(op, args, start, PAGE_SIZE, with_state(PAGE_HYP, SHARED_BORROWED))
        if error:
            if not self._rules.hyp_mapped_first:
                self._must(op, args, self._set_host_state(start, PAGE_SIZE, OWNED))
            return self._refuse(op, args, error, "no page is left for EL2 tables", start)
        if self._rules.hyp_mapped_first:
            self._must(op, args, self._set_host_state(start, PAGE_SIZE, SHARED_OWNED))
        return 0

    def host_unshare_hyp(self, pfn: int, origin: str = "") -> int:
        """Take a shared page back. Errors: -EPERM (not shared), and the generation's errno for a pinned page."""
        op, args, start = "host_unshare_hyp", (pfn,), pfn << PAGE_SHIFT & U64_MAX
        when = self._rules.unshare_pinned_check
        if when == "first" and self._vmemmap.refcount(start):
            return self._refuse_pinned(op, args, start)
        error = self._check_host(op, args, start, PAGE_SIZE, SHARED_OWNED, ram_only=True)
        if error:
            return error
        if when == "between" and self._vmemmap.refcount(start):
            return self._refuse_pinned(op, args, start)
        va = self._hyp.va_of(start)
        error = self._check_hyp(op, args, va, PAGE_SIZE, SHARED_BORROWED)
        if error:
            return error
        if when == "last" and self._vmemmap.refcount(start):
            return self._refuse_pinned(op, args, start)
        self._unmap_at_hyp(op, args, start, PAGE_SIZE)
        self._must(op, args, self._set_host_state(start, PAGE_SIZE, OWNED))
        self._record(op, start, 1, origin, "SHARED with HYP", "OWNED by HOST")
        return 0

    def _refuse_pinned(self, op: str, args: tuple[int, ...], start: int) -> int:
        return self._refuse(op, args, self._rules.unshare_pinned_errno, "the page is pinned or used for DMA", start)

    def pin_shared_mem(self, start_va: int, end_va: int, origin: str = "") -> int:
        """Pin shared pages so that the host cannot unshare them; hyp VAs, widened to whole pages; all or nothing."""
        op, args = "pin_shared_mem", (start_va, end_va)
        va, size = _page_span(start_va, end_va)
        pa = self._hyp.pa_of(va)
        error = self._check_host(op, args, pa, size, SHARED_OWNED, ram_only=True)
        if not error:
            error = self._check_hyp(op, args, va, size, SHARED_BORROWED)
        if error:
            return error
        for page in self._pages(pa, size):
            self._vmemmap.add_refcount(page, 1)
        self._record(op, pa, size >> PAGE_SHIFT, origin, "SHARED with HYP", "SHARED with HYP, one pin more")
        return 0

    def unpin_shared_mem(self, start_va: int, end_va: int, origin: str = "") -> None:
        """Drop a pin of each page. Raises :class:`HypBug` for a page without pins."""
        va, size = _page_span(start_va, end_va)
        pa = self._hyp.pa_of(va)
        for page in self._pages(pa, size):
            self._vmemmap.add_refcount(page, -1)
        self._record("unpin_shared_mem", pa, size >> PAGE_SHIFT, origin, "SHARED with HYP", "one pin less")

    def host_share_ffa(self, pfn: int, pages: int, origin: str = "") -> int:
        """Mark host pages as shared with the secure world (host side only)."""
        return self._ffa("host_share_ffa", pfn, pages, origin, OWNED, SHARED_OWNED)

    def host_unshare_ffa(self, pfn: int, pages: int, origin: str = "") -> int:
        """End :meth:`host_share_ffa`."""
        return self._ffa("host_unshare_ffa", pfn, pages, origin, SHARED_OWNED, OWNED)

    def _ffa(self, op: str, pfn: int, pages: int, origin: str, before: int, after: int) -> int:
        args, start = (pfn, pages), pfn << PAGE_SHIFT & U64_MAX
        if self._overflows(pages):
            return self._refuse(op, args, -EINVAL, "the page count overflows")
        if not pages and self._rules.empty_share_errno:
            return self._refuse(op, args, self._rules.empty_share_errno, "no page is given")
        size = pages << PAGE_SHIFT & U64_MAX
        if before == OWNED:
            error = self._check_host_owned(op, args, start, pages, ram_only=True)
        else:
            if self._rules.unshare_pinned_check == "first" and self._vmemmap.any_referenced(start, pages):
                return self._refuse_pinned(op, args, start)
            error = self._check_host(op, args, start, size, before, ram_only=True)
        if error:
            return error
        if not self._rules.state_in_pte and not self._memory.range_is_memory(start, start + size & U64_MAX):
            return self._refuse(op, args, -EPERM, "only RAM can be shared", start)
        error = self._set_host_state(start, size, after)
        if not error:
            self._record(op, start, pages, origin, f"{state_name(before)} (FF-A)", f"{state_name(after)} (FF-A)")
        return error


def _page_span(start: int, end: int) -> tuple[int, int]:
    """``(first page, bytes)`` of a hyp VA range widened to whole pages."""
    first = start & ~PAGE_MASK
    last = end + PAGE_MASK & ~PAGE_MASK & U64_MAX
    if last < first:
        raise HypBug(f"pin range {start:#x}..{end:#x} ends before it begins")
    return first, last - first
