"""The boot after the CPUs are up, in the order of a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.boot_plan import BootPlan
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.kernel import announce
from pkvm_emu.kernel.boot import boot_protected_modules, load_ordinary_modules, load_without_protection
from pkvm_emu.kernel.console import touch_uart
from pkvm_emu.kernel.devicetree.setup import BoardSetup

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel
    from pkvm_emu.system import System

#: What stage-2 maps in one entry at level 2.
_BLOCK = 2 << 20
_ERROR, _INFO = 3, 6


def run_plan(system: System, plan: BootPlan, deprivilege: bool = True) -> None:
    """Device tree, protected modules, deprivilege, and the modules of ``modules.load`` where the plan wants them.

    Args:
        system: made for the plan's generation and command line.
        plan: what to boot.
        deprivilege: False stops right before.
    """
    kernel, line = system.kernel, system.kernel.command_line
    system.set_up_board(plan.protected_files if plan.image is not None else plan.files, plan.dtb)
    system.boot_report.notes.extend(plan.notes)
    _open_store(system, plan)
    _announce_bootconfig(system, plan)
    announce.start(kernel)
    announce.hypervisor_ready(kernel)
    if "hyp_event" in line or "hyp_trace_printk" in line:
        from pkvm_emu.kernel.tracing.early import start

        start(kernel, system.hyp)
    load = boot_protected_modules if kernel.protected else load_without_protection
    if plan.image is None and "kvm-arm.protected_modules" in line:
        # There is no modules.dep to go by: the list is taken at its word.
        system.modprobe.in_turn = frozenset(name.replace("-", "_") for name in plan.names)
    load(kernel, plan.names, system.modprobe, system.boot_report)
    system.modprobe.in_turn = frozenset()
    if deprivilege and kernel.protected:
        announce.before_deprivilege(kernel)
        kernel.deprivilege()
        touch_uart(kernel)
    kernel.pages.leave(_BLOCK)
    if kernel.deprivileged:
        _use_devices(kernel)
    if plan.load_modules:
        load_ordinary_modules(kernel, system.modprobe, system.boot_report)
    kernel.idle()


def _use_devices(kernel: Kernel) -> None:
    """Bus masters of the made-up board come after the protected modules, as their drivers do on a device."""
    if kernel.part(BoardSetup).has_masters:
        from pkvm_emu.kernel.bus_masters import BusMasters

        kernel.part(BusMasters).run()


def _open_store(system: System, plan: BootPlan) -> None:
    store, board = system.modprobe, system.kernel.part(BoardSetup)

    def prepare(file: ModuleFile) -> None:
        if file not in board.modules:
            system.set_up_board([file])

    def tell(text: str) -> None:
        if text not in system.boot_report.notes:
            system.boot_report.notes.append(text)

    store.given = {file.name.replace("-", "_"): file for file in plan.files}
    store.parameters = {name.replace("-", "_"): given for name, given in plan.parameters.items()}
    store.prepare = prepare
    store.told = tell
    if plan.image is None:
        return
    from pkvm_emu.kernel.initramfs.booted import BootImageFiles

    store.directory = plan.image.modules
    files = system.kernel.part(BootImageFiles)
    files.image = plan.image
    files.uses_bootconfig = plan.uses_bootconfig
    files.boot_line = plan.boot_line


def _announce_bootconfig(system: System, plan: BootPlan) -> None:
    """What ``setup_boot_config`` prints, and what it passes over in silence."""
    log, notes = system.kernel.log, system.boot_report.notes
    config = plan.image.bootconfig if plan.image is not None else None
    if plan.image is not None and config is not None and plan.uses_bootconfig:
        log.write(f"Load bootconfig: {plan.image.bootconfig_size} bytes {config.node_count} nodes", _INFO)
    elif config is not None:
        notes.append("the bootconfig is not used: the command line has no word bootconfig")
    elif "bootconfig" in system.kernel.command_line:
        log.write("'bootconfig' found on command line, but no bootconfig found", _ERROR)
    for name in system.kernel.command_line.too_late:
        notes.append(
            f"{name} in the bootconfig comes too late: the kernel reads it from the boot loader's command line only"
        )


__all__ = ["run_plan"]
