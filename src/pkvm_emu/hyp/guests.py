"""Protected guests as modules see them: a handle, pages behind guest addresses, handlers.

Nothing here runs a guest. A guest exists when somebody made one (:meth:`Guests.add`), so that a module's calls about it
have an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.hyp.registry import hyp_part
from pkvm_emu.machine.pagetable import PAGE_MASK
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor


@hyp_part
class Guests(State):
    """The guests of one hypervisor.

    Attributes:
        handles: existing guests; the value is the hyp VA of the SMC handler of that guest, or 0.
        pages: PA by ``(handle, page-aligned IPA)``.
        trng_ops: hyp VA of ``struct pkvm_module_trng_ops``, or 0.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.guests")
        self.handles: StateDict[int, int] = StateDict(hyp.machine.journal)
        self.pages: StateDict[tuple[int, int], int] = StateDict(hyp.machine.journal)
        self.trng_ops = 0

    def add(self, handle: int) -> None:
        """Make a guest exist."""
        self.handles[handle] = 0

    def map(self, handle: int, ipa: int, pa: int) -> None:
        """Put a page behind a guest address; both page aligned."""
        self.pages[handle, ipa] = pa

    def pa_of(self, handle: int, ipa: int) -> int | None:
        """Physical address behind a guest address."""
        page = self.pages.get((handle, ipa & ~PAGE_MASK))
        return None if page is None else page | ipa & PAGE_MASK
