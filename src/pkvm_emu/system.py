"""The whole system: a machine, its kernel and its hypervisor, booted in the order of a device.

>>> import pkvm_emu
>>> with pkvm_emu.boot("android16-6.12", modules=["pkvm_driver.ko"]) as system:
...     driver = system.modules["pkvm_driver"]
...     result = system.hvc(driver.hypercalls["pkvm_driver_hyp_hvc"], 1, 2)
...     print(result.x0, result.x1)
0 4
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pkvm_emu.abi.generation import EVENTS_SECTION, PRINTK_SECTION, Generation
from pkvm_emu.boot_flow import run_plan
from pkvm_emu.boot_plan import given_modules, open_initramfs, plan_boot
from pkvm_emu.choose import choose_generation, choose_profile
from pkvm_emu.cpus import SystemCpu, run_on
from pkvm_emu.devices.standard import StandardDevices
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.errors import ModuleError, UsageError
from pkvm_emu.host import Host
from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.hypervisor import register_all as register_hyp
from pkvm_emu.kernel import layout
from pkvm_emu.kernel.boot import BootReport
from pkvm_emu.kernel.command_line import CommandLine
from pkvm_emu.kernel.devicetree.irq import Interrupts
from pkvm_emu.kernel.devicetree.mmio import MmioWindows
from pkvm_emu.kernel.devicetree.setup import BoardSetup
from pkvm_emu.kernel.devicetree.tree import TreeNode
from pkvm_emu.kernel.hyp_panic import HypPanicHandler
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.modprobe import Modprobe
from pkvm_emu.kernel.modules import LoadedModule
from pkvm_emu.machine.machine import Machine
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.machine.scheduler import DEFAULT_TURN
from pkvm_emu.machine.snapshot import Snapshot
from pkvm_emu.pages import Pages
from pkvm_emu.results import HvcResult
from pkvm_emu.symbolize import Symbolizer

if TYPE_CHECKING:
    from pkvm_emu.contracts.monitor import Monitor
    from pkvm_emu.contracts.rules import Selection
    from pkvm_emu.devices.loading import MmioSpec
    from pkvm_emu.explain import Explanations
    from pkvm_emu.hyp.pviommu import Route
    from pkvm_emu.kernel.fs import FileSystem
    from pkvm_emu.kernel.initramfs.image import Initramfs
    from pkvm_emu.tracing.functions import FunctionTracer
    from pkvm_emu.tracing.pipe import TracePipe
    from pkvm_emu.tracing.timeline import Timeline
    from pkvm_emu.tracing.timeline.listen import Recording
    from pkvm_emu.vm import VirtualMachine

HCALL_BASE = 0xC600_0000
ModuleSource = str | Path | ModuleFile


class Modules(Mapping[str, LoadedModule]):
    """The loaded modules by name (``system.modules``)."""

    def __init__(self, system: System) -> None:
        self._system = system

    def __getitem__(self, name: str) -> LoadedModule:
        modules = self._system.kernel.loader.modules
        if name not in modules:
            loaded = ", ".join(modules) or "none"
            raise KeyError(f"no module {name!r} is loaded (loaded: {loaded})")
        return modules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._system.kernel.loader.modules)

    def __len__(self) -> int:
        return len(self._system.kernel.loader.modules)


class System:
    """A booted (or booting) system. Made by :func:`boot`.

    Attributes:
        machine: CPUs, RAM, snapshots.
        kernel: EL1.
        hyp: EL2.
        modules: loaded modules by name.
        pages: who owns which page.
        devices: the UART and the clock of the board.
        host: accesses, hypercalls and SMCs of a host that attacks.
        mmio: the devices behind the windows of the board, and the log of accesses to them.
        boot_report: what happened to each module of the boot.
        modprobe: the modules at hand, and loading one by its name: ``system.modprobe.load("foo")``.
    """

    def __init__(self, gen: Generation, command_line: CommandLine, profile: MachineProfile) -> None:
        register_hyp()
        traces_functions = "hyp_ftrace_filter" in command_line
        if traces_functions:
            from pkvm_emu.abi.core_events import with_functions

            gen = with_functions(gen)
        self.machine = Machine(profile)
        self.devices = StandardDevices(self.machine)
        self.kernel = Kernel(self.machine, gen, command_line)
        memory = self.kernel.memory
        self.hyp = Hypervisor(
            self.machine,
            gen,
            image_pa=memory.image_pa + layout.IMAGE_HYP_TEXT,
            reserved=(self.kernel.hyp_reserved, self.kernel.hyp_reserved_size),
            memstart=memory.memstart,
        )
        self.symbols = Symbolizer(self.kernel, self.hyp)
        # Made before any snapshot: the engine keeps the windows for good.
        self.mmio = self.kernel.part(MmioWindows).bus
        self.kernel.set_symboliser(self.symbols.el1)
        self.kernel.set_el2_preparation(self._prepare_el2)
        self.kernel.set_host_entries(self._host_entry)
        self.machine.core.describe = self.symbols.describe
        self.modules = Modules(self)
        self.pages = Pages(self.hyp)
        self.host = Host(self)
        self.boot_report = BootReport(self.machine.journal)
        self.modprobe = Modprobe(self.kernel)
        self._function_tracer: FunctionTracer | None = None
        self._recording: tuple[Timeline, Recording] | None = None
        self._monitor: Monitor | None = None
        if traces_functions:
            from pkvm_emu.tracing.functions import FunctionTracer

            self._function_tracer = FunctionTracer(self)
        self.hyp.panic.set_reporter(HypPanicHandler(self.kernel, self.hyp.stage1.linear_offset).report)
        self.machine.core.add_exit(self.kernel.entry("return_to_python"), 1)
        # The boot CPU comes last, so that it is the one that is left on the engine.
        for index in reversed(range(profile.cpus)):
            self.machine.switch_to(index)
            self.hyp.start_cpu(index)
            self.kernel.start_cpu(index)

    # Context manager

    def __enter__(self) -> System:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    def _prepare_el2(self, module: LoadedModule) -> None:
        self.hyp.expect_kcfi(module.file.kcfi.el2 or "none")
        tables = (module.file.section(name) for name in (EVENTS_SECTION, PRINTK_SECTION))
        if any(table is not None and table.size for table in tables):
            from pkvm_emu.kernel.tracing.events import TraceEventTable

            self.kernel.part(TraceEventTable).add_module(module)
        if self._function_tracer is not None:
            self._function_tracer.add_module(module)
        if self._recording is not None:
            self._recording[1].add_module(module)
        self.machine.core.hook_counter_reads(module.counter_reads(el=2))
        self.machine.hook_cpu_id_reads(module.cpu_id_reads(el=2))

    def _host_entry(self, pa: int) -> int:
        leaf = self.hyp.ownership.host_stage2_get_leaf(pa)
        return leaf.descriptor if leaf is not None else 0

    # Facts

    @property
    def generation(self) -> Generation:
        """The Android generation that runs."""
        return self.kernel.generation

    @property
    def dmesg(self) -> str:
        """The kernel log as ``dmesg`` prints it."""
        return str(self.kernel.log)

    @property
    def is_secure(self) -> bool:
        """The host is deprivileged and no protected module failed: protected VMs may run."""
        return self.kernel.deprivileged and not self.boot_report.failed

    @property
    def fs(self) -> FileSystem:
        """The kernel's files: ``/proc``, ``/sys``, ``/dev``, ``/tmp``."""
        from pkvm_emu.kernel.fs import FileSystem

        return self.kernel.part(FileSystem)

    @property
    def trace_pipe(self) -> TracePipe:
        """The hypervisor's trace: ``system.trace_pipe.read()``."""
        from pkvm_emu.tracing.pipe import TracePipe

        return TracePipe(self)

    @property
    def timeline(self) -> Timeline:
        """The recording of what ran: ``system.timeline.save("trace.json")``.

        Raises:
            UsageError: nothing is recorded; ask for it with ``boot(..., timeline=True)`` or :meth:`record_timeline`.
        """
        if self._recording is None:
            raise UsageError("nothing is recorded: boot with timeline=True, or call record_timeline() before what matters")
        return self._recording[0]

    def record_timeline(self, instructions: bool = True) -> Timeline:
        """Begin to record calls, exceptions, ops, events and page ownership; a recording that runs already goes on.

        Args:
            instructions: count the instructions at EL2 and note which ran; this is what costs most.
        """
        if self._recording is None:
            from pkvm_emu.tracing.timeline import record

            self._recording = record(self, instructions)
        return self._recording[0]

    @property
    def contracts(self) -> Monitor | None:
        """What watches for breaches of contracts: ``system.contracts.findings``; None where nothing does."""
        return self._monitor

    def watch_contracts(self, selection: Selection | str = "") -> Monitor:
        """Watch for breaches of contracts from now on; a system is watched once.

        Args:
            selection: which contracts, and how bad their breaches are; as text for ``--contracts``.

        Raises:
            UsageError: a word of the text that is no contract; or the system is watched already.
        """
        from pkvm_emu.contracts.monitor import watch
        from pkvm_emu.contracts.rules import Selection

        if self._monitor is not None:
            raise UsageError("the contracts of this system are watched already")
        chosen = Selection.parse(selection) if isinstance(selection, str) else selection
        self._monitor = watch(self, chosen)
        return self._monitor

    def explain(self, last: int | None = 1) -> Explanations:
        """Why the ``last`` refusals happened (None: all of them), oldest first; ``print()`` it.

        Ops and hypercalls that returned an errno, and accesses of the host that ended in an abort.
        """
        from pkvm_emu.explain import explain

        return explain(self, last)

    @property
    def irq(self) -> Interrupts:
        """The host's interrupts: ``system.irq.fire(number)``."""
        return self.kernel.part(Interrupts)

    @property
    def device_tree(self) -> TreeNode:
        """The device tree in use."""
        return self.kernel.part(BoardSetup).tree

    def add_models(self, specs: Sequence[MmioSpec]) -> None:
        """Place models of devices, before the boot: ``ADDR:SIZE=FILE.py``, a class, or ``(address, size, either)``.

        Raises:
            UsageError: a model that cannot be read, or a window that is taken.
        """
        self.kernel.part(MmioWindows).use(specs)

    def set_up_board(self, files: Sequence[ModuleFile], dtb: str | Path | TreeNode | None = None) -> None:
        """Install a device tree, or make up a board for the modules that are going to be loaded."""
        setup = self.kernel.part(BoardSetup)
        if isinstance(dtb, TreeNode):
            setup.use(dtb)
        elif dtb is not None:
            from pkvm_emu.kernel.devicetree.blob import read_device_tree

            setup.use(read_device_tree(dtb))
        else:
            setup.make_up(files)

    # What a host does

    def hvc(self, function: int, *args: int) -> HvcResult:
        """Make a hypercall from EL1, by a real ``hvc #0``.

        Args:
            function: a hypercall number (0 to 0xffff: 0xC6000000 is added), or a whole SMCCC function id.
            args: x1, x2, ... (up to seven).

        Returns:
            x0 to x3 after the call; x0 is -1 (all ones) for an id that nobody answers.
        """
        return HvcResult(*self.kernel.hvc(self.function_id(function), *args)[:4])

    def smc(self, function: int, *args: int) -> HvcResult:
        """Make an SMC from EL1; the hypervisor traps it, asks the modules' handlers and forwards what is left to EL3."""
        return HvcResult(*self.kernel.smc(function, *args)[:4])

    def add_smc(self, path: str | Path) -> None:
        """Answer vendor SMCs at EL3 from a file: a TOML table, or Python with functions marked ``@smc(ID)``.

        Raises:
            UsageError: the file cannot be read or is wrong; the text has the line or the key.
        """
        from pkvm_emu.hyp.el3_table import load_smc_file

        load_smc_file(path, self.hyp.el3, self.machine.ram)

    def load(self, module: ModuleSource, parameters: Sequence[tuple[str, str | None]] = ()) -> LoadedModule:
        """Load a module, as ``insmod FILE name=value ...`` does.

        Raises:
            ModuleLoadError: with the errno and the reason.
        """
        file = read_module(module)
        given = [*self.kernel.command_line.module_parameters(file.name), *parameters]
        self.set_up_board([file])
        return self.kernel.loader.load(file, given)

    def call(self, name: str, *args: int) -> HvcResult:
        """Call a hypercall that a module registered, by the name of its EL2 function.

        Raises:
            UsageError: nobody registered that function.
        """
        return self.hvc(self.function_id(name), *args)

    def function_id(self, function: str | int) -> int:
        """The SMCCC function id of a hypercall: of a number as :meth:`hvc` takes it, or of a name as :meth:`call` does.

        Raises:
            UsageError: nobody registered that function.
        """
        if isinstance(function, int):
            return function | HCALL_BASE if 0 <= function <= 0xFFFF else function
        known: dict[str, int] = {}
        for module in self.modules.values():
            known.update(module.hypercalls)
        short = function.removeprefix("__kvm_nvhe_")
        if short not in known:
            listed = ", ".join(known) or "none"
            raise UsageError(f"no hypercall {function!r} is registered (registered: {listed})")
        return HCALL_BASE | known[short]

    def idle(self, seconds: float | None = None) -> None:
        """The host has nothing to do: deferred work runs, and time goes on.

        Args:
            seconds: for how long; None: until everything that is pending now (timers, delayed work, sleeping threads) has had
                its turn, 10 s at most.
        """
        self.kernel.idle(None if seconds is None else round(seconds * 1e9))

    def reboot(self, how: str = "restart", command: str = "") -> None:
        """End the system as ``reboot(2)`` does: reboot notifiers, shutdown, restart or power-off handlers, then PSCI.

        Args:
            how: ``restart``, ``poweroff`` or ``halt``.
            command: what ``reboot COMMAND`` passes on (``recovery``).

        Raises:
            PoweredOff: it worked; nothing runs any more until a snapshot is restored.
            UsageError: there is no such way.
        """
        from pkvm_emu.kernel.power_events import COMMANDS, PowerEvents

        if how not in COMMANDS:
            raise UsageError(f"no way to end a system is called {how!r} (there are: {', '.join(sorted(set(COMMANDS)))})")
        self.kernel.part(PowerEvents).end(COMMANDS[how], command)

    # Several CPUs

    def cpu(self, index: int) -> SystemCpu:
        """One CPU: its state, taking it offline and back (``system.cpu(1).online = False``), suspend.

        Raises:
            UsageError: there is no such CPU.
        """
        return SystemCpu(self, index)

    def on_cpu(self, index: int) -> AbstractContextManager[None]:
        """``with system.on_cpu(1): ...``: what the block does happens on that CPU.

        Raises:
            UsageError: the CPU does not exist, or is off or suspended.
        """
        return self.machine.on_cpu(index)

    def run_on(
        self, calls: Mapping[int, Sequence[str | int]], seed: int = 0, longest_turn: int = DEFAULT_TURN
    ) -> dict[int, HvcResult]:
        """Make a hypercall on each of several CPUs at once.

        The CPUs take turns of 1 to ``longest_turn`` instructions, at EL1 and EL2, in lengths drawn from ``seed``: the same seed
        gives the same interleaving. An op takes no time of its own, so it is atomic.

        Args:
            calls: by CPU, the hypercall (name or number) and x1, x2, ...: ``{0: ("lock_it", 1), 1: ("lock_it", 2)}``.
            seed: which interleaving.
            longest_turn: instructions.

        Returns:
            x0 to x3 by CPU; a CPU that went off or to sleep in its call has none.

        Raises:
            Stuck: the CPUs wait for each other; the message names them, the locks and the loops.
            UsageError: a CPU that is not there or off, a hypercall that nobody registered.
        """
        return run_on(self, calls, seed, longest_turn)

    def create_vm(
        self,
        protected: bool = True,
        smc_forwarded: bool = True,
        iommus: Mapping[int, Sequence[Route]] | None = None,
    ) -> VirtualMachine:
        """Make a virtual machine, as a VMM does.

        Args:
            protected: a protected VM: the host loses access to the memory that it gives to it.
            smc_forwarded: modules are asked about the SMCs of a protected VM (a flag that the host gives when it makes the VM).
            iommus: the IOMMUs that the guest sees (android16): by id, ``(id there, physical IOMMU, id there)`` of each endpoint.

        Raises:
            ModuleError: a protected module was not loaded, so the system is insecure and protected VMs are refused.
            UsageError: not in protected mode, or not deprivileged yet.
        """
        from pkvm_emu.vm import create

        return create(self, protected, smc_forwarded, iommus)

    # Snapshots

    def snapshot(self) -> Snapshot:
        """Save the state of everything; see :class:`pkvm_emu.machine.snapshot.Snapshot`."""
        return self.machine.snapshots.take()

    def restore(self, snapshot: Snapshot) -> None:
        """Bring everything back to a snapshot of this system."""
        self.machine.snapshots.restore(snapshot)


