"""States of CPU hotplug that modules hook into. Source: kernel/cpu.c (``cpuhp_setup_state`` and its family).

Each state has a callback for a CPU that comes and one for a CPU that goes. Coming up, a CPU passes the states in ascending order,
going down in descending order; one that refuses has those before it undone.
"""

from __future__ import annotations

from errno import EBUSY, EINVAL, ENOSPC
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

#: Dynamic states get the first free number from the one that the caller passes on.
_DYNAMIC_STATES = 20


class HotplugState(NamedTuple):
    """A state: its name, the callbacks (0: none), whether it takes several instances (those get a node pointer)."""

    name: str
    startup: int
    teardown: int
    is_multi: bool


@kernel_part
class HotplugStates(State):
    """The registered states by number.

    Args:
        kernel: whose CPUs.
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.hotplug_states")
        self._kernel = kernel
        self.states: StateDict[int, HotplugState] = StateDict(journal, "kernel.hotplug_states.states")
        self.instances: StateList[tuple[int, int]] = StateList(journal, "kernel.hotplug_states.instances")

    def add(self, number: int, state: HotplugState, is_dynamic: bool) -> int:
        """Register a state; its number, -EBUSY where a fixed one is taken, -ENOSPC where no dynamic one is left."""
        if not is_dynamic:
            if number in self.states:
                return -EBUSY
            self.states[number] = state
            return number
        free = (candidate for candidate in range(number, number + _DYNAMIC_STATES) if candidate not in self.states)
        chosen = next(free, None)
        if chosen is None:
            return -ENOSPC
        self.states[chosen] = state
        return chosen

    def remove(self, number: int) -> HotplugState | None:
        """Forget a state."""
        self.instances[:] = [entry for entry in self.instances if entry[0] != number]
        return self.states.pop(number, None)

    def invoke(self, number: int, cpu: int, coming: bool, node: int | None = None) -> int:
        """Call a state's callback for a CPU; 0 or its errno."""
        state = self.states.get(number)
        if state is None:
            return -EINVAL
        function = state.startup if coming else state.teardown
        if not function:
            return 0
        if not state.is_multi:
            return self._kernel.call_s32(function, cpu)
        nodes = [node] if node is not None else [entry[1] for entry in self.instances if entry[0] == number]
        for one in nodes:
            answer = self._kernel.call_s32(function, cpu, one)
            if answer:
                return answer
        return 0

    def cpu_comes(self, cpu: int) -> int:
        """A CPU is up: every state's startup, in order. 0, or the errno of the one that refused (those before it are undone)."""
        passed: list[int] = []
        for number in sorted(self.states):
            answer = self.invoke(number, cpu, True)
            if answer:
                for earlier in reversed(passed):
                    self.invoke(earlier, cpu, False)
                return answer
            passed.append(number)
        return 0

    def cpu_goes(self, cpu: int) -> int:
        """A CPU is about to go: every state's teardown, last first. 0, or the errno of the one that refused."""
        passed: list[int] = []
        for number in sorted(self.states, reverse=True):
            answer = self.invoke(number, cpu, False)
            if answer:
                for earlier in reversed(passed):
                    self.invoke(earlier, cpu, True)
                return answer
            passed.append(number)
        return 0
