"""What runs as soon as interrupts may: tasklets, ``irq_work``, RCU callbacks, in the order in which they were asked for.

A grace period is over when the callers that could hold a reference have left the CPU, and readers do not sleep: so callbacks of
``call_rcu`` run with the rest, and never inside the call. Sources: kernel/softirq.c, kernel/irq_work.c, kernel/rcu/tree.c.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pkvm_emu.kernel.deferred.tasks import Tasks
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateList

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pkvm_emu.kernel.kernel import Kernel

F = TypeVar("F", bound=Callable[..., bool])
#: What ``preempt_count()`` grows by in a soft interrupt and in an interrupt.
SOFTIRQ_OFFSET, HARDIRQ_OFFSET = 0x100, 0x1_0000


class Raised(NamedTuple):
    """One thing to do: its kind, the structure's address, the function to call."""

    kind: str
    address: int
    function: int


#: What happens to things of a kind that is more than a function to call.
_ACTIONS: dict[str, Callable[[Kernel, Raised], bool]] = {}


def softirq_kind(kind: str) -> Callable[[F], F]:
    """Let the decorated ``function(kernel, raised)`` be what happens to things of a kind; it says False to stay in the queue."""

    def register(function: F) -> F:
        _ACTIONS[kind] = function
        return function

    return register


@kernel_part
class SoftIrqs(State):
    """What has been raised and has not run yet.

    Args:
        kernel: whose soft interrupts.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.softirqs")
        self._kernel = kernel
        self.raised: StateList[Raised] = StateList(kernel.machine.journal, "kernel.softirqs.raised")

    def raise_(self, kind: str, address: int, function: int = 0) -> None:
        """Add one thing to do."""
        self.raised.append(Raised(kind, address, function))

    def drop(self, kind: str, address: int) -> bool:
        """Take a thing away; whether it was there."""
        for index, raised in enumerate(self.raised):
            if raised.kind == kind and raised.address == address:
                del self.raised[index]
                return True
        return False

    def run(self) -> bool:
        """Do the first thing that can be done; whether there was one."""
        for index in range(len(self.raised)):
            raised = self.raised[index]
            del self.raised[index]
            if self._perform(raised):
                return True
            self.raised.insert(index, raised)
        return False

    def run_all(self, kind: str) -> None:
        """Do everything of a kind now (``rcu_barrier``)."""
        while True:
            mine = [raised for raised in self.raised if raised.kind == kind]
            if not mine:
                return
            self.drop(kind, mine[0].address)
            self._perform(mine[0])

    @contextmanager
    def context(self, offset: int = SOFTIRQ_OFFSET) -> Iterator[None]:
        """Run the block with ``in_softirq()`` (or ``in_interrupt()``) true for the current task."""
        tasks = self._kernel.part(Tasks)
        task = tasks.current
        tasks.add_preempt_count(task, offset)
        try:
            yield
        finally:
            tasks.add_preempt_count(task, -offset)

    def _perform(self, raised: Raised) -> bool:
        action = _ACTIONS.get(raised.kind)
        if action is not None:
            return action(self._kernel, raised)
        with self.context():
            self._kernel.call(raised.function, raised.address)
        return True
