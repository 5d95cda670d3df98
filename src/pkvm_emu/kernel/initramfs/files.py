"""The files of an initramfs as the emulated system sees them, and ``/proc/bootconfig``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.kernel.fs.node import File, TextFile
from pkvm_emu.kernel.fs.open_file import OpenFile
from pkvm_emu.kernel.fs.registry import provider
from pkvm_emu.kernel.initramfs.booted import BootImageFiles

if TYPE_CHECKING:
    from pkvm_emu.kernel.fs.filesystem import FileSystem
    from pkvm_emu.kernel.kernel import Kernel

#: What the kernel mounts over.
_MOUNTED = ("proc", "sys", "dev", "tmp")


class ImageFile(File):
    """A regular file of the initramfs: read-only."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self, handle: OpenFile, offset: int, size: int) -> bytes | int:
        return bytes(self._data[offset : offset + size])


@provider
def initramfs(kernel: Kernel, fs: FileSystem) -> None:
    """Every regular file of the initramfs, and ``/proc/bootconfig`` where there is one."""
    part = kernel.part(BootImageFiles)
    if part.image is None:
        return
    for path, data in part.image.root.files_below(""):
        if path.partition("/")[0] not in _MOUNTED:
            fs.add(f"/{path}", ImageFile(data))
    config = part.image.bootconfig
    if config is not None and part.uses_bootconfig:
        text = config.proc_text()
        if part.boot_line and (config.command_line("kernel") or config.command_line("init")):
            text += f"# Parameters from bootloader:\n# {part.boot_line}\n"
        fs.add("/proc/bootconfig", TextFile(lambda: text))
