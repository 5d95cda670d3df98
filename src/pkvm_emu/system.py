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
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pkvm_emu.abi.core_events import has_functions, with_functions
from pkvm_emu.abi.generation import EVENTS_SECTION, PRINTK_SECTION, Generation
from pkvm_emu.boot_flow import run_plan
from pkvm_emu.boot_plan import given_modules, open_initramfs, plan_boot
from pkvm_emu.choose import choose_generation, choose_profile
from pkvm_emu.devices.standard import StandardDevices
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.errors import ModuleError, UsageError
from pkvm_emu.host import Host
from pkvm_emu.host_actions import HostActions, ModuleSource, read_module
from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.hypervisor import register_all as register_hyp
from pkvm_emu.hyp.layout import FIRST_MODULE_VA
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
from pkvm_emu.machine.snapshot import Snapshot
from pkvm_emu.observations import Observations
from pkvm_emu.pages import Pages
from pkvm_emu.symbolize import Symbolizer

if TYPE_CHECKING:
    from pkvm_emu.contracts.monitor import Monitor
    from pkvm_emu.contracts.rules import Selection
    from pkvm_emu.devices.loading import MmioSpec
    from pkvm_emu.kernel.fs import FileSystem
    from pkvm_emu.kernel.initramfs.image import Initramfs
    from pkvm_emu.tracing.functions import FunctionTracer
    from pkvm_emu.tracing.timeline import Timeline
    from pkvm_emu.tracing.timeline.listen import Recording


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


class System(HostActions, Observations):
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
        if "hyp_ftrace_filter" in command_line:
            gen = with_functions(gen)
        traces_functions = has_functions(gen)
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
        # Modules of both levels are within: what else executes there is firmware.
        self.machine.engine.halt.cover(FIRST_MODULE_VA, memory.layout.kimage_vaddr + layout.KIMAGE_SIZE)
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

    # Snapshots

    def snapshot(self) -> Snapshot:
        """Save the state of everything; see :class:`pkvm_emu.machine.snapshot.Snapshot`."""
        return self.machine.snapshots.take()

    def restore(self, snapshot: Snapshot) -> None:
        """Bring everything back to a snapshot of this system."""
        self.machine.snapshots.restore(snapshot)


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
    kernel: Sequence[str | Path] = (),
    ramdisks: Sequence[str] = (),
    max_insns: int | None = None,
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
        kernel: Python files that serve kernel symbols, as for :meth:`System.add_kernel_symbols`.
        ramdisks: which ramdisks of a ``vendor_boot.img`` are unpacked, by name or type; none: all but the recovery's.
        max_insns: the run stops when that many instructions were executed (1 or more).

    Returns:
        The booted system. A module that fails does not raise here: the boot goes on, insecure, as on a device, and
        ``boot_report`` says why. What ends a device (a hypervisor panic, an oops) does raise.
    """
    if max_insns is not None and max_insns < 1:
        raise UsageError(f"max_insns={max_insns}: at least one instruction has to be executed")
    image = open_initramfs(initramfs, ramdisks)
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
    for path in kernel:
        system.add_kernel_symbols(path)
    for path in smc:
        system.add_smc(path)
    system.machine.core.instruction_budget = max_insns
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