def read_module(source: ModuleSource) -> ModuleFile:
    """A module from a path, or as it is."""
    return source if isinstance(source, ModuleFile) else ModuleFile.load(source)


def boot(
    android: str | int | Generation | None = None,
    modules: Sequence[ModuleSource] = (),
    cmdline: str = "",
    profile: MachineProfile | None = None,
    *,
    deprivilege: bool = True,
    continue_on_init_failure: bool = False,
    stub_missing: bool = False,
    ignore_versions: bool = False,
    initramfs: str | Path | Sequence[str | Path] | Initramfs | None = None,
    load_modules: bool = False,
    dtb: str | Path | int | TreeNode | None = None,
    mmio: Sequence[MmioSpec] = (),
    timeline: bool = False,
    contracts: Selection | str | None = None,
    prepare: Callable[[System], None] | None = None,
    el3: str | None = None,
    smc: Sequence[str | Path] = (),
) -> System:
    """Boot a system with ``modules`` as its protected modules.

    Args:
        android: the generation (``16``, ``"android16-6.12"``); None: as the modules were built.
        modules: paths, :class:`ModuleFile` objects, or names of modules in the initramfs. Without
            ``kvm-arm.protected_modules=`` in ``cmdline`` all of them are protected modules, in this order but each behind
            those that it needs; with it they are the files that its names are looked up in.
        cmdline: the kernel command line, behind that of the images.
        profile: the machine.
        deprivilege: go on to deprivilege the host; False stops right before (modules may still be loaded then).
        continue_on_init_failure: an EL2 init that fails fails the load; False: as the generation does it (android16's error
            path makes the hypervisor panic).
        stub_missing: symbols of modules that a module depends on and that are not given are linked to stubs that stop the
            run when they are called; False: its load fails with -ENOENT, as in the kernel.
        ignore_versions: link symbols of other modules whatever their versions (CRCs).
        initramfs: archives and Android boot images, later ones over earlier ones; see :class:`Initramfs`.
        load_modules: load the ordinary modules of the initramfs' ``modules.load`` after deprivilege.
        dtb: the device tree: a ``.dtb`` or ``.dts`` file, a tree, the number of one in the images, or ``"none"``; None: the
            first one in the images, else a board made up for the modules.
        mmio: models of devices, as for :meth:`System.add_models`.
        timeline: record what runs from the beginning (:attr:`System.timeline`).
        contracts: watch for breaches from the beginning, as for :meth:`System.watch_contracts`; None: watch nothing.
        prepare: called with the system before it boots, to hang something on it.
        el3: the firmware, ``bare`` or ``full``; None: as the profile of the machine says.
        smc: answers of vendor SMCs, as for :meth:`System.add_smc`.

    Returns:
        The booted system. A module that fails does not raise here: the boot goes on, insecure, as on a device, and
        ``boot_report`` says why. What ends a device (a hypervisor panic, an oops) does raise.
    """
    image = open_initramfs(initramfs)
    files, names = given_modules(modules, image)
    plan = plan_boot(android, files, cmdline, names=names, image=image, dtb=dtb, load_modules=load_modules)
    machine = choose_profile(profile or MachineProfile(), plan.protected_files if image else files)
    if el3 is not None:
        machine = replace(machine, el3=el3)
    system = System(plan.generation, plan.command_line, machine)
    system.kernel.continues_on_init_failure = continue_on_init_failure
    system.kernel.stubs_missing = stub_missing
    system.kernel.ignores_versions = ignore_versions
    system.add_models(mmio)
    for path in smc:
        system.add_smc(path)
    if timeline:
        system.record_timeline()
    if contracts is not None:
        system.watch_contracts(contracts)
    if prepare is not None:
        prepare(system)
    run_plan(system, plan, deprivilege)
    return system


def run_boot(
    system: System,
    files: Sequence[ModuleFile],
    deprivilege: bool = True,
    parameters: Mapping[str, Sequence[tuple[str, str | None]]] | None = None,
    dtb: str | Path | TreeNode | None = None,
) -> None:
    """The boot after the CPUs are up: device tree, protected modules, then deprivilege.

    ``parameters`` are further module parameters by module name, applied after those of the command line. ``dtb`` is as for
    :func:`boot`.
    """
    line = system.kernel.command_line
    run_plan(system, plan_boot(system.generation, files, str(line), dtb=dtb, parameters=parameters), deprivilege)


__all__ = ["ModuleError", "Modules", "System", "boot", "choose_generation", "choose_profile", "read_module", "run_boot"]
