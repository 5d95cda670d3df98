"""Which modules have trace events: the arrays of event ids that they announced."""

from __future__ import annotations

from errno import ENOMEM
from typing import TYPE_CHECKING

from pkvm_emu.hyp.registry import hyp_part
from pkvm_emu.machine.state import State, StateList

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

ID_SIZE = 16


@hyp_part
class EventIds(State):
    """The arrays in the order they came.

    Attributes:
        modules: ``(start, end)`` hyp VAs of each array of 16-byte ids.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.event_ids")
        self._limit = hyp.generation.tracing.max_event_modules
        self.modules: StateList[tuple[int, int]] = StateList(hyp.machine.journal)

    def announce(self, start: int, end: int) -> int:
        """Take another array; 0, or -ENOMEM when there are 16 modules with events."""
        if len(self.modules) >= self._limit:
            return -ENOMEM
        self.modules.append((start, end))
        return 0
