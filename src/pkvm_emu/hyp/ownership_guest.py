"""Pages that go to a guest and come back: donation, sharing in both directions, reclaim when the guest dies.

A guest's own page states are in the software bits of its stage-2 entries. Source: arch/arm64/kvm/hyp/nvhe/mem_protect.c
(__pkvm_host_donate_guest, __pkvm_host_share_guest, __pkvm_host_unshare_guest, __pkvm_guest_share_host,
__pkvm_guest_unshare_host, __pkvm_host_reclaim_page) of 6.12.23; the older generations differ in the host's side only, by their row.
"""

from __future__ import annotations

from errno import E2BIG, EBUSY, EFAULT, EINVAL, ENOENT, EPERM, ERANGE
from typing import Protocol

from pkvm_emu.hyp.ownership_state import OwnershipState
from pkvm_emu.hyp.page_state import (
    NOPAGE,
    OWNED,
    RESTRICTED_PROT,
    SHARED_BORROWED,
    SHARED_OWNED,
    U64_MAX,
    Component,
    state_name,
)
from pkvm_emu.hyp.pgtable import (
    PROT_NORMAL_NC,
    PROT_RW,
    PROT_RWX,
    PROT_SW,
    stage2_prot,
    state_of,
    visit_leaves,
    with_state,
)
from pkvm_emu.machine.pagetable import LEVEL_SIZE, PAGE_SHIFT, PAGE_SIZE, ZERO_PAGE, Leaf, TableReader

_MAX_ORDER_SIZE = 1 << 21
_SHARE_COUNT_SHIFT = 32


class GuestTable(Protocol):
    """A guest's stage-2 as these transitions need it."""

    @property
    def handle(self) -> int:
        """The VM's handle."""

    @property
    def reader(self) -> TableReader:
        """The table."""

    def map_pages(self, ipa: int, pa: int, size: int, prot: int) -> None:
        """Map a range with a protection that carries a page state; no table page left: a BUG."""

    def unmap_pages(self, ipa: int, size: int) -> None:
        """Unmap a range."""


def guest_state(descriptor: int) -> int:
    """A guest's page state by its stage-2 entry."""
    if not descriptor & 1:
        return NOPAGE
    prot = stage2_prot(descriptor)
    return state_of(prot) | (RESTRICTED_PROT if prot & PROT_RWX != PROT_RWX else 0)


