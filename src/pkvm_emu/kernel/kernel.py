"""The EL1 kernel: its memory, its log, its symbols, and calls into guest code at EL1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pkvm_emu.abi.generation import Generation
from pkvm_emu.errors import EmulatorError
from pkvm_emu.firmware import image as firmware
from pkvm_emu.kernel import layout
from pkvm_emu.kernel.address_space import KernelAddressSpace
from pkvm_emu.kernel.command_line import CommandLine
from pkvm_emu.kernel.faults import FaultHandler
from pkvm_emu.kernel.format_env import KernelFormatEnv
from pkvm_emu.kernel.log import KernelLog
from pkvm_emu.kernel.modules import LoadedModule, ModuleLoader
from pkvm_emu.kernel.page_allocator import PageAllocator
from pkvm_emu.kernel.parameters import ModuleParameters
from pkvm_emu.kernel.smp import Smp
from pkvm_emu.kernel.static_keys import set_count
from pkvm_emu.kernel.symbols import KernelSymbols
from pkvm_emu.kernel.time import Clock
from pkvm_emu.kernel.varargs import RegisterArgs
from pkvm_emu.kernel.vsprintf import format_text
from pkvm_emu.kernel.vsprintf_env import FormatEnv
from pkvm_emu.machine.core import Service
from pkvm_emu.machine.machine import Machine
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from collections.abc import Callable

    from pkvm_emu.kernel.deferred.scheduler import Scheduler
    from pkvm_emu.kernel.hooks import Hooks

P = TypeVar("P")
_EL1H_MASKED = 0x3C5
_NS_PER_SECOND = 1_000_000_000
#: Every word of the task that compiled code may read its stack canary from holds this (low byte 0, as Linux has it).
STACK_CANARY = 0x5BD1_E995_C6A4_A700
_TASK_HEADER_WORDS = 8
#: ``thread_info.cpu`` of builds with CONFIG_ARM64_SW_TTBR0_PAN and CONFIG_SHADOW_CALL_STACK, as GKI is.
_THREAD_INFO_CPU = 40
#: CPU 0 runs init; on the others a hotplug thread (``cpuhp/1``, ...) is current.
_PID_OF_INIT, _PID_OF_FIRST_CPUHP = 1, 20


class Kernel(State):
    """A kernel of one generation on one machine.

    Args:
        machine: the board.
        generation: which Android branch it is.
        command_line: its parameters.
    """

    def __init__(self, machine: Machine, generation: Generation, command_line: CommandLine) -> None:
        super().__init__(machine.journal, "kernel")
        self._machine = machine
        self._generation = generation
        self._command_line = command_line
        profile = machine.profile
        ram = machine.ram
        self.hyp_reserved_size = layout.hyp_reserved_size(ram.size)
        self.hyp_reserved = (ram.end - self.hyp_reserved_size) & ~0x1F_FFFF
        if ram.size >= 1 << 28:
            # The last MiBs of RAM are taken first by others; the reservation of the recorded machine ends 2 MiB below.
            self.hyp_reserved -= 2 << 20
        first_free = profile.ram_base + layout.KIMAGE_OFFSET + layout.KIMAGE_SIZE
        self._pages = PageAllocator(machine.journal, ram, first_free, self.hyp_reserved)
        self._memory = KernelAddressSpace(machine, self._pages)
        self._log = KernelLog(machine.journal, self.uptime_ns)
        self._format_env = KernelFormatEnv(self)
        self._firmware = firmware.load("el1")
        self._el2_preparation: Callable[[LoadedModule], None] = lambda module: None
        #: Names of symbols for addresses, set by the system.
        self._symbolize: Callable[[int], str | None] = lambda va: None
        #: The host's stage-2 descriptor of a page, set by the system.
        self._host_entry: Callable[[int], int] = lambda pa: 1
        #: An access made from Python through the CPU is under way: its faults are answers, not crashes.
        self._in_host_access = False
        #: ``is_protected_kvm_enabled()``: without ``kvm-arm.mode=`` the machine boots as Android devices do.
        self.protected = command_line.get("kvm-arm.mode", "protected") == "protected"
        self.deprivileged = False
        #: Go on after a failing EL2 init where the kernel's own error path makes the hypervisor panic.
        self.continues_on_init_failure = False
        #: Link what only absent modules export to stubs that stop the run; False: the load fails with -ENOENT.
        self.stubs_missing = False
        #: Link symbols of other modules whatever their versions (``--ignore-versions``).
        self.ignores_versions = False
        self.tainted: str = ""
        self.allocations: StateDict[int, int] = StateDict(machine.journal, "kernel.allocations")
        #: Shadow call stacks by CPU: builds with SCS keep return addresses where x18 points.
        self._shadow_stacks: list[int] = []
        self._place_image()
        self._symbols = KernelSymbols(self)
        self._loader = ModuleLoader(self)
        self._parameters = ModuleParameters(self)
        self._faults = FaultHandler(self)
        scratch = self._pages.alloc_pages(0)
        assert scratch is not None
        self._scratch = self._memory.linear_va(scratch)
        self._parts: StateDict[type[Any], Any] = StateDict(machine.journal)
        # It answers an entry of the firmware, and knows which CPUs are online from the beginning.
        self.part(Smp)

    # Parts

    @property
    def machine(self) -> Machine:
        """The board."""
        return self._machine

    @property
    def generation(self) -> Generation:
        """The Android generation."""
        return self._generation

    @property
    def command_line(self) -> CommandLine:
        """The kernel's parameters."""
        return self._command_line

    @property
    def pages(self) -> PageAllocator:
        """The page allocator."""
        return self._pages

    @property
    def memory(self) -> KernelAddressSpace:
        """The EL1 address space."""
        return self._memory

    @property
    def log(self) -> KernelLog:
        """The kernel log."""
        return self._log

    @property
    def symbols(self) -> KernelSymbols:
        """Exported symbols."""
        return self._symbols

    @property
    def loader(self) -> ModuleLoader:
        """The module loader."""
        return self._loader

    @property
    def parameters(self) -> ModuleParameters:
        """Module parameters."""
        return self._parameters

    @property
    def faults(self) -> FaultHandler:
        """EL1 exceptions."""
        return self._faults

    @property
    def hooks(self) -> Hooks:
        """Tracepoints and vendor hooks: what is registered, and firing them (``hooks.fire("android_vh_...", ...)``)."""
        from pkvm_emu.kernel.hooks import Hooks

        return self.part(Hooks)

    def part(self, kind: type[P]) -> P:
        """This kernel's object of a class registered with ``kernel_part``; made when somebody first asks for it.

        Making it is part of the state: going back to before that moment unmakes it.
        """
        found: P | None = self._parts.get(kind)
        if found is None:
            found = kind(self)  # type: ignore[call-arg]
            self._parts[kind] = found
        return found

    def part_made(self, name: str) -> Any:
        """The object of a class of that name where somebody asked for it before; None: nobody did, so nothing is in it."""
        return next((part for kind, part in self._parts.items() if kind.__name__ == name), None)

    def idle(self, nanoseconds: int | None = None) -> None:
        """The host has nothing to do: deferred work (work items, timers, threads) runs, and time goes on to it.

        Args:
            nanoseconds: for how long. None: until what is pending now has had its turn, 10 s at most.
        """
        scheduler = self._scheduler()
        if scheduler is not None:
            scheduler.idle(nanoseconds)
            return
        self.part(Clock).advance(nanoseconds or 0)

    def run_ready(self) -> None:
        """Let deferred work run that is ready now; time does not go on by itself."""
        scheduler = self._scheduler()
        if scheduler is not None:
            scheduler.run_ready()

    def _scheduler(self) -> Scheduler | None:
        """What runs deferred work; None where there has not been any."""
        if self.part_made("TimerQueue") is None and self.part_made("SoftIrqs") is None:
            return None
        from pkvm_emu.kernel.deferred.scheduler import Scheduler

        return self.part(Scheduler)

    # Set-up

    def _place_image(self) -> None:
        memory, ram, page = self._memory, self._machine.ram, layout.PAGE_SIZE
        pa, va = memory.image_pa, memory.layout.kimage_vaddr
        text = self._firmware.code
        ram.write(pa + layout.IMAGE_TEXT, text)
        for offset, size, prot in (
            (layout.IMAGE_TEXT, len(text), "rx"),
            (layout.IMAGE_STUBS, layout.IMAGE_STUBS_SIZE, "rx"),
            (layout.IMAGE_DATA, layout.IMAGE_DATA_SIZE, "rw"),
            (layout.IMAGE_TASKS, layout.TASK_SIZE * self._machine.profile.cpus, "rw"),
            (layout.IMAGE_PERCPU, layout.PERCPU_SIZE * self._machine.profile.cpus, "rw"),
        ):
            memory.map(va + offset, pa + offset, -(-size // page) * page, prot)
        for cpu in range(self._machine.profile.cpus):
            stack = self._pages.alloc_pages(2, zero=True)
            assert stack is not None
            memory.map(self.stack_top(cpu) - layout.STACK_SIZE, stack, layout.STACK_SIZE, "rw")
            self._shadow_stacks.append(memory.linear_va(self._pages.alloc()))
            task = pa + layout.IMAGE_TASKS + cpu * layout.TASK_SIZE
            for word in range(_TASK_HEADER_WORDS, layout.TASK_SIZE // 8):
                ram.write_u64(task + word * 8, STACK_CANARY)
            ram.write_u32(task + _THREAD_INFO_CPU, cpu)

    def start_cpu(self, index: int) -> None:
        """Set the EL1 state of the CPU that is on the engine: MMU, vectors, task, stack; it is left at EL1h, masked."""
        engine = self._machine.engine
        self._memory.enable()
        engine.write("vbar_el1", self.entry("el1_vectors"))
        engine.write("sp_el0", self.task_va(index))
        engine.write_sysreg("TPIDR_EL1", index * layout.PERCPU_SIZE)
        engine.write_sysreg("CPACR_EL1", 3 << 20)
        engine.write_sysreg("CNTKCTL_EL1", 3)
        engine.write_sysreg("CNTFRQ_EL0", self._machine.profile.counter_hz)
        engine.write("x18", self._shadow_stacks[index])
        engine.set_pstate(_EL1H_MASKED)
        engine.write("sp", self.stack_top(index))

    def add_firmware_services(self, handlers: dict[str, Callable[[], None]], in_hook: bool = False) -> None:
        """Let Python answer EL1 firmware entries by label (the exception vectors)."""
        for label, handler in handlers.items():
            self._machine.core.add_service(self.entry(label), Service(label, 1, 0, handler, in_hook))

    def entry(self, label: str) -> int:
        """Address of a label of the EL1 firmware."""
        return self._memory.layout.kimage_vaddr + layout.IMAGE_TEXT + self._firmware.symbols[label]

    def stack_top(self, cpu: int) -> int:
        """Initial SP of a CPU's kernel stack."""
        return self._memory.layout.stacks_vaddr + (2 * cpu + 2) * layout.STACK_SIZE

    def task_va(self, cpu: int) -> int:
        """The ``task_struct`` that runs on a CPU (``SP_EL0``)."""
        return self._memory.layout.kimage_vaddr + layout.IMAGE_TASKS + cpu * layout.TASK_SIZE

    # Time and identity

    def uptime_ns(self) -> int:
        """Nanoseconds since boot by the deterministic counter."""
        return self._machine.core.ticks * _NS_PER_SECOND // self._machine.profile.counter_hz

    @property
    def pid(self) -> int:
        """PID of the task that runs on the current CPU, as ``kvm [PID]:`` prefixes have it."""
        cpu = self._machine.current.index
        # A CPU that is just coming up has no task yet.
        tasks = self.part_made("Tasks")
        task = tasks.by_va.get(self._machine.engine.read("sp_el0")) if tasks is not None else None
        return task.pid if task is not None else self.pid_of_cpu(cpu)

    def pid_of_cpu(self, cpu: int) -> int:
        """PID of a CPU's own task: init on CPU 0, a hotplug thread on the others."""
        return _PID_OF_FIRST_CPUHP + cpu - 1 if cpu else _PID_OF_INIT

    def kvm_log(self, text: str, level: int = 3) -> None:
        """A line of KVM's: ``kvm [1]: text``."""
        self._log.write(f"kvm [{self.pid}]: {text}", level)

    # Calls into the guest

    def call(self, va: int, *args: int) -> int:
        """Call an EL1 function of the guest and return its x0; at the top level on a fresh kernel stack."""
        core = self._machine.core
        if core.depth == 0:
            self.use_own_stack()
        return core.call(va, *args)[0]

    def use_own_stack(self) -> None:
        """Put the current CPU on its kernel stack and shadow call stack, from their beginning."""
        cpu = self._machine.current.index
        self._machine.engine.write("sp", self.stack_top(cpu))
        self._machine.engine.write("x18", self._shadow_stacks[cpu])

    def call_s32(self, va: int, *args: int) -> int:
        """Call a guest function that returns an ``int``."""
        value = self.call(va, *args) & 0xFFFF_FFFF
        return value - (1 << 32) if value >> 31 else value

    def hvc(self, *registers: int) -> tuple[int, ...]:
        """``hvc #0`` from EL1 with x0, x1, ... as given; returns x0..x7 after it."""
        if len(registers) > 8:
            raise EmulatorError("an HVC from Python takes x0..x7")
        full = registers + (0,) * (8 - len(registers))
        return self._machine.core.call(self.entry("host_hvc"), *full)

    def smc(self, *registers: int) -> tuple[int, ...]:
        """``smc #0`` from EL1 with x0, x1, ... as given; returns x0..x7 after it."""
        full = registers + (0,) * (18 - len(registers))
        return self._machine.core.call(self.entry("host_smc"), *full)

    def access(self, label: str, *registers: int) -> tuple[int, tuple[int, int] | None]:
        """Run one of the firmware's access entries (``host_load64``, ``host_store8``, ...) at EL1.

        Returns:
            x0, and ``(ESR, FAR)`` where the access faulted.
        """
        self._in_host_access = True
        self._faults.last_host_fault = None
        try:
            value = self._machine.core.call(self.entry(label), *registers)[0]
        finally:
            self._in_host_access = False
        return value, self._faults.last_host_fault

    def user_access(self, pc: int, done: int, *registers: int) -> tuple[int, tuple[int, int] | None]:
        """Run code at EL0 until it makes an SVC or faults.

        Args:
            pc: user VA of the code.
            done: user VA that x30 holds there: an ``svc``.
            registers: x0 and x1 at EL0.

        Returns:
            x0, and ``(ESR, FAR)`` where it faulted.
        """
        padded = registers + (0,) * (2 - len(registers))
        return self.access("host_user", *padded, pc, done)

    @property
    def in_host_access(self) -> bool:
        """Whether :meth:`access` is running."""
        return self._in_host_access

    # What the loader asks

    def capability_numbers(self) -> frozenset[int]:
        """The numbers of the CPU capabilities whose alternatives are applied, for this kernel line."""
        capabilities = self._generation.capabilities
        profile = self._machine.profile
        # Every CPU that runs Android 14 has PAN; without it get_user() would switch TTBR0, which nothing here sets up.
        wanted = {"ALWAYS_SYSTEM": True, "PAN": True, "KVM_PROTECTED_MODE": self.protected, "LSE": profile.lse}
        return frozenset(
            number for name, number in capabilities.items() if wanted.get(name, False) and number is not None
        )

    def describe(self, va: int) -> str:
        """An EL1 address in words: symbol and offset where there is one."""
        return self._symbolize(va) or f"{va:#x}"

    def prepare_el2(self, module: LoadedModule) -> None:
        """Tell the hypervisor model about a module that is about to be mapped at EL2 (its kCFI flavour)."""
        self._el2_preparation(module)

    def set_el2_preparation(self, prepare: Callable[[LoadedModule], None]) -> None:
        """Install what :meth:`prepare_el2` calls."""
        self._el2_preparation = prepare

    def deprivilege(self) -> None:
        """``__pkvm_prot_finalize`` on every CPU that is online: from here on the host's stage-2 is enforced there."""
        number = self._generation.hypercalls["prot_finalize"]
        key = self._symbols.addresses.get("kvm_protected_mode_initialized")
        if key is not None:
            # First, as the kernel does: later it could not patch its code any more.
            set_count(self, key, 1)
        for cpu in self._machine.power.running:
            with self._machine.on_cpu(cpu):
                answer = self.hvc(0xC600_0000 | number)
            if answer[0] or answer[1]:
                result = answer[1] if not answer[0] else answer[0]
                self._log.write(self._generation.boot.finalize_error_message.replace("%d", str(result)), level=3)
                return
        self.deprivileged = True

    def cpu_down(self, cpu: int) -> int:
        """Take a CPU offline; 0 or a negative errno (see :meth:`pkvm_emu.kernel.smp.Smp.cpu_down`)."""
        return self.part(Smp).cpu_down(cpu)

    def cpu_up(self, cpu: int) -> int:
        """Bring a CPU back; 0 or a negative errno (see :meth:`pkvm_emu.kernel.smp.Smp.cpu_up`)."""
        return self.part(Smp).cpu_up(cpu)

    def set_symboliser(self, symbolize: Callable[[int], str | None]) -> None:
        """Install what names EL1 addresses."""
        self._symbolize = symbolize

    def set_host_entries(self, entry: Callable[[int], int]) -> None:
        """Install what reads the host's stage-2 descriptor of a physical address."""
        self._host_entry = entry

    def is_taken_away(self, pa: int) -> bool:
        """Whether the hypervisor took a page from the host: its stage-2 entry is an annotation, and enforced."""
        if not self.deprivileged:
            return False
        entry = self._host_entry(pa)
        return entry != 0 and not entry & 1

    # What services use

    def scratch_page(self) -> int:
        """Kernel VA of a page for arguments that live for one call."""
        return self._scratch

    def scratch_string(self, text: str) -> int:
        """Kernel VA of a NUL-terminated copy of ``text`` that lives for one call."""
        data = text.encode("utf-8", "surrogateescape")[: layout.PAGE_SIZE - 1] + b"\0"
        self._memory.write(self._scratch, data)
        return self._scratch

    def read_cstr(self, va: int, limit: int = 1 << 16) -> bytes:
        """A guest string (the calling convention's ``CStr``)."""
        return self._memory.read_cstr(va, limit)

    def variadic(self, registers: tuple[int, ...], first: int) -> RegisterArgs:
        """The variadic arguments of the function being called."""
        return RegisterArgs(registers, first, self._memory.read_u64, self._machine.engine.read("sp"))

    def format(self, fmt: str | bytes, args: object) -> str:
        """Format as ``printk`` does."""
        return format_text(fmt, args, self._format_env)  # type: ignore[arg-type]

    @property
    def format_env(self) -> FormatEnv:
        """The printf engine's surroundings."""
        return self._format_env

    def symbolize(self, va: int) -> str | None:
        """``sym+0x10/0x40 [module]`` for an EL1 address, or None."""
        return self._symbolize(va)
