"""What the host may do with its pages: permissions set by modules, lazily filled entries, reading entries back.

Source: arch/arm64/kvm/hyp/nvhe/mem_protect.c (module_change_host_page_prot, __pkvm_host_lazy_pte,
host_stage2_get_leaf).
"""

from __future__ import annotations

from errno import EINVAL, EPERM

from pkvm_emu.hyp.ownership_state import OwnershipState
from pkvm_emu.hyp.page_state import MODULE_OWNED, OWNED, U64_MAX, Component
from pkvm_emu.hyp.pgtable import HOST_MEM_PROT, PROT_DEVICE, PROT_NORMAL_NC, PROT_PXN, PROT_RWX, PROT_UXN
from pkvm_emu.machine.pagetable import PAGE_SHIFT, PAGE_SIZE, Leaf

_MODULE_PROTS = PROT_RWX | PROT_DEVICE | PROT_NORMAL_NC | PROT_PXN | PROT_UXN


class Permissions(OwnershipState):
    """Transitions between the host's default mapping and the restricted ones."""

    def host_stage2_mod_prot(
        self, pfn: int, prot: int, pages: int = 1, update_iommu: bool = False, origin: str = ""
    ) -> int:
        """Change what the host may do with a range; RAM becomes module-owned until RWX is given back.

        Errors: -EINVAL (unknown bits, overflow, references), -EPERM (beyond the region, not the host's or mixed).

        Raises:
            HypBug: a protection that stage-2 does not have, or no table page.
        """
        op, args, start = "host_stage2_mod_prot", (pfn, prot, pages), pfn << PAGE_SHIFT & U64_MAX
        if prot & ~_MODULE_PROTS:
            return self._refuse(op, args, -EINVAL, "the protection has unknown bits")
        size = pages << PAGE_SHIFT & U64_MAX
        if self._overflows(pages) or (self._rules.size_overflow_checked and start + size > U64_MAX):
            return self._refuse(op, args, -EINVAL, "the range overflows")
        where = self._memory.find(start)
        if start + size & U64_MAX > where.end:
            return self._refuse(op, args, -EPERM, "the range is not inside one memory region or one gap", start)
        if where.region:
            error = self._check_module_range(op, args, start, size)
            if error:
                return error
        if prot:
            error = self._host.idmap(start, size, prot, update_iommu)
        else:
            error = self._set_owner(start, size, Component.PROTECTED, MODULE_OWNED, update_iommu)
        if error:
            self._bug(op, args, f"the host stage-2 cannot take the protection (errno {-error})")
        self._mark_module_pages(start, pages, prot, bool(where.region))
        self._record(op, start, pages, origin, "host permission", f"host permission {_prot_name(prot)}")
        return 0

    def _check_module_range(self, op: str, args: tuple[int, ...], start: int, size: int) -> int:
        if self._vmemmap.host_state(start) & MODULE_OWNED:
            for index, state in enumerate(self._vmemmap.states(start, size >> PAGE_SHIFT)):
                if not state & MODULE_OWNED:
                    page = start + index * PAGE_SIZE
                    return self._refuse(op, args, -EPERM, "the range is only partly module-owned", page)
            return 0
        return self._check_host(op, args, start, size, OWNED)

    def _mark_module_pages(self, start: int, pages: int, prot: int, is_memory: bool) -> None:
        if not is_memory or (not prot and not self._rules.state_in_pte):
            return
        self._vmemmap.set_states(start, pages, OWNED if prot == PROT_RWX else MODULE_OWNED)

    def host_stage2_get_leaf(self, pa: int) -> Leaf | None:
        """The host's entry for a physical address, as it stands; None beyond the address range (-ERANGE)."""
        return self._host.get_leaf(pa)

    def host_stage2_enable_lazy_pte(self, pfn: int, pages: int, origin: str = "") -> int:
        """Empty the entries of host pages (the host keeps them and refaults). Errors: -EPERM, -EINVAL, -ENOMEM."""
        op, args, start = "host_stage2_enable_lazy_pte", (pfn, pages), pfn << PAGE_SHIFT & U64_MAX
        size = pages << PAGE_SHIFT & U64_MAX
        error = self._check_lazy(op, args, start, pages)
        if error:
            return error
        error = self._host.table.hold_pages(start, size)
        if error:
            return self._refuse(op, args, error, "no page is left for the host stage-2", start)
        self._record(op, start, pages, origin, "OWNED by HOST", "OWNED by HOST, filled lazily")
        return 0

    def host_stage2_disable_lazy_pte(self, pfn: int, pages: int, origin: str = "") -> int:
        """End lazy filling; 6.12 maps the pages at once. Raises :class:`HypBug` where it was not on."""
        op, args, start = "host_stage2_disable_lazy_pte", (pfn, pages), pfn << PAGE_SHIFT & U64_MAX
        size = pages << PAGE_SHIFT & U64_MAX
        error = self._check_lazy(op, args, start, pages)
        if error:
            return error
        error = self._host.table.release_pages(start, size)
        if error:
            return self._refuse(op, args, error, "the range lies beyond the physical address size", start)
        if self._rules.lazy_disable_maps:
            self._must(op, args, self._host.idmap(start, size, HOST_MEM_PROT))
        self._record(op, start, pages, origin, "OWNED by HOST, filled lazily", "OWNED by HOST")
        return 0

    def _check_lazy(self, op: str, args: tuple[int, ...], start: int, pages: int) -> int:
        size = pages << PAGE_SHIFT & U64_MAX
        if self._overflows(pages) or (self._rules.size_overflow_checked and start + size > U64_MAX):
            return self._refuse(op, args, -EINVAL, "the range overflows")
        if not self._memory.range_is_memory(start, start + size & U64_MAX):
            return self._refuse(op, args, -EPERM, "the range is not inside one RAM region", start)
        if self._rules.refcount_check == "before_state" and self._vmemmap.any_referenced(start, pages):
            return self._refuse(op, args, self._rules.lazy_refcounted_errno, "a page has references", start)
        return self._check_host(op, args, start, size, OWNED)


def _prot_name(prot: int) -> str:
    names = ((4, "R"), (2, "W"), (1, "X"), (8, "+DEVICE"), (16, "+NC"), (32, "+PXN"), (64, "+UXN"))
    return "".join(name for bit, name in names if prot & bit) or "none"
