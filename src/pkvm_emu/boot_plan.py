"""What a boot is made of, before anything runs: modules, images, command line, generation, device tree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pkvm_emu.abi.core_events import with_functions
from pkvm_emu.abi.generation import Generation
from pkvm_emu.choose import choose_generation
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.errors import InputError, UsageError
from pkvm_emu.kernel.command_line import MAX_LENGTH, CommandLine
from pkvm_emu.kernel.devicetree.tree import TreeNode
from pkvm_emu.kernel.module_order import loading_order

if TYPE_CHECKING:
    from pkvm_emu.kernel.initramfs.image import Initramfs

_PROTECTED = "kvm-arm.protected_modules"
#: Kernels from here on quote a bootconfig value on the command line only where it needs it.
_SPARING_QUOTES = (6, 11)


@dataclass(slots=True)
class BootPlan:
    """What :func:`pkvm_emu.system.run_boot` boots.

    Attributes:
        generation: the Android generation.
        command_line: what the kernel sees.
        files: modules that the user gave.
        names: the protected modules, in order.
        image: the initramfs, or None.
        dtb: the device tree, as for :func:`pkvm_emu.system.boot`.
        parameters: further module parameters by module name.
        load_modules: load the ordinary modules of ``modules.load`` after deprivilege.
        boot_line: the part of the command line that the boot loader passes.
        notes: lines for the report.
    """

    generation: Generation
    command_line: CommandLine
    files: list[ModuleFile]
    names: list[str]
    image: Initramfs | None = None
    dtb: str | Path | TreeNode | None = None
    parameters: Mapping[str, Sequence[tuple[str, str | None]]] = field(default_factory=dict)
    load_modules: bool = False
    boot_line: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def uses_bootconfig(self) -> bool:
        """The images have a bootconfig, and the kernel was told to take it."""
        return (
            self.image is not None and self.image.bootconfig is not None and "bootconfig" in CommandLine(self.boot_line)
        )

    @property
    def protected_files(self) -> list[ModuleFile]:
        """The files of the protected modules, as far as they are there."""
        given = {file.name: file for file in self.files}
        found = [given.get(name.replace("-", "_")) or _in_image(self.image, name) for name in self.names]
        return [file for file in found if file is not None]


def open_initramfs(
    source: Initramfs | str | Path | Sequence[str | Path] | None, ramdisks: Sequence[str] = ()
) -> Initramfs | None:
    """The initramfs that a user gave; arguments and errors as for :meth:`Initramfs.load`. None where none was given."""
    if not source and not hasattr(source, "root"):
        return None
    from pkvm_emu.kernel.initramfs.image import read_initramfs

    return read_initramfs(source, ramdisks)


def given_modules(
    sources: Sequence[str | Path | ModuleFile], image: Initramfs | None
) -> tuple[list[ModuleFile], list[str] | None]:
    """Files and names for :func:`plan_boot` from what a user gave: a text that is no path is a module of the image.

    Raises:
        InputError: a file that cannot be read.
    """
    files: list[ModuleFile] = []
    names: list[str] = []
    for source in sources:
        modules = image.modules if image is not None else None
        if isinstance(source, str) and modules is not None and source in modules and not Path(source).exists():
            names.append(source)
            continue
        file = source if isinstance(source, ModuleFile) else ModuleFile.load(source)
        files.append(file)
        names.append(file.name)
    return files, names if len(names) > len(files) else None


def plan_boot(
    android: str | int | Generation | None = None,
    files: Sequence[ModuleFile] = (),
    cmdline: str = "",
    *,
    names: Sequence[str] | None = None,
    image: Initramfs | None = None,
    dtb: str | Path | int | TreeNode | None = None,
    parameters: Mapping[str, Sequence[tuple[str, str | None]]] | None = None,
    load_modules: bool = False,
) -> BootPlan:
    """Put a boot together.

    The command line is that of the device tree (``/chosen/bootargs``, where it comes from the image), of the images in their
    order, then ``cmdline``. The protected modules are those of ``kvm-arm.protected_modules=`` in ``cmdline``; else ``names``;
    else ``files``, each behind those that it needs; else those of the image's own command line.

    Args:
        android: the generation; None: as the modules were built.
        files: modules given by the user; they come before those of the image.
        cmdline: what is added to the command line.
        names: modules that the user named: of ``files``, or of the image.
        image: the initramfs.
        dtb: a file, a tree, the number of a tree in the image, or ``"none"``: no tree of the image. None: its first one.
        parameters: further module parameters by module name.
        load_modules: load the ordinary modules of ``modules.load``.

    Raises:
        UsageError: the modules need each other in a circle or are of different generations, or there is no such tree.
    """
    tree, bootargs = _device_tree(image, dtb)
    boot_line = " ".join(part for part in (bootargs, image.command_line if image else "", cmdline) if part)
    notes = []
    length = len(boot_line.encode("utf-8", "surrogateescape"))
    if image is not None and length >= MAX_LENGTH:
        notes.append(f"the command line ({length} bytes) is cut at {MAX_LENGTH - 1}, as the kernel does it")
        boot_line = boot_line.encode("utf-8", "surrogateescape")[: MAX_LENGTH - 1].decode("utf-8", "ignore")
    line = CommandLine(boot_line)
    choose_generation(android, files)
    files = loading_order(files)
    if _PROTECTED in CommandLine(cmdline):
        protected = line.protected_modules
    elif names is not None or files:
        protected = [file.name for file in files] if names is None else _in_order(names, files)
    else:
        protected = line.protected_modules
    plan = BootPlan(
        _generation(android, files, protected, image),
        line,
        list(files),
        protected,
        image,
        tree,
        parameters or {},
        load_modules,
        boot_line,
        notes,
    )
    if any(file.has_patchable_functions for file in plan.protected_files):
        # Such a module was built for a kernel with CONFIG_PKVM_FTRACE.
        plan.generation = with_functions(plan.generation)
    config = image.bootconfig if image is not None else None
    if config is not None and plan.uses_bootconfig:
        always = plan.generation.kernel < _SPARING_QUOTES
        plan.command_line = CommandLine(
            boot_line, config.command_line("kernel", always), config.command_line("init", always)
        )
    return plan


def _in_order(names: Iterable[str], files: Sequence[ModuleFile]) -> list[str]:
    """The names, with those of ``files`` in the order of ``files``."""
    waiting = iter([file.name for file in files])
    own = {file.name for file in files}
    return [next(waiting) if name in own else name for name in dict.fromkeys(names)]


def _in_image(image: Initramfs | None, name: str) -> ModuleFile | None:
    """A module of the image; None where there is none, or a damaged one: that fails when it is loaded."""
    try:
        return image.modules.module(name) if image is not None and image.modules is not None else None
    except InputError:
        return None


def _generation(
    android: str | int | Generation | None, files: Sequence[ModuleFile], names: Sequence[str], image: Initramfs | None
) -> Generation:
    deciding = list(files)
    if android is None:
        deciding += [file for name in names if (file := _in_image(image, name)) is not None]
    if android is None and not deciding and image is not None and image.modules is not None:
        # Any module of the image tells the kernel that it is for.
        found = (_in_image(image, name) for name in image.modules)
        deciding += [file for file in [next((file for file in found if file is not None), None)] if file is not None]
    return choose_generation(android, deciding)


def _device_tree(
    image: Initramfs | None, dtb: str | Path | int | TreeNode | None
) -> tuple[str | Path | TreeNode | None, str]:
    """The tree to use, and the boot arguments that it brings along."""
    is_number = isinstance(dtb, int) or (isinstance(dtb, str) and dtb.isdecimal() and not Path(dtb).exists())
    if isinstance(dtb, str) and dtb == "none":
        return None, ""
    if not is_number and dtb is not None:
        return dtb, ""  # type: ignore[return-value]  # a number is not among what is left
    trees = image.device_trees if image is not None else []
    index = int(dtb) if is_number else 0  # type: ignore[arg-type]  # a number, or its text
    if index >= len(trees):
        if not is_number:
            return None, ""
        raise UsageError(f"--dtb {index}: the images have {len(trees)} device trees, counted from 0")
    from pkvm_emu.kernel.devicetree.blob import parse_blob

    name, data = trees[index]
    root = parse_blob(data, name)
    chosen = root.child("chosen")
    return root, (chosen.string("bootargs") or "" if chosen is not None else "").strip()
