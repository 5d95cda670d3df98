"""Donation: pages that change their owner between the host and the hypervisor.

Source: arch/arm64/kvm/hyp/nvhe/mem_protect.c (___pkvm_host_donate_hyp_prot, __pkvm_hyp_donate_host,
__pkvm_host_donate_sglist_hyp).
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EINVAL, EPERM

from pkvm_emu.hyp.ownership_state import OwnershipState
from pkvm_emu.hyp.page_state import OWNED, U64_MAX, Component
from pkvm_emu.hyp.pgtable import HOST_MEM_PROT, PAGE_HYP, PAGE_HYP_DEVICE, with_state
from pkvm_emu.machine.pagetable import PAGE_SHIFT, PAGE_SIZE


class Donation(OwnershipState):
    """Transitions between the host's OWNED and the hypervisor's OWNED."""

    def host_donate_hyp(
        self,
        pfn: int,
        pages: int = 1,
        accept_mmio: bool | None = None,
        prot: int | None = None,
        origin: str = "",
        op: str = "host_donate_hyp",
    ) -> int:
        """Give host pages to the hypervisor.

        Args:
            pfn, pages: the range.
            accept_mmio: take pages outside RAM too; None: as the generation's op without that argument does.
            prot: EL2 protection; None: RW, with DEVICE when the first page is not RAM.
            origin: who asks.
            op: name for history and refusals (``host_donate_hyp_prot``, ``map_module_page``, ...).

        Errors:
            -EPERM: not the host's, or outside RAM without ``accept_mmio``. -EINVAL: references, overflow, RAM and MMIO
            mixed. -ERANGE: beyond the physical address size. -ENOMEM: no table page (undone).
        """
        start = pfn << PAGE_SHIFT & U64_MAX
        size = pages << PAGE_SHIFT & U64_MAX
        args: tuple[int, ...] = (pfn, pages)
        if accept_mmio is None:
            accept_mmio = self._rules.mmio_always_accepted
        if not accept_mmio and not self._memory.range_is_memory(start, start + size & U64_MAX):
            return self._refuse(op, args, -EPERM, "the range is not RAM and MMIO is not accepted", start)
        if self._overflows(pages):
            return self._refuse(op, args, -EINVAL, "the page count overflows")
        error = self._check_host_owned(op, args, start, pages, ram_only=False)
        if error:
            return error
        if prot is None:
            prot = PAGE_HYP if self._memory.is_memory(start) else PAGE_HYP_DEVICE
        error = self._donate(op, args, start, size, with_state(prot, OWNED))
        if not error:
            self._record(op, start, size >> PAGE_SHIFT, origin, "OWNED by HOST", "OWNED by HYP")
        return error

    def _donate(self, op: str, args: tuple[int, ...], start: int, size: int, prot: int) -> int:
        if self._rules.hyp_mapped_first:
            error = self._map_at_hyp(op, args, start, size, prot)
            if error:
                return self._refuse(op, args, error, "no page is left for EL2 tables", start)
            self._must(op, args, self._set_owner(start, size, Component.HYP))
            return 0
        error = self._set_owner(start, size, Component.HYP)
        if error:
            return self._refuse(op, args, error, "no page is left for the host stage-2", start)
        error = self._map_at_hyp(op, args, start, size, prot)
        if error:
            self._must(op, args, self._set_owner(start, size, Component.HOST))
            return self._refuse(op, args, error, "no page is left for EL2 tables", start)
        return 0

    def host_donate_sglist_hyp(self, entries: Sequence[tuple[int, int]], origin: str = "") -> int:
        """Give a list of ``(pfn, order)`` blocks of RAM to the hypervisor; all are checked before any is taken."""
        op = "host_donate_sglist_hyp"
        for pfn, order in entries:
            args, start = (pfn, order), pfn << PAGE_SHIFT & U64_MAX
            if PAGE_SIZE << order > U64_MAX:
                return self._refuse(op, args, -EINVAL, "the order is too large")
            if not self._memory.is_memory(start):
                return self._refuse(op, args, -EINVAL, "only RAM can be donated in a list", start)
            error = self._check_host(op, args, start, PAGE_SIZE << order, OWNED)
            if error:
                return error
        for index, (pfn, order) in enumerate(entries):
            args, start, size = (pfn, order), pfn << PAGE_SHIFT, PAGE_SIZE << order
            error = self._map_at_hyp(op, args, start, size, with_state(PAGE_HYP, OWNED))
            if error:
                self._roll_back(op, entries[: index + 1])
                return self._refuse(op, args, error, "no page is left for EL2 tables", start)
            self._must(op, args, self._set_owner(start, size, Component.HYP, update_iommu=False))
            self._host.tell_iommu(start, start + size, 0)
            self._record(op, start, size >> PAGE_SHIFT, origin, "OWNED by HOST", "OWNED by HYP")
        self._host.complete_iommu(False)
        return 0

    def _roll_back(self, op: str, entries: Sequence[tuple[int, int]]) -> None:
        """Undo a list as the hypervisor does: mapped for the host again, but with their state left at NOPAGE."""
        self._host.complete_iommu(False)
        for pfn, order in reversed(entries):
            start, size = pfn << PAGE_SHIFT, PAGE_SIZE << order
            self._must(op, (pfn, order), self._host.idmap(start, size, HOST_MEM_PROT))
            self._host.tell_iommu(start, start + size, HOST_MEM_PROT)
            self._hyp.unmap(self._hyp.va_of(start), size)
            self._record(op, start, size >> PAGE_SHIFT, "rollback", "OWNED by HYP", "mapped for HOST")
        self._host.complete_iommu(True)

    def hyp_donate_host(self, pfn: int, pages: int = 1, origin: str = "", op: str = "hyp_donate_host") -> int:
        """Give pages that the hypervisor owns (mapped RW) to the host. Errors: -EPERM, -EINVAL, -ERANGE."""
        args, start = (pfn, pages), pfn << PAGE_SHIFT & U64_MAX
        if self._overflows(pages):
            return self._refuse(op, args, -EINVAL, "the page count overflows")
        size = pages << PAGE_SHIFT & U64_MAX
        error = self._check_hyp(op, args, self._hyp.va_of(start), size, OWNED)
        if error:
            return error
        self._unmap_at_hyp(op, args, start, size)
        self._must(op, args, self._set_owner(start, size, Component.HOST))
        self._record(op, start, size >> PAGE_SHIFT, origin, "OWNED by HYP", "OWNED by HOST")
        return 0
