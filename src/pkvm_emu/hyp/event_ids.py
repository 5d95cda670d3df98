"""Which modules have trace events: the arrays of event ids that they announced, and the flags behind the ids."""

from __future__ import annotations

from errno import ENOMEM
from typing import TYPE_CHECKING

from pkvm_emu.abi.structs import HYP_EVENT_ID
from pkvm_emu.hyp.registry import hyp_part
from pkvm_emu.machine.state import State, StateList

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

ID_SIZE = HYP_EVENT_ID.size


@hyp_part
class EventIds(State):
    """The arrays in the order they came.

    Attributes:
        modules: ``(start, end)`` hyp VAs of each array of 16-byte ids.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.event_ids")
        self._hyp = hyp
        self._limit = hyp.generation.tracing.max_event_modules
        self.modules: StateList[tuple[int, int]] = StateList(hyp.machine.journal)

    def announce(self, start: int, end: int) -> int:
        """Take another array; 0, or -ENOMEM when there are 16 modules with events."""
        if len(self.modules) >= self._limit:
            return -ENOMEM
        self.modules.append((start, end))
        return 0

    def switch(self, number: int, on: bool) -> bool:
        """Set the flag of the module event with an id; False where no announced array has it.

        Raises:
            HypFault: the array, or the flag that it points at, is not mapped at EL2.
        """
        hyp = self._hyp
        for start, end in self.modules:
            for va in range(start, end - ID_SIZE + 1, ID_SIZE):
                row = hyp.load(va, ID_SIZE, "enable_event looks an id up")
                if HYP_EVENT_ID.get(row, "id") == number:
                    flag = HYP_EVENT_ID.get(row, "data")
                    # The hypervisor writes through its fixmap: the flag may lie in a read-only page.
                    pa = hyp.to_pa(flag)
                    if pa is None:
                        hyp.write(flag, b"\0", "enable_event sets the flag of an event")
                    else:
                        hyp.machine.ram.write_u32(pa, int(on))
                    return True
        return False
