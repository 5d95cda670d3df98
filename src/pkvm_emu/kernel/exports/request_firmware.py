"""Firmware files (``drivers/base/firmware_loader``): looked for where the kernel looks, in the files of the emulated system."""

from __future__ import annotations

import struct
from errno import EINVAL, ENOENT, ENOMEM

from pkvm_emu.kernel.exports.debugfs import text
from pkvm_emu.kernel.exports.device_log import device_log
from pkvm_emu.kernel.fs.filesystem import FileSystem
from pkvm_emu.kernel.fs.node import FsError
from pkvm_emu.kernel.guest_access import load_u64, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.kernel.vmalloc import Vmalloc
from pkvm_emu.machine.calling import Ptr

_DIRECTORIES = ("/lib/firmware/updates", "/lib/firmware", "/vendor/firmware")
_WARNING = 4


def _load(kernel: Kernel, firmware: int, name: int, device: int, quiet: bool) -> int:
    store_uint(kernel, firmware, 0, 8)
    label = text(kernel, name) if name else ""
    if not label or ".." in label.split("/"):
        return -EINVAL
    fs = kernel.part(FileSystem)
    for directory in _DIRECTORIES:
        try:
            data = fs.read_bytes(f"{directory}/{label}")
        except FsError:
            continue
        address = kernel.part(Vmalloc).allocate(max(len(data), 1))
        # struct firmware: size, data, priv
        structure = kernel.part(Slab).kmalloc(24)
        if address is None or structure is None:
            return -ENOMEM
        kernel.memory.write(address, data)
        kernel.memory.write(structure, struct.pack("<QQQ", len(data), address, 0))
        store_uint(kernel, firmware, structure, 8)
        return 0
    if not quiet:
        device_log(kernel, device, _WARNING, f"Direct firmware load for {label} failed with error -2\n")
    return -ENOENT


@kernel_symbol("request_firmware", "request_firmware_direct", runs_guest=True)
def request_firmware(kernel: Kernel, firmware: Ptr, name: Ptr, device: Ptr) -> int:
    """A file as ``struct firmware`` {size, data}; 0, -ENOENT (with a line in the log), -EINVAL."""
    return _load(kernel, firmware, name, device, quiet=False)


@kernel_symbol("firmware_request_nowarn", runs_guest=True)
def firmware_request_nowarn(kernel: Kernel, firmware: Ptr, name: Ptr, device: Ptr) -> int:
    """The same without the line."""
    return _load(kernel, firmware, name, device, quiet=True)


@kernel_symbol("release_firmware", runs_guest=True)
def release_firmware(kernel: Kernel, firmware: Ptr) -> None:
    """Free it; NULL is ignored."""
    if firmware:
        kernel.part(Vmalloc).release(load_u64(kernel, firmware + 8))
        kernel.part(Slab).kfree(firmware, "release_firmware")
