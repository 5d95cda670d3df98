"""Tasks of the emulated kernel: what ``current`` is, each with its ``task_struct``, kernel stack and saved registers.

A task that sleeps is registers in a journalled object and a stack in guest memory, nothing else: no Python frame belongs to it. So
a snapshot that is taken while it sleeps brings it back, and it can wait for ever without holding anybody up. The CPUs' own tasks
(init and the hotplug threads) have such objects too, made when somebody asks for them.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel import layout
from pkvm_emu.kernel.kernel import STACK_CANARY
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

#: ``struct thread_info`` of GKI builds (SW_TTBR0_PAN, SHADOW_CALL_STACK) and what follows it in ``struct task_struct``; the
#: rest of that structure may be shuffled, this part never is (include/linux/sched.h).
PREEMPT_COUNT, THREAD_CPU, TASK_STATE = 16, 40, 48
#: ``TASK_RUNNING``, ``TASK_INTERRUPTIBLE``, ``TASK_UNINTERRUPTIBLE``.
RUNNING, INTERRUPTIBLE, UNINTERRUPTIBLE = 0, 1, 2
_HEADER = 64
_TASK_ORDER = 2
_STACK_ORDER = 2
#: Stack slots of tasks come behind those of the CPUs, of which there are eight at most.
_FIRST_SLOT = 8
_FIRST_PID = 40
_GENERAL = tuple(f"x{n}" for n in range(31))


class TaskState(Enum):
    """What a task does: waits to be started, wants to run, runs, sleeps, is over, or ended with an error."""

    CREATED = "created"
    READY = "ready"
    RUNNING = "running"
    SLEEPING = "sleeping"
    DEAD = "dead"
    FAILED = "failed"


class Wait(NamedTuple):
    """What a sleeping task waits for: in words, the address that wakers name (0: none), and the end of its patience in ns."""

    what: str
    place: int
    deadline: int | None


class Frame(NamedTuple):
    """Saved registers: x0 to x30, then SP, NZCV, PC."""

    values: tuple[int, ...]


class Task(State):
    """One task.

    Attributes:
        name: as ``ps`` prints it.
        kind: ``cpu`` (a CPU's own), ``kthread``, ``worker``.
        pid: number.
        va: its ``task_struct``.
        state: what it does.
        frame: registers while it does not run.
        wait: what it sleeps for.
        queue: the wait queue that it was put on last, 0 for none.
        cpu: the CPU that it is bound to, None for any.
        note: what a call that sleeps keeps for when it is made again.
        result: x0 when its function returned.
        continuation: return address of a service that runs guest code in its place (see ``kthread_worker_fn``), 0 for none.
        carried: what that service keeps between its turns.
    """

    def __init__(self, kernel: Kernel, name: str, kind: str, pid: int, va: int, slot: int | None, shadow: int) -> None:
        super().__init__(kernel.machine.journal)
        self._kernel = kernel
        self._slot = slot
        self._shadow = shadow
        self.name = name
        self.kind = kind
        self.pid = pid
        self.va = va
        self.state = TaskState.RUNNING if slot is None else TaskState.CREATED
        self.frame: Frame | None = None
        self.wait: Wait | None = None
        self.queue = 0
        self.cpu: int | None = None
        self.note = 0
        self.result = 0
        self.continuation = 0
        self.carried = 0

    @property
    def slot(self) -> int | None:
        """Its stack slot; None for a CPU's own task."""
        return self._slot

    @property
    def stack_top(self) -> int:
        """Initial SP; 0 for a CPU's own task."""
        return 0 if self._slot is None else self._kernel.stack_top(self._slot)

    @property
    def shadow(self) -> int:
        """Start of its shadow call stack."""
        return self._shadow

    @property
    def label(self) -> str:
        """``name[pid]``."""
        return f"{self.name}[{self.pid}]"


@kernel_part
class Tasks(State):
    """All tasks, by address of their ``task_struct``.

    Args:
        kernel: whose tasks.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.tasks")
        self._kernel = kernel
        self.by_va: StateDict[int, Task] = StateDict(kernel.machine.journal, "kernel.tasks.by_va")
        self.next_pid = _FIRST_PID
        self.next_slot = _FIRST_SLOT
        #: Stacks, shadow stacks and structures of tasks that are gone.
        self.spare: StateList[tuple[int, int, int]] = StateList(kernel.machine.journal, "kernel.tasks.spare")
        self._registers = kernel.machine.engine.batch(*_GENERAL, "sp", "nzcv", "pc")

    @property
    def current(self) -> Task:
        """The task that SP_EL0 points at."""
        va = self._kernel.machine.engine.read("sp_el0")
        task = self.by_va.get(va)
        if task is None:
            task = self._adopt(va)
        return task

    def find(self, va: int) -> Task | None:
        """The task at an address: one of ours, or a CPU's own."""
        known = self.by_va.get(va)
        if known is None and va in self._cpu_tasks():
            known = self._adopt(va)
        return known

    def create(self, name: str, kind: str, entry: int, argument: int) -> Task:
        """A task that will call ``entry(argument)`` when it is made ready.

        Raises:
            ModuleError: memory is short.
        """
        va, slot, shadow = self._room()
        task = Task(self._kernel, name[:15], kind, self.next_pid, va, slot, shadow)
        self.next_pid += 1
        self._initialise(va)
        self.by_va[va] = task
        self.set_entry(task, entry, argument)
        return task

    def set_entry(self, task: Task, entry: int, argument: int) -> None:
        """Let a task begin anew with ``entry(argument)``."""
        exit_stub = self._kernel.machine.core.exit_stubs[1]
        registers = [0] * 34
        registers[0], registers[18], registers[30] = argument, task.shadow, exit_stub
        registers[31], registers[33] = task.stack_top, entry
        task.frame = Frame(tuple(registers))

    def release(self, task: Task) -> None:
        """A task is over: its memory is free for the next."""
        if task.slot is not None and task.va in self.by_va:
            del self.by_va[task.va]
            self.spare.append((task.va, task.slot, task.shadow))

    # Registers

    def save(self) -> Frame:
        """The registers that the CPU has."""
        return Frame(tuple(self._registers.read()))

    def restore(self, frame: Frame) -> None:
        """Give the CPU these registers."""
        self._registers.values[:] = list(frame.values)
        self._registers.write()

    # Words of the structure that compiled code reads and writes

    def state_of(self, task: Task) -> int:
        """``task->__state``: what ``set_current_state()`` wrote."""
        return self._kernel.memory.read_u32(task.va + TASK_STATE)

    def set_state(self, task: Task, state: int) -> None:
        """Write ``task->__state``."""
        self._kernel.memory.write(task.va + TASK_STATE, state.to_bytes(4, "little"))

    def preempt_count(self, task: Task) -> int:
        """``preempt_count()``."""
        return self._kernel.memory.read_u32(task.va + PREEMPT_COUNT)

    def add_preempt_count(self, task: Task, value: int) -> None:
        """Change it, as entering and leaving an interrupt does."""
        count = (self.preempt_count(task) + value) & 0xFFFF_FFFF
        self._kernel.memory.write(task.va + PREEMPT_COUNT, count.to_bytes(4, "little"))

    # Parts

    def _cpu_tasks(self) -> list[int]:
        return [self._kernel.task_va(cpu) for cpu in range(self._kernel.machine.profile.cpus)]

    def _adopt(self, va: int) -> Task:
        cpus = self._cpu_tasks()
        if va not in cpus:
            raise ModuleError(f"SP_EL0 is {va:#x}, which is no task")
        cpu = cpus.index(va)
        task = Task(self._kernel, f"cpuhp/{cpu}" if cpu else "init", "cpu", self._kernel.pid_of_cpu(cpu), va, None, 0)
        self.by_va[va] = task
        return task

    def _room(self) -> tuple[int, int, int]:
        if self.spare:
            room = self.spare[-1]
            del self.spare[-1]
            return room  # type: ignore[no-any-return]
        kernel = self._kernel
        structure, stack = kernel.pages.alloc_pages(_TASK_ORDER), kernel.pages.alloc_pages(_STACK_ORDER, zero=True)
        if structure is None or stack is None:
            raise ModuleError("no memory for a task and its stack")
        slot = self.next_slot
        self.next_slot += 1
        top = kernel.stack_top(slot)
        kernel.memory.map(top - layout.STACK_SIZE, stack, layout.STACK_SIZE, "rw")
        shadow = kernel.memory.linear_va(kernel.pages.alloc())
        return kernel.memory.linear_va(structure), slot, shadow

    def _initialise(self, va: int) -> None:
        cpu = self._kernel.machine.current.index
        header = bytearray(_HEADER)
        header[THREAD_CPU : THREAD_CPU + 4] = cpu.to_bytes(4, "little")
        words = (layout.TASK_SIZE - _HEADER) // 8
        self._kernel.memory.write(va, bytes(header) + STACK_CANARY.to_bytes(8, "little") * words)
