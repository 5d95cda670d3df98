"""Page ownership: every transition that modules and the host can ask for, with the errnos of each generation.

The owner of a page is the host until it gives the page away; sharing lets the hypervisor in without giving it away.
All operations return 0 or a negative errno; a refusal leaves an explanation in ``last_refusal``, and what is a BUG or
WARN at EL2 raises :class:`HypBug`. ``origin`` is who asked, kept in the page's history. Source:
arch/arm64/kvm/hyp/nvhe/mem_protect.c.

>>> ownership.host_donate_hyp(0x48000, 1, origin="driver.ko hyp_init")
0
>>> ownership.host_share_hyp(0x48000)
-1
>>> print(ownership.last_refusal)
host_share_hyp(0x48000) = -EPERM: the page is not OWNED for the host (page 0x48000000: owner HYP, host NOPAGE, ...)
"""

from __future__ import annotations

from errno import EAGAIN, EPERM

from pkvm_emu.hyp.ownership_check import check_consistency
from pkvm_emu.hyp.ownership_dma import DmaUse
from pkvm_emu.hyp.ownership_donate import Donation
from pkvm_emu.hyp.ownership_guest import GuestPages
from pkvm_emu.hyp.ownership_prot import Permissions
from pkvm_emu.hyp.ownership_share import Sharing
from pkvm_emu.hyp.page_state import OWNED, Component
from pkvm_emu.hyp.pgtable import PAGE_HYP, with_state
from pkvm_emu.machine.pagetable import PAGE_MASK, PAGE_SHIFT


class Ownership(Sharing, Donation, Permissions, DmaUse, GuestPages):
    """The ownership model of one machine; arguments as for :class:`OwnershipState`."""

    def host_mem_abort(self, ipa: int, is_perm_fault: bool) -> int:
        """A stage-2 abort of the host, as far as the page tables can settle it.

        Args:
            ipa: faulting intermediate physical address.
            is_perm_fault: a permission fault; those are for the registered handlers.

        Returns:
            0 or -EAGAIN: try the access again. -EPERM: ask the permission-fault handlers, or inject an abort.

        Raises:
            HypBug: the address is beyond the physical address size, or no table page is left.
        """
        if is_perm_fault:
            return -EPERM
        error = self._host.fault(ipa)
        if error == -EPERM:
            return self._refuse("host_mem_abort", (ipa,), error, "the page is not the host's to touch", ipa)
        if error not in (0, -EAGAIN):
            self._bug("host_mem_abort", (ipa,), f"the host stage-2 cannot be filled (errno {-error})")
        return error

    def claim_for_hyp(self, pa: int, size: int, prot: int = PAGE_HYP, origin: str = "boot") -> int:
        """EL2 initialisation: map a range at EL2 and take it from the host without asking. Result: errno."""
        error = self._hyp.map_linear(pa, size, with_state(prot, OWNED)) or self._set_owner(pa, size, Component.HYP)
        if not error:
            self._record("init", pa, size >> PAGE_SHIFT, origin, "OWNED by HOST", "OWNED by HYP")
        return error

    def protect_range(self, pa: int, size: int, origin: str = "boot") -> int:
        """EL2 initialisation: take a range from everybody (device-tree protected regions). Result: errno."""
        error = self._set_owner(pa, size, Component.PROTECTED)
        if not error:
            self._record("init", pa, size >> PAGE_SHIFT, origin, "OWNED by HOST", "PROTECTED")
        return error

    def finish_init(self) -> None:
        """The end of EL2 initialisation: the host's tables so far stay for ever."""
        if self._rules.host_tables_pinned:
            self._host.table.pin_tables()

    def finalise(self) -> None:
        """Protected mode is initialised (just before the host is deprivileged): tables may become blocks.

        Raises:
            HypBug: a module left a range mapped by :meth:`linear_map_early`.
        """
        if self.early_mappings:
            self._bug("finalise", (), f"{self.early_mappings:#x} bytes of linear_map_early were never unmapped")
        self._host.finalised = True

    def linear_map_early(self, pa: int, size: int, prot: int) -> int:
        """Map a range at its linear-map VA without asking who owns it. Result: the VA, or 0 (NULL) on failure."""
        if (pa | size) & PAGE_MASK:
            return 0
        if self._hyp.map_linear(pa, size, prot):
            return 0
        self.early_mappings += size
        return self._hyp.va_of(pa)

    def linear_unmap_early(self, va: int, size: int) -> None:
        """Undo :meth:`linear_map_early`."""
        if self._hyp.unmap(va, size) != size:
            self._bug("linear_unmap_early", (va, size), "the range is not mapped")
        self.early_mappings -= size

    def check_consistency(self) -> list[str]:
        """Compare the model with a walk of both tables. Returns one line for each disagreement."""
        return check_consistency(self)
