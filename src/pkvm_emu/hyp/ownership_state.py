"""What the hypervisor believes about pages, and the two primitive changes: taking a page and giving it back.

The checks run in the hypervisor's order and stop at its first complaint; which errno that is differs by generation
(:mod:`pkvm_emu.abi.ownership`). Source: arch/arm64/kvm/hyp/nvhe/mem_protect.c (host_check_page_state_range,
host_stage2_set_owner, hyp_check_page_state_range).
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL, ENOMEM, EPERM, ERANGE
from typing import NoReturn

from pkvm_emu.abi.ownership import OwnershipRules
from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.host_stage2 import HostStage2
from pkvm_emu.hyp.hyp_stage1 import HypStage1
from pkvm_emu.hyp.ownership_log import PageEvent, PageInfo, Refusal, history_of
from pkvm_emu.hyp.page_state import (
    MODULE_OWNED,
    NOPAGE,
    OWNED,
    RESTRICTED_PROT,
    U64_MAX,
    Component,
    HypVmemmap,
    MemoryMap,
    state_name,
)
from pkvm_emu.hyp.pgtable import (
    HOST_MEM_PROT,
    HOST_MMIO_PROT,
    OWNER_MASK,
    OWNER_SHIFT,
    PROT_RWX,
    owner_annotation,
    stage2_prot,
    state_of,
    visit_leaves,
    with_state,
)
from pkvm_emu.machine.pagetable import DESC_VALID, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from pkvm_emu.machine.state import Journal, State, StateList


class OwnershipState(State):
    """States, checks and the log; the transitions are in :class:`pkvm_emu.hyp.ownership.Ownership`.

    Args:
        journal: owner of what goes back with a snapshot.
        memory: RAM and gaps.
        vmemmap: struct hyp_page of RAM.
        host, hyp: the two tables.
        rules: the generation.

    Attributes:
        last_refusal: the last operation that returned an errno, or None.
        early_mappings: bytes that are mapped at EL2 without any ownership (``linear_map_early``).
    """

    def __init__(
        self,
        journal: Journal,
        memory: MemoryMap,
        vmemmap: HypVmemmap,
        host: HostStage2,
        hyp: HypStage1,
        rules: OwnershipRules,
    ) -> None:
        super().__init__(journal, "ownership")
        self._memory = memory
        self._vmemmap = vmemmap
        self._host = host
        self._hyp = hyp
        self._rules = rules
        self._events: StateList[PageEvent] = StateList(journal, "ownership.events")
        self._listener: Callable[[PageEvent], None] | None = None
        self.last_refusal: Refusal | None = None
        self.early_mappings = 0

    @property
    def memory(self) -> MemoryMap:
        return self._memory

    @property
    def vmemmap(self) -> HypVmemmap:
        return self._vmemmap

    @property
    def host(self) -> HostStage2:
        return self._host

    @property
    def hyp(self) -> HypStage1:
        return self._hyp

    @property
    def rules(self) -> OwnershipRules:
        return self._rules

    # -- questions ---------------------------------------------------------------------------------------------------

    def owner_of(self, pa: int) -> Component:
        """Who owns the page at ``pa``: the annotation in the host stage-2, or the host where there is none."""
        leaf = self._host.get_leaf(pa)
        if leaf is None or leaf.valid:
            return Component.HOST
        return Component((leaf.descriptor & OWNER_MASK) >> OWNER_SHIFT)

    def host_state(self, pa: int) -> int:
        """The host's state of the page at ``pa`` (bits of page_state)."""
        where = self._memory.find(pa)
        if where.region and not self._rules.state_in_pte:
            return self._vmemmap.host_state(pa)
        leaf = self._host.get_leaf(pa)
        return NOPAGE if leaf is None else self._state_of_entry(leaf.descriptor, pa)

    def hyp_state(self, pa: int) -> int:
        """The hypervisor's state of the page at ``pa``, by its linear mapping."""
        leaf = self._hyp.leaf(self._hyp.va_of(pa))
        return NOPAGE if leaf is None else self._hyp.page_state(leaf.descriptor)

    def page(self, pa: int) -> PageInfo:
        """All that is known about the page at ``pa``, its history included."""
        pa &= ~PAGE_MASK
        host, hyp = self._host.get_leaf(pa), self._hyp.leaf(self._hyp.va_of(pa))
        is_memory = self._memory.is_memory(pa)
        return PageInfo(
            pa,
            is_memory,
            self.owner_of(pa),
            self.host_state(pa),
            self.hyp_state(pa),
            self._vmemmap.refcount(pa) if is_memory else 0,
            host.descriptor if host else 0,
            host.level if host else -1,
            hyp.descriptor if hyp else 0,
            history_of(self._events, pa),
        )

    @property
    def events(self) -> tuple[PageEvent, ...]:
        """Every transition so far, oldest first."""
        return tuple(self._events)

    def refusal_history(self) -> tuple[PageEvent, ...]:
        """What had happened to the page of :attr:`last_refusal` when it was refused."""
        refusal = self.last_refusal
        if refusal is None or refusal.page is None:
            return ()
        return history_of(list(self._events)[: refusal.events], refusal.page)

    # -- checks ------------------------------------------------------------------------------------------------------

    def _check_host(
        self, op: str, args: tuple[int, ...], start: int, size: int, state: int, *, ram_only: bool = False
    ) -> int:
        """The host's side of a range: 0, or the errno of the first rule that a page breaks."""
        end = start + size
        if end > U64_MAX:
            if self._rules.end_overflow_checked:
                return self._refuse(op, args, -EINVAL, "the end of the range lies beyond 64 bits")
            end &= U64_MAX
        where = self._memory.find(start)
        if where.region is None and ram_only and self._rules.share_non_ram_errno is not None:
            return self._refuse(op, args, self._rules.share_non_ram_errno, "only RAM can be shared or pinned", start)
        straddle = self._rules.straddle_errno
        if straddle is not None and not where.start <= (end - 1) & U64_MAX < where.end:
            return self._refuse(op, args, straddle, "the range is not inside one memory region or one gap", start)
        if where.region is None or self._rules.state_in_pte:
            return self._check_host_entries(op, args, start, size, state)
        if where.region.nomap:
            return self._refuse(op, args, -EPERM, "the page is in a NOMAP region, which never changes hands", start)
        need_free = state == OWNED and self._rules.refcount_check == "after_state"
        bad = self._vmemmap.first_mismatch(start, size >> PAGE_SHIFT, state, need_free)
        if bad is None:
            return 0
        page, referenced = bad
        if referenced:
            return self._refuse(op, args, self._rules.refcounted_errno, "the page has references (DMA or pins)", page)
        return self._refuse(op, args, -EPERM, f"the page is not {state_name(state)} for the host", page)

    def _check_host_owned(self, op: str, args: tuple[int, ...], start: int, pages: int, *, ram_only: bool) -> int:
        """Whether the host owns all of a range and nobody refers to it."""
        size = pages << PAGE_SHIFT & U64_MAX
        if (
            self._rules.refcount_check == "before_state"
            and self._memory.range_is_memory(start, start + size & U64_MAX)
            and self._vmemmap.any_referenced(start, pages)
        ):
            return self._refuse(op, args, self._rules.refcounted_errno, "a page has references (DMA or pins)", start)
        return self._check_host(op, args, start, size, OWNED, ram_only=ram_only)

    def _check_host_entries(self, op: str, args: tuple[int, ...], start: int, size: int, state: int) -> int:
        table = self._host.table
        if start + size > 1 << table.va_bits:
            return self._refuse(op, args, -ERANGE, "the range lies beyond the physical address size", start)
        for address, _, descriptor, _ in visit_leaves(table, start, start + size):
            page = max(address, start)
            if self._state_of_entry(descriptor, page) != state:
                return self._refuse(op, args, -EPERM, f"the page is not {state_name(state)} for the host", page)
        return 0

    def _check_hyp(self, op: str, args: tuple[int, ...], va: int, size: int, state: int) -> int:
        error, bad = self._hyp.check_state(va, size, state)
        if error:
            rule = f"the page is not {state_name(state)} for the hypervisor"
            if error == -ERANGE:
                rule = "the range lies beyond the EL2 address range"
            return self._refuse(op, args, error, rule, self._hyp.pa_of(bad))
        return 0

    def _state_of_entry(self, descriptor: int, pa: int) -> int:
        """A host page state as its stage-2 entry shows it: of MMIO always, of RAM where states are kept there."""
        where = self._memory.find(pa)
        if where.region:
            if self._vmemmap.host_state(pa) & MODULE_OWNED:
                return MODULE_OWNED
            if where.region.nomap:
                return NOPAGE
        if not descriptor & DESC_VALID and descriptor:
            return NOPAGE
        prot = stage2_prot(descriptor)
        default = HOST_MEM_PROT if where.region else HOST_MMIO_PROT
        restricted = descriptor & DESC_VALID and prot & PROT_RWX != default
        return state_of(prot) | (RESTRICTED_PROT if restricted else 0)

    # -- changes -----------------------------------------------------------------------------------------------------

    def _set_owner(
        self, start: int, size: int, owner: Component, mark: int = 0, update_iommu: bool = True, complete: bool = True
    ) -> int:
        """Write a new owner into the host stage-2 and into the vmemmap. Result: errno."""
        is_memory = self._memory.is_memory(start)
        if owner is not Component.HOST:
            error = self._host.annotate(start, size, owner_annotation(owner))
        elif self._rules.give_back_maps:
            error = self._host.idmap(start, size, HOST_MEM_PROT if is_memory else HOST_MMIO_PROT)
        else:
            error = self._host.annotate(start, size, 0)
        if error:
            return error
        if update_iommu:
            prot = HOST_MEM_PROT if owner is Component.HOST else 0
            self._host.tell_iommu(start, start + size, prot)
            if complete:
                self._host.complete_iommu(bool(prot))
        if is_memory and not self._rules.state_in_pte:
            state = OWNED if owner is Component.HOST else NOPAGE | mark
            self._vmemmap.set_states(start, size >> PAGE_SHIFT, state)
        return 0

    def _set_host_state(self, start: int, size: int, state: int) -> int:
        """Give a range that the host can reach another state. Result: errno."""
        if self._rules.state_in_pte:
            return self._host.idmap(start, size, with_state(HOST_MEM_PROT, state))
        if size and self._vmemmap.host_state(start) & NOPAGE:
            error = self._host.idmap(start, size, HOST_MEM_PROT, update_iommu=True)
            if error:
                return error
        self._vmemmap.set_states(start, size >> PAGE_SHIFT, state)
        return 0

    def _record(self, op: str, start: int, pages: int, origin: str, before: str, after: str) -> None:
        if pages:
            events = self._events
            event = PageEvent(len(events), op, start >> PAGE_SHIFT, pages, origin, before, after)
            events.append(event)
            if self._listener is not None:
                self._listener(event)

    def listen(self, listener: Callable[[PageEvent], None]) -> None:
        """Call ``listener`` with each transition from now on."""
        self._listener = listener

    def _refuse(self, op: str, args: tuple[int, ...], errno: int, rule: str, page: int | None = None) -> int:
        """Keep the explanation of a refusal and give its errno back."""
        owner = host_state = hyp_state = None
        if page is not None:
            page &= ~PAGE_MASK
            owner, host_state, hyp_state = self.owner_of(page), self.host_state(page), self.hyp_state(page)
        self.last_refusal = Refusal(op, args, errno, rule, page, owner, host_state, hyp_state, len(self._events))
        return errno

    def _bug(self, op: str, args: tuple[int, ...], reason: str) -> NoReturn:
        raise HypBug(f"{op}({', '.join(hex(a) for a in args)}): {reason}")

    def _pages(self, start: int, size: int) -> range:
        return range(start, start + size, PAGE_SIZE)

    def _overflows(self, pages: int) -> bool:
        return self._rules.size_overflow_checked and pages << PAGE_SHIFT > U64_MAX

    def _map_at_hyp(self, op: str, args: tuple[int, ...], start: int, size: int, prot: int) -> int:
        """Map in the linear map: 0, or -ENOMEM with nothing left behind; any other error is a BUG."""
        error = self._hyp.map_linear(start, size, prot)
        if error == -ENOMEM:
            self._hyp.unmap(self._hyp.va_of(start), size)
        elif error:
            self._bug(op, args, f"EL2 cannot map {start:#x} with protection {prot:#x} (errno {-error})")
        return error

    def _unmap_at_hyp(self, op: str, args: tuple[int, ...], start: int, size: int) -> None:
        if self._hyp.unmap(self._hyp.va_of(start), size) != size:
            self._bug(op, args, f"EL2 cannot unmap all of {start:#x}+{size:#x}")

    def _must(self, op: str, args: tuple[int, ...], error: int) -> None:
        if error:
            self._bug(op, args, f"a change that must not fail failed (errno {-error})")
