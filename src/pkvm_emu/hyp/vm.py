"""One virtual machine as EL2 has it: its stage-2 table, the pages for that, and the page of its vCPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.ownership_guest import guest_state
from pkvm_emu.hyp.page_state import NOPAGE, OWNED, RESTRICTED_PROT, SHARED_BORROWED, SHARED_OWNED, Component, state_name
from pkvm_emu.hyp.pgtable import stage2_attr
from pkvm_emu.machine.pagetable import (
    LAST_LEVEL,
    LEVEL_SHIFT,
    PAGE_SIZE,
    ZERO_PAGE,
    OutOfTablePages,
    PageTable,
    TableReader,
)
from pkvm_emu.machine.state import State, StateList

if TYPE_CHECKING:
    from pkvm_emu.hyp.external_pool import ExternalPool
    from pkvm_emu.hyp.host_requests import HostRequest, MapRequest
    from pkvm_emu.hyp.hypervisor import Hypervisor

#: Guest addresses have as many bits as the CPU has physical ones.
IPA_BITS, _START_LEVEL = 44, 0

# The page of the vCPU, as the firmware has it; x0..x30 are at +8*n.
CTX_PC, CTX_PSTATE, CTX_ESR, CTX_FAR, CTX_HPFAR = 0xF8, 0x100, 0x108, 0x110, 0x118
CTX_HANDLE, CTX_TABLE, CTX_COUNT, CTX_RESULTS, CTX_OWN_HANDLER = 0x120, 0x128, 0x130, 0x138, 0x140
CTX_GUEST_EL1, CTX_HOST_EL1 = 0x200, 0x400


class Vm(State):
    """A VM; its pages at EL2 were donated by the host.

    Args:
        hyp: the hypervisor.
        handle: what the host calls it.
        vmid: VMID in VTTBR_EL2.
        pages: PAs of hypervisor pages for its use: table root, vCPU, and table pages.
        protected: the host has no access to its memory.
        smc_forwarded: modules are asked about its SMCs.

    Attributes:
        dying: teardown has begun; it does not run any more.
        pool: hypervisor pages for tables that are free.
        given: every hypervisor page that the VM holds, used or free.
        requests: what a call of the guest lacked: the host has to see to it before the VM runs again.
        iommu_domains: the guest's IOMMU domains, with the hyp VA of the hypervisor's record of each.
        iommu_cache, iommu_cached: the pages that the host has for the guest's IOMMU page tables: head of the list, and how many.
    """

    def __init__(
        self, hyp: Hypervisor, handle: int, vmid: int, pages: list[int], protected: bool, smc_forwarded: bool
    ) -> None:
        super().__init__(hyp.machine.journal)
        self._hyp = hyp
        self._ram = hyp.machine.ram
        self._features = hyp.host.table.features
        self.handle = handle
        self.vmid = vmid
        self.protected = protected
        self.smc_forwarded = smc_forwarded
        self.dying = False
        self.vcpu_pa = pages[0]
        self.pool: StateList[int] = StateList(hyp.machine.journal, initial=reversed(pages[1:]))
        self.given: StateList[int] = StateList(hyp.machine.journal, initial=pages)
        self.requests: StateList[HostRequest | MapRequest] = StateList(hyp.machine.journal)
        self.iommu_domains: StateList[tuple[int, int]] = StateList(hyp.machine.journal)
        self.iommu_cache = self.iommu_cached = 0
        self._iommu_pool: ExternalPool | None = None
        self._ram.write(self.vcpu_pa, ZERO_PAGE)
        self._table = PageTable(self._ram, self, IPA_BITS, _START_LEVEL, flush=hyp.machine.engine.flush_tlb)
        self._table.on_change = hyp.machine.engine.note_translation_change

    @property
    def iommu_pool(self) -> ExternalPool | None:
        """Pages for the tables of the guest's IOMMU domains; None where guests have none."""
        return self._iommu_pool

    def use_pool(self, pool: ExternalPool) -> None:
        """Set :attr:`iommu_pool`."""
        self._iommu_pool = pool

    # Table pages

    def alloc(self) -> int:
        """A zeroed page for the table."""
        if not self.pool:
            raise OutOfTablePages(f"VM {self.handle:#x} has no page left for its stage-2 table")
        pa: int = self.pool.pop()
        self._ram.write(pa, ZERO_PAGE)
        return pa

    def free(self, pa: int) -> None:
        """Take a table page back."""
        self.pool.append(pa)

    def give(self, pages: list[int]) -> None:
        """Add hypervisor pages for tables (the vCPU's memcache is refilled)."""
        for pa in pages:
            self.given.append(pa)
            self.pool.append(pa)

    @staticmethod
    def tables_for(ipa: int, size: int) -> int:
        """How many table pages mapping a range may take at most."""
        return sum(
            ((ipa + max(size, 1) - 1 >> LEVEL_SHIFT[level]) - (ipa >> LEVEL_SHIFT[level]) + 1) for level in range(3)
        )

    # The stage-2 table

    @property
    def reader(self) -> TableReader:
        """The stage-2 table."""
        return self._table

    @property
    def vttbr(self) -> int:
        """VTTBR_EL2 while the VM runs."""
        return self._table.root | self.vmid << 48

    def map_pages(self, ipa: int, pa: int, size: int, prot: int) -> None:
        """Map a range with a protection that carries a page state."""
        try:
            self._table.map(ipa, pa, size, stage2_attr(prot, self._features))
        except OutOfTablePages as error:
            raise HypBug(f"mapping {ipa:#x}+{size:#x} in VM {self.handle:#x}: {error}") from error
        # A guest's translations are cached under its VMID, and the engine caches them under none.
        self._hyp.machine.engine.flush_tlb()

    def unmap_pages(self, ipa: int, size: int) -> None:
        """Unmap a range."""
        self._table.unmap(ipa, size)

    def mappings(self) -> list[tuple[int, int, int, int]]:
        """``(IPA, PA, bytes, page state)`` of everything that is mapped, ascending."""
        return [(leaf.va, leaf.pa, leaf.size, guest_state(leaf.descriptor)) for leaf in self._table.leaves()]

    def pa_of(self, ipa: int) -> int | None:
        """Physical address behind a guest address, or None."""
        if not 0 <= ipa < 1 << IPA_BITS:
            return None
        leaf = self._table.walk(ipa)
        return leaf.pa if leaf.valid else None

    def page_of(self, ipa: int) -> int | None:
        """PA behind a guest address by a page-sized entry; None where there is none, or a block."""
        if not 0 <= ipa < 1 << IPA_BITS:
            return None
        leaf = self._table.walk(ipa)
        return leaf.pa if leaf.valid and leaf.level == LAST_LEVEL else None

    def check(self) -> list[str]:
        """Compare the guest's page states with those of the host; one line for each disagreement."""
        problems = []
        ownership = self._hyp.ownership
        for ipa, pa, size, state in self.mappings():
            for page in range(pa, pa + size, PAGE_SIZE):
                host, owner = ownership.host_state(page), ownership.owner_of(page)
                bare = state & ~RESTRICTED_PROT
                agrees = {
                    OWNED: owner is Component.GUEST and bool(host & NOPAGE),
                    SHARED_OWNED: host == SHARED_BORROWED or owner is Component.GUEST,
                    SHARED_BORROWED: host == SHARED_OWNED,
                }.get(bare, False)
                if not agrees and ownership.memory.is_memory(page):
                    problems.append(
                        f"VM {self.handle:#x}: IPA {ipa + page - pa:#x} is {state_name(state)} for the guest, but page "
                        f"{page:#x} is {state_name(host)} for the host and belongs to {owner.name}"
                    )
        return problems

    # The vCPU

    def __getitem__(self, offset: int) -> int:
        """A 64-bit word of the vCPU's page."""
        return self._ram.read_u64(self.vcpu_pa + offset)

    def __setitem__(self, offset: int, value: int) -> None:
        self._ram.write_u64(self.vcpu_pa + offset, value & (1 << 64) - 1)

    @property
    def vcpu_va(self) -> int:
        """Hyp VA of the vCPU's page."""
        return self._hyp.stage1.va_of(self.vcpu_pa)
