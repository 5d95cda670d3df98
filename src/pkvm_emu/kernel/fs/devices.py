"""The character devices that scripts take for granted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import ENOSPC
from pkvm_emu.kernel.fs.node import File
from pkvm_emu.kernel.fs.registry import node

if TYPE_CHECKING:
    from pkvm_emu.kernel.fs.open_file import OpenFile
    from pkvm_emu.kernel.kernel import Kernel


class CharacterDevice(File):
    """Base of devices: ``crw-rw-rw-``."""

    mode = 0o666
    type_letter = "c"

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel


@node("/dev/null")
class Null(CharacterDevice):
    """Always at its end; takes everything."""

    device = (1, 3)

    def read(self, handle: OpenFile, offset: int, size: int) -> bytes | int:
        return b""

    def write(self, handle: OpenFile, offset: int, data: bytes) -> int:
        return len(data)


@node("/dev/zero")
class Zero(Null):
    """Endless zeros."""

    device = (1, 5)

    def read(self, handle: OpenFile, offset: int, size: int) -> bytes | int:
        return bytes(size)


@node("/dev/full")
class Full(Zero):
    """Endless zeros, and no room to write."""

    device = (1, 7)

    def write(self, handle: OpenFile, offset: int, data: bytes) -> int:
        return -ENOSPC
