"""Protected guests as modules see them: a handle, pages behind guest addresses, handlers.

Guests that run are in :mod:`pkvm_emu.hyp.vms`. A guest exists when somebody made one (:meth:`Guests.add`), so that a
module's calls about it have an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pkvm_emu.hyp.registry import hyp_part
from pkvm_emu.machine.pagetable import PAGE_MASK
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor


class AddressSpace(Protocol):
    """The stage-2 table of a guest, as questions about its addresses need it."""

    def page_of(self, ipa: int) -> int | None:
        """PA of the page-sized entry behind a page-aligned guest address."""


@hyp_part
class Guests(State):
    """The guests of one hypervisor.

    Attributes:
        handles: existing guests; the value is the hyp VA of the SMC handler of that guest, or 0.
        spaces: the stage-2 tables of the guests that have one.
        pages: PA by ``(handle, page-aligned IPA)``, of guests that were only announced.
        trng_ops: hyp VA of ``struct pkvm_module_trng_ops``, or 0.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.guests")
        self.handles: StateDict[int, int] = StateDict(hyp.machine.journal)
        self.spaces: StateDict[int, AddressSpace] = StateDict(hyp.machine.journal)
        self.pages: StateDict[tuple[int, int], int] = StateDict(hyp.machine.journal)
        self.trng_ops = 0

    def add(self, handle: int, space: AddressSpace | None = None) -> None:
        """Make a guest exist; with its stage-2 table where it has one."""
        self.handles[handle] = 0
        if space is not None:
            self.spaces[handle] = space

    def remove(self, handle: int) -> None:
        """The guest is gone, and its SMC handler with it."""
        self.handles.pop(handle, None)
        self.spaces.pop(handle, None)

    def map(self, handle: int, ipa: int, pa: int) -> None:
        """Put a page behind a guest address; both page aligned."""
        self.pages[handle, ipa] = pa

    def pa_of(self, handle: int, ipa: int) -> int | None:
        """Physical address behind a guest address; None where no page is mapped, or a block."""
        space, page = self.spaces.get(handle), ipa & ~PAGE_MASK
        pa = self.pages.get((handle, page)) if space is None else space.page_of(page)
        return None if pa is None else pa | ipa & PAGE_MASK
