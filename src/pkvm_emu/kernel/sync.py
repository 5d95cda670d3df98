"""Locks: a CPU waits for another that holds one; what would wait for ever is an error that names lock, holder and caller."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.kernel.guest_access import caller, misuse
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.core import Stuck
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.errors import ModuleError
    from pkvm_emu.kernel.kernel import Kernel


#: ``thread_info.preempt.count``.
_PREEMPT_COUNT = 16
#: Tries of one CPU after which a lock counts as never released.
_SPIN_LIMIT = 100_000


class TryAgain(Exception):
    """What an exported function waits for is not there yet: the CPU makes the same call again in its next turn."""


class Parked(Exception):
    """The task sleeps in an exported function: its run ends here, and it makes the same call again when it runs next."""


class Holder(NamedTuple):
    """Who holds a lock: the return address of the call that took it, the CPU, and the task."""

    caller: int
    cpu: int
    task: int


@kernel_part
class Locks(State):
    """Who holds which lock. The lock words themselves are in guest memory, as inlined code expects them.

    Attributes:
        holders: by address of the lock.
        waits: by CPU, the lock that it waits for.
        tries: how often the CPU that waits now has tried.
        spinning: by CPU, the number of spin locks held: sleeping is a bug then.

    Args:
        kernel: whose locks they are.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.locks")
        self._kernel = kernel
        self.holders: StateDict[int, Holder] = StateDict(kernel.machine.journal, "kernel.locks.holders")
        self.waits: StateDict[int, int] = StateDict(kernel.machine.journal, "kernel.locks.waits")
        self.tries = 0
        self.spinning: StateDict[int, int] = StateDict(kernel.machine.journal, "kernel.locks.spinning")

    def taken(self, lock: int, spins: bool) -> None:
        """Note that the calling function holds a lock."""
        cpu, engine = self._cpu, self._kernel.machine.engine
        self.holders[lock] = Holder(engine.read("x30"), cpu, engine.read("sp_el0"))
        self.done_waiting()
        if spins:
            self.spinning[cpu] = self.spinning.get(cpu, 0) + 1

    def released(self, lock: int, spins: bool) -> None:
        """Note that a lock is free."""
        self.holders.pop(lock, None)
        if spins:
            self.spinning[self._cpu] = max(self.spinning.get(self._cpu, 0) - 1, 0)

    def contend(self, kind: str, lock: int) -> Exception:
        """What to raise where a lock is held: :class:`TryAgain`, or the error for a deadlock.

        That is where the holder is this CPU, or waits (over others) for this CPU, or does not release the lock.
        """
        self.waits[self._cpu] = lock
        self.tries += 1
        if self.tries > _SPIN_LIMIT or self._waits_for_itself(lock):
            return self._deadlock(kind, lock)
        return TryAgain()

    def wait(self, what: str, place: int) -> Exception:
        """What to raise where an event has not come: :class:`TryAgain` where other CPUs may bring it, or the error."""
        self.waits[self._cpu] = place
        self.tries += 1
        if self.tries > _SPIN_LIMIT or self._kernel.machine.profile.cpus == 1:
            return self.nothing_wakes(what)
        return TryAgain()

    def done_waiting(self) -> None:
        """The calling CPU has what it waited for."""
        if self._cpu in self.waits:
            del self.waits[self._cpu]
            self.tries = 0

    @property
    def _cpu(self) -> int:
        return self._kernel.machine.current.index

    def _waits_for_itself(self, lock: int) -> bool:
        seen: set[int] = set()
        wanted: int | None = lock
        while wanted is not None and wanted not in seen:
            seen.add(wanted)
            holder = self.holders.get(wanted)
            if holder is None:
                return self._kernel.machine.profile.cpus == 1
            if holder.cpu == self._cpu:
                return True
            wanted = self.waits.get(holder.cpu)
        return False

    def _deadlock(self, kind: str, lock: int) -> Stuck:
        holder = self.holders.get(lock)
        describe = self._kernel.machine.core.describe
        who = "its word says so, nobody took it here"
        if holder is not None:
            who = f"taken at {describe(holder.caller - 4, 1)} on CPU {holder.cpu}"
        return Stuck(
            f"deadlock: {kind} {self._kernel.describe(lock)} is held ({who}) and {caller(self._kernel)} waits for it on "
            f"CPU {self._cpu}"
        )

    def not_held(self, kind: str, lock: int) -> ModuleError:
        """The error for releasing a lock that is not held, to be raised."""
        return misuse(self._kernel, f"{kind} {self._kernel.describe(lock)} is released but not held")

    def nothing_wakes(self, what: str) -> Stuck:
        """The error for a wait that nothing can end, to be raised."""
        return Stuck(f"{what}: nothing can wake the task; {caller(self._kernel)} waits for ever")

    def held_by_current(self, lock: int) -> bool:
        """Whether the task that runs took a lock and has not released it."""
        holder = self.holders.get(lock)
        return holder is not None and holder.task == self._kernel.machine.engine.read("sp_el0")

    def may_sleep(self) -> None:
        """A place that may sleep: with a spin lock held, preemption off or in an interrupt the kernel complains in its log."""
        task = self._kernel.machine.engine.read("sp_el0")
        held = self.spinning.get(self._cpu, 0) + self._kernel.memory.read_u32(task + _PREEMPT_COUNT)
        if held:
            called = self._kernel.describe(self._kernel.machine.engine.read("x30") - 4)
            self._kernel.log.write(
                f"BUG: scheduling while atomic: {self._task_name()}/{self._kernel.pid}/{held:#010x} at {called}",
                level=3,
            )

    def _task_name(self) -> str:
        from pkvm_emu.kernel.deferred.tasks import Tasks

        return self._kernel.part(Tasks).current.name
