"""Everything that happens at a time: jiffies timers, high-resolution timers, and the deadlines of tasks that sleep.

The queue holds addresses and times; the timers themselves are structures in guest memory, marked there as compiled code expects
(``timer_pending()`` looks at ``entry.pprev``, ``hrtimer`` has a state byte). Sources: kernel/time/timer.c, kernel/time/hrtimer.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

F = TypeVar("F", bound=Callable[..., None])


#: What an entry of each kind does when its time has come: called with the kernel and the address.
_ACTIONS: dict[str, Callable[[Kernel, int], None]] = {}


def timer_kind(kind: str) -> Callable[[F], F]:
    """Let the decorated ``function(kernel, address)`` be what happens to entries of a kind."""

    def register(function: F) -> F:
        _ACTIONS[kind] = function
        return function

    return register


class Armed(NamedTuple):
    """An entry of the queue: when, in ns since boot, its number (equal times go in the order of arming), what kind, which CPU."""

    time: int
    number: int
    kind: str
    cpu: int | None


@kernel_part
class TimerQueue(State):
    """What is armed, by address.

    Args:
        kernel: whose time.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.timers")
        self._kernel = kernel
        self.entries: StateDict[int, Armed] = StateDict(kernel.machine.journal, "kernel.timers.entries")
        self.next_number = 0

    def arm(self, address: int, time: int, kind: str, cpu: int | None = None) -> None:
        """Let something happen at a time; an entry that is armed moves.

        Args:
            address: guest address of the timer.
            time: nanoseconds since boot.
            kind: as given to :func:`timer_kind`.
            cpu: where it happens; None: on the CPU that idles.
        """
        self.entries[address] = Armed(time, self.next_number, kind, cpu)
        self.next_number += 1

    def disarm(self, address: int) -> bool:
        """Take an entry away; whether there was one."""
        return self.entries.pop(address, None) is not None

    def is_armed(self, address: int) -> bool:
        """Whether an entry is in the queue."""
        return address in self.entries

    def armed(self) -> set[int]:
        """The addresses of all entries."""
        return set(self.entries)

    def next_time(self) -> int | None:
        """When the next entry's time comes."""
        return min((entry.time for entry in self.entries.values()), default=None)

    def fire(self, now: int) -> bool:
        """Let the earliest entry happen whose time has come; whether there was one."""
        due = [(entry, address) for address, entry in self.entries.items() if entry.time <= now]
        if not due:
            return False
        entry, address = min(due)
        del self.entries[address]
        machine = self._kernel.machine
        if entry.cpu is None or entry.cpu == machine.current.index or not machine.power.is_on(entry.cpu):
            _ACTIONS[entry.kind](self._kernel, address)
        else:
            with machine.on_cpu(entry.cpu):
                _ACTIONS[entry.kind](self._kernel, address)
        return True

    # Deadlines of tasks

    def add_deadline(self, task: int, time: int) -> None:
        """Wake a task at a time. The entry's address is odd, so that it is nobody else's."""
        self.arm(task | 1, time, "deadline")

    def drop_deadline(self, task: int) -> None:
        """The task runs: its deadline means nothing any more."""
        self.disarm(task | 1)

    def describe(self, now: int) -> list[str]:
        """The timers that are armed, in words, earliest first."""
        lines = []
        for address, entry in sorted(self.entries.items(), key=lambda item: item[1]):
            if entry.kind != "deadline":
                left = (entry.time - now) / 1e9
                lines.append(f"{entry.kind} {self._kernel.describe(address)} in {left:.3f} s")
        return lines


@timer_kind("deadline")
def _deadline(kernel: Kernel, address: int) -> None:
    from pkvm_emu.kernel.deferred.scheduler import Scheduler
    from pkvm_emu.kernel.deferred.tasks import Tasks

    task = kernel.part(Tasks).find(address & ~1)
    if task is not None:
        kernel.part(Scheduler).wake(task)
