"""``system.pages``: who owns which page, in which state, since when."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor
    from pkvm_emu.hyp.ownership_log import PageInfo, Refusal


class Pages:
    """Page ownership as the hypervisor has it.

    >>> print(system.pages.at(0x4800_0000))
    page 0x48000000 (RAM): owner HOST, host OWNED, hyp NOPAGE, references 0
      host stage-2 0x480007fd at level 2, EL2 0x0
    """

    def __init__(self, hyp: Hypervisor) -> None:
        self._hyp = hyp

    def at(self, pa: int) -> PageInfo:
        """Everything known about the page at a physical address."""
        return self._hyp.ownership.page(pa & ~0xFFF)

    @property
    def last_refusal(self) -> Refusal | None:
        """Why the last ownership request was refused."""
        return self._hyp.ownership.last_refusal

    def check(self) -> list[str]:
        """Compare the model with the real tables; one line for each disagreement."""
        return self._hyp.ownership.check_consistency()