class GuestPages(OwnershipState):
    """Transitions between the host and guests."""

    def owner_of(self, pa: int) -> Component:
        """Who owns the page at ``pa``; a page that a guest shares with the host is the guest's."""
        owner = super().owner_of(pa)
        if owner is Component.HOST and self.host_state(pa) & ~RESTRICTED_PROT == SHARED_BORROWED:
            return Component.GUEST
        return owner

    # -- the host's ---------------------------------------------------------------------------------------------------

    def host_donate_guest(self, guest: GuestTable, pfn: int, gfn: int, pages: int, origin: str = "") -> int:
        """Give host pages to a protected guest, mapped RWX at ``gfn``.

        Errors: -EINVAL (overflow; 6.12: not RAM; references), -EPERM (not the host's own, or something is mapped at
        ``gfn``), -ERANGE (beyond the guest's address space).
        """
        op, args = "host_donate_guest", (pfn, gfn, pages)
        start, ipa, size = pfn << PAGE_SHIFT & U64_MAX, gfn << PAGE_SHIFT & U64_MAX, pages << PAGE_SHIFT
        if size > U64_MAX:
            return self._refuse(op, args, -EINVAL, "the page count overflows")
        error = self._check_host_owned(op, args, start, pages, ram_only=True)
        if error:
            return error
        if not self._memory.range_is_memory(start, start + size & U64_MAX):
            return self._refuse(op, args, -EPERM, "only RAM can be donated to a guest", start)
        error = self._check_guest(op, args, guest, ipa, size, NOPAGE)
        if error:
            return error
        self._must(op, args, self._set_owner(start, size, Component.GUEST))
        guest.map_pages(ipa, start, size, with_state(PROT_RWX, OWNED))
        self._record(op, start, pages, origin, "OWNED by HOST", f"OWNED by GUEST {guest.handle:#x}")
        return 0

    def host_share_guest(
        self, guest: GuestTable, pfn: int, gfn: int, pages: int, prot: int = PROT_RWX, origin: str = ""
    ) -> int:
        """Share host pages with a guest that is not protected; a page may be shared with several.

        Errors: -EINVAL (``prot`` is more than RWX; overflow; not RAM), -EPERM (not the host's own, or pinned, or something is
        mapped at ``gfn``), -ERANGE.
        """
        op, args = "host_share_guest", (pfn, gfn, pages, prot)
        start, ipa, size = pfn << PAGE_SHIFT & U64_MAX, gfn << PAGE_SHIFT & U64_MAX, pages << PAGE_SHIFT
        if prot & ~PROT_RWX:
            return self._refuse(op, args, -EINVAL, "a guest page has no protection but R, W and X")
        if start + size > U64_MAX:
            return self._refuse(op, args, -EINVAL, "the end of the range lies beyond 64 bits")
        if not self._memory.range_is_memory(start, start + size):
            return self._refuse(op, args, -EINVAL, "only RAM can be shared with a guest", start)
        error = self._check_guest(op, args, guest, ipa, size, NOPAGE)
        if error:
            return error
        for page in self._pages(start, size):
            state = self.host_state(page)
            if state == OWNED and not self._vmemmap.refcount(page):
                continue
            if state == SHARED_OWNED and self._vmemmap.share_count(page):
                continue
            return self._refuse(
                op, args, -EPERM, "the page is neither the host's own nor shared with guests only", page
            )
        guest.map_pages(ipa, start, size, with_state(prot, SHARED_BORROWED))
        for page in self._pages(start, size):
            if not self._vmemmap.share_count(page):
                self._must(op, args, self._set_host_state(page, PAGE_SIZE, SHARED_OWNED))
            self._add_share(page, 1)
        self._record(op, start, pages, origin, "the host's", f"SHARED with GUEST {guest.handle:#x}")
        return 0

    def host_unshare_guest(self, guest: GuestTable, gfn: int, pages: int = 1, origin: str = "") -> int:
        """Take a page (or a 2 MiB block) back that is shared with a guest.

        Errors: -EINVAL (another size), -ENOENT (nothing mapped), -E2BIG (mapped by an entry of another size), -EPERM.
        """
        op, args = "host_unshare_guest", (gfn, pages)
        ipa, size = gfn << PAGE_SHIFT & U64_MAX, pages << PAGE_SHIFT
        if size not in (PAGE_SIZE, _MAX_ORDER_SIZE):
            return self._refuse(op, args, -EINVAL, "one page or one 2 MiB block is unshared at a time")
        leaf, error = self._guest_leaf(op, args, guest, ipa, size)
        if leaf is None:
            return error
        if guest_state(leaf.descriptor) & ~RESTRICTED_PROT != SHARED_BORROWED:
            return self._refuse(op, args, -EPERM, "the guest does not have the page by a share of the host's", leaf.pa)
        for page in self._pages(leaf.pa, size):
            if self.host_state(page) != SHARED_OWNED:
                return self._refuse(op, args, -EPERM, "the host does not share the page", page)
        guest.unmap_pages(ipa, size)
        for page in self._pages(leaf.pa, size):
            self._drop_share(op, args, page)
        self._record(op, leaf.pa, pages, origin, f"SHARED with GUEST {guest.handle:#x}", "one share less")
        return 0

    def reclaim_page(self, guest: GuestTable, pfn: int, gfn: int, order: int = 0, origin: str = "") -> int:
        """Give a page of a dying guest back to the host; what the guest owned is zeroed first.

        Errors: -EINVAL (no page or block size; another page is mapped there), -ENOENT, -E2BIG, -EBUSY (shared with the
        secure world).
        """
        op, args = "reclaim_dying_guest_page", (pfn, gfn, order)
        start, ipa, size = pfn << PAGE_SHIFT & U64_MAX, gfn << PAGE_SHIFT & U64_MAX, PAGE_SIZE << order
        if order and size != _MAX_ORDER_SIZE:
            return self._refuse(op, args, -EINVAL, "one page or one 2 MiB block is reclaimed at a time")
        leaf, error = self._guest_leaf(op, args, guest, ipa, size, size_first=True)
        if leaf is None:
            return error
        if leaf.pa != start:
            return self._refuse(op, args, -EINVAL, f"another page ({leaf.pa:#x}) is mapped there", start)
        state = guest_state(leaf.descriptor)
        if state == OWNED:
            self._zero(start, size)
        elif state & ~RESTRICTED_PROT != SHARED_BORROWED and any(
            self.host_state(page) != SHARED_BORROWED for page in self._pages(start, size)
        ):
            return self._refuse(op, args, -EBUSY, "the guest shares the page with somebody else than the host", start)
        guest.unmap_pages(ipa, size)
        self._must(op, args, self._set_owner(start, size, Component.HOST))
        self._record(
            op, start, size >> PAGE_SHIFT, origin, f"{state_name(state)} in GUEST {guest.handle:#x}", "OWNED by HOST"
        )
        return 0

    def hyp_map_guest_mmio(self, guest: GuestTable, pfn: int, gfn: int, origin: str = "") -> int:
        """Move a page of device registers from the hypervisor to a guest. Errors: -EPERM, -EINVAL, -ERANGE."""
        op, args = "host_map_guest_mmio", (pfn, gfn)
        start, ipa = pfn << PAGE_SHIFT & U64_MAX, gfn << PAGE_SHIFT & U64_MAX
        error = self._check_hyp(op, args, self._hyp.va_of(start), PAGE_SIZE, OWNED)
        error = error or self._check_guest(op, args, guest, ipa, PAGE_SIZE, NOPAGE)
        if error:
            return error
        self._unmap_at_hyp(op, args, start, PAGE_SIZE)
        guest.map_pages(ipa, start, PAGE_SIZE, with_state(PROT_RW | PROT_NORMAL_NC, OWNED))
        self._record(op, start, 1, origin, "OWNED by HYP", f"MMIO of GUEST {guest.handle:#x}")
        return 0

    def return_from_guest(self, pa: int, size: int, guest: int, origin: str = "") -> None:
        """Give the host a device's registers back that a guest or the hypervisor had."""
        op = "devices_teardown"
        self._must(op, (pa, size), self._set_owner(pa, size, Component.HOST))
        self._record(op, pa, size >> PAGE_SHIFT, origin, f"MMIO of GUEST {guest:#x}", "OWNED by HOST")

    # -- the guest's --------------------------------------------------------------------------------------------------

    def guest_share_host(self, guest: GuestTable, ipa: int, pages: int, origin: str = "") -> tuple[int, int]:
        """A protected guest shares its own pages with the host: ``(errno, pages shared)``; a block at most is done at once.

        Errors: -EFAULT (nothing mapped: the host has to give a page first), -EPERM.
        """
        return self._guest_transition("guest_share_host", guest, ipa, pages, origin, OWNED, SHARED_OWNED)

    def guest_unshare_host(self, guest: GuestTable, ipa: int, pages: int, origin: str = "") -> tuple[int, int]:
        """A protected guest ends a sharing with the host: ``(errno, pages)``."""
        return self._guest_transition("guest_unshare_host", guest, ipa, pages, origin, SHARED_OWNED, OWNED)

    def _guest_transition(
        self, op: str, guest: GuestTable, ipa: int, pages: int, origin: str, before: int, after: int
    ) -> tuple[int, int]:
        args = (ipa, pages)
        if ipa + (pages << PAGE_SHIFT) > 1 << guest.reader.va_bits:
            return self._refuse(op, args, -ERANGE, "the range lies beyond the guest's address space"), 0
        leaf = guest.reader.walk(ipa)
        state = guest_state(leaf.descriptor)
        if state != before:
            if state & NOPAGE:
                return self._refuse(op, args, -EFAULT, "the guest has no page at this address"), 0
            return self._refuse(op, args, -EPERM, f"the page is not {state_name(before)} for the guest", leaf.pa), 0
        # Physically contiguous entries of equal protection are taken together; here one entry at a time.
        size = min(pages << PAGE_SHIFT, LEVEL_SIZE[leaf.level] - ipa % LEVEL_SIZE[leaf.level])
        wanted = NOPAGE if before == OWNED else SHARED_BORROWED
        error = self._check_host_of_guest(op, args, leaf.pa, size, wanted)
        if error:
            return error, 0
        guest.map_pages(ipa, leaf.pa, size, with_state(stage2_prot(leaf.descriptor) & ~PROT_SW, after))
        if before == OWNED:
            self._must(op, args, self._set_host_state(leaf.pa, size, SHARED_BORROWED))
        else:
            self._must(op, args, self._set_owner(leaf.pa, size, Component.GUEST))
        who = f"GUEST {guest.handle:#x}"
        words = {OWNED: f"OWNED by {who}", SHARED_OWNED: f"SHARED by {who} with HOST"}
        self._record(op, leaf.pa, size >> PAGE_SHIFT, origin, words[before], words[after])
        return 0, size >> PAGE_SHIFT

    # -- parts --------------------------------------------------------------------------------------------------------

    def _check_guest(self, op: str, args: tuple[int, ...], guest: GuestTable, ipa: int, size: int, state: int) -> int:
        if ipa + size > U64_MAX:
            return self._refuse(op, args, -EINVAL, "the guest address overflows")
        if ipa + size > 1 << guest.reader.va_bits:
            return self._refuse(op, args, -ERANGE, "the range lies beyond the guest's address space")
        for address, _, descriptor, _ in visit_leaves(guest.reader, ipa, ipa + size):
            if guest_state(descriptor) != state:
                rule = f"the guest has a page at {max(address, ipa):#x} already"
                return self._refuse(op, args, -EPERM, rule, descriptor & 0x0000_FFFF_FFFF_F000)
        return 0

    def _check_host_of_guest(self, op: str, args: tuple[int, ...], start: int, size: int, state: int) -> int:
        for page in self._pages(start, size):
            if self.host_state(page) & ~RESTRICTED_PROT != state:
                return self._refuse(op, args, -EPERM, f"the page is not {state_name(state)} for the host", page)
        return 0

    def _guest_leaf(
        self, op: str, args: tuple[int, ...], guest: GuestTable, ipa: int, size: int, *, size_first: bool = False
    ) -> tuple[Leaf | None, int]:
        if ipa + size > 1 << guest.reader.va_bits:
            return None, self._refuse(op, args, -ERANGE, "the address lies beyond the guest's address space")
        leaf = guest.reader.walk(ipa)
        # A reclaim looks at the size of the entry first, also where nothing is mapped.
        if (leaf.valid or size_first) and LEVEL_SIZE[leaf.level] != size:
            return None, self._refuse(
                op, args, -E2BIG, "the guest maps the page with an entry of another size", leaf.pa
            )
        if not leaf.valid:
            return None, self._refuse(op, args, -ENOENT, "the guest has no page at this address")
        return leaf, 0

    def _add_share(self, page: int, amount: int) -> None:
        entry = self._vmemmap.entry(page)
        self._vmemmap.mem.write_u64(entry, self._vmemmap.mem.read_u64(entry) + (amount << _SHARE_COUNT_SHIFT))

    def _drop_share(self, op: str, args: tuple[int, ...], page: int) -> None:
        self._add_share(page, -1)
        if not self._vmemmap.share_count(page):
            self._must(op, args, self._set_host_state(page, PAGE_SIZE, OWNED))

    def _zero(self, start: int, size: int) -> None:
        for page in self._pages(start, size):
            self._vmemmap.mem.write(page, ZERO_PAGE)
