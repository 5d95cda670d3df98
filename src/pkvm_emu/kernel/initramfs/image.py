"""What ``--initramfs`` files give a boot: a root file system, its modules, a command line, bootconfig and device trees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pkvm_emu.elf.module_file import read_input
from pkvm_emu.errors import UsageError
from pkvm_emu.kernel.initramfs.bootconfig import BootConfig, split_trailer
from pkvm_emu.kernel.initramfs.bootimg import Ramdisk, is_boot_image, read_boot_image
from pkvm_emu.kernel.initramfs.cpio import read_archives
from pkvm_emu.kernel.initramfs.dtbs import split_device_trees
from pkvm_emu.kernel.initramfs.module_directory import ModuleDirectory, find_module_directory
from pkvm_emu.kernel.initramfs.rootfs import RootFs

#: Vendor ramdisks that a boot loader leaves out of a normal boot.
_NOT_BOOTED = ("recovery",)


class Initramfs:
    """Initramfs images laid over each other, as a boot loader puts them behind each other in memory.

    Attributes:
        sources: the files, for people.
        root: the root file system.
        command_line: the command lines of the images, in order.
        bootconfig: keys and values, or None where no image has any.
        device_trees: flattened device trees with their names, in order.
    """

    def __init__(self) -> None:
        self.sources: list[str] = []
        self.root = RootFs()
        self.command_line = ""
        self.bootconfig: BootConfig | None = None
        self.bootconfig_size = 0
        self.device_trees: list[tuple[str, bytes]] = []
        self._modules: ModuleDirectory | None = None
        self._bootconfig_text = b""

    @classmethod
    def load(cls, paths: str | Path | Sequence[str | Path], ramdisks: Sequence[str] = ()) -> Initramfs:
        """Read images.

        Args:
            paths: cpio archives (plain or packed) and Android boot images; files of later ones replace those of earlier ones.
            ramdisks: which ramdisks of ``vendor_boot.img`` files, by name or type (``platform``, ``recovery``, ``dlkm``);
                none: all but those of the recovery system.

        Raises:
            InputError: a file that cannot be read or is damaged.
            UsageError: no image has a ramdisk that ``ramdisks`` names.
        """
        image = cls()
        wanted = set(ramdisks)
        found: dict[str, str] = {}
        for path in [paths] if isinstance(paths, (str, Path)) else paths:
            image._add(Path(path).name, read_input(path), wanted, found)
        missing = sorted(wanted - set(found.values()))
        if missing:
            known = ", ".join(found) or "none"
            raise UsageError(f"--ramdisk {missing[0]}: no image has such a ramdisk (there are: {known})")
        if image._bootconfig_text:
            image.bootconfig_size = len(image._bootconfig_text)
            image.bootconfig = BootConfig.parse(image._bootconfig_text, "bootconfig")
        return image

    @property
    def modules(self) -> ModuleDirectory | None:
        """The modules below ``/lib/modules``; None where there are none."""
        if self._modules is None:
            self._modules = find_module_directory(self.root)
        return self._modules

    def _add(self, name: str, data: bytes, wanted: set[str], found: dict[str, str]) -> None:
        if not is_boot_image(data):
            archive, text = split_trailer(memoryview(data), name)
            self.sources.append(f"{name}: initramfs")
            self._add_bootconfig(text)
            self._unpack(archive, name)
            return
        image = read_boot_image(data, name)
        self.command_line = " ".join(part for part in (self.command_line, image.cmdline) if part)
        self.device_trees += split_device_trees(image.dtb, name)
        self._add_bootconfig(image.bootconfig)
        used = [ramdisk for ramdisk in image.ramdisks if _is_wanted(ramdisk, wanted, found)]
        shown = ", ".join(_label(ramdisk) for ramdisk in used if _label(ramdisk))
        self.sources.append(f"{name}: {image.kind}" + (f", ramdisks {shown}" if shown else ""))
        for ramdisk in used:
            label = _label(ramdisk)
            self._unpack(ramdisk.data, f"{name} ({label})" if label else name)

    def _add_bootconfig(self, text: memoryview) -> None:
        # A boot loader puts them behind each other.
        self._bootconfig_text += bytes(text).rstrip(b"\0")
        if self._bootconfig_text and not self._bootconfig_text.endswith(b"\n"):
            self._bootconfig_text += b"\n"

    def _unpack(self, data: memoryview, name: str) -> None:
        self.root.add(read_archives(data, name))


def _is_wanted(ramdisk: Ramdisk, wanted: set[str], found: dict[str, str]) -> bool:
    names = [name for name in (ramdisk.name, ramdisk.kind) if name]
    chosen = next((name for name in names if name in wanted), "")
    for name in names:
        found.setdefault(name, chosen)
        if name in wanted:
            found[name] = name
    # A ramdisk without an entry in a table has nothing to be chosen by.
    if not wanted or not names:
        return ramdisk.kind not in _NOT_BOOTED
    return bool(chosen)


def _label(ramdisk: Ramdisk) -> str:
    return f"{ramdisk.name} ({ramdisk.kind})" if ramdisk.name else ramdisk.kind


def read_initramfs(
    source: Initramfs | str | Path | Iterable[str | Path] | None, ramdisks: Sequence[str] = ()
) -> Initramfs | None:
    """An initramfs from paths, or as it is; arguments and errors as for :meth:`Initramfs.load`."""
    if source is None or isinstance(source, Initramfs):
        return source
    paths = [source] if isinstance(source, (str, Path)) else list(source)
    return Initramfs.load(paths, ramdisks) if paths else None
