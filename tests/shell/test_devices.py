"""ioctl, mknod, readlink and what ls shows of devices and links."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from shell_support import ShellRunner

from pkvm_emu.kernel.fs import Symlink, ioctl
from pkvm_emu.kernel.fs.node import EACCES, File
from pkvm_emu.kernel.fs.open_file import OpenFile
from pkvm_emu.shell.command import CommandError
from pkvm_emu.shell.commands.devices import ioctl_number
from pkvm_emu.system import System


class Doubler(File):
    """Answers one command with the bytes of its structure doubled, and numbers with their half."""

    device = (200, 7)
    mode = 0o600

    def ioctl(self, handle: OpenFile, command: int, argument: int | bytearray) -> int:
        if isinstance(argument, int):
            return argument // 2
        if command != ioctl.iowr("d", 1, 4):
            return -25
        argument[:] = bytes(byte * 2 for byte in argument)
        return 0


class Closed(Doubler):
    """Opens for nobody."""

    def open(self, handle: OpenFile) -> int:
        return -EACCES


@pytest.fixture
def devices(system: System) -> Iterator[System]:
    system.fs.add("/dev/doubler", Doubler())
    system.fs.add("/dev/closed", Closed())
    system.fs.add("/dev/link", Symlink("doubler"))
    system.fs.add("/dev/loop", Symlink("loop"))
    return system


PRINTS = {
    "ioctl /dev/doubler \"_IOWR('d', 1, 4)\" hex:01020304": ("0\n02040608\n", ""),
    "ioctl /dev/doubler \"_IOWR('d', 1, 4)\" hex:21": ("0\n42000000\n", ""),
    "ioctl /dev/link 0x6401 12": ("6\n", ""),
    "ioctl /dev/doubler \"_IOR('d', 2, 8)\"; echo $?": (
        "1\n",
        "ioctl: /dev/doubler: _IOR('d', 2, 8): Not a typewriter (ENOTTY)\n",
    ),
    "ioctl /dev/closed 1": ("", "ioctl: /dev/closed: Permission denied\n"),
    "ioctl /dev/doubler nonsense": ("", "ioctl: command 'nonsense' is no number\n"),
    "ioctl /dev/doubler 1 hex:1": ("", "ioctl: 'hex:1' is no hex:BYTES\n"),
    "readlink /dev/link; readlink /dev/null; echo $?": ("doubler\n1\n", ""),
    "ls -l /dev/link": ("lrwxrwxrwx    1 0        0                7 Jan  1 00:00 /dev/link -> doubler\n", ""),
    "mknod /tmp/node c 200 9; ls -l /tmp/node; cat /tmp/node": (
        "crw-r--r--    1 0        0         200,   9 Jan  1 00:00 /tmp/node\n",
        "cat: can't open '/tmp/node': No such device or address\n",
    ),
    "mknod /proc/node c 1 2; mknod /dev/doubler c 1 2; mknod /dev/x c 1 9999999": (
        "",
        "mknod: /proc/node: Operation not permitted\nmknod: /dev/doubler: File exists\nmknod: /dev/x: Invalid argument\n",
    ),
}


@pytest.mark.parametrize("script", PRINTS)
def test_command_prints(sh: ShellRunner, devices: System, script: str) -> None:
    sh(script)
    assert (sh.out, sh.err) == PRINTS[script]


def test_links_that_go_round_end(devices: System) -> None:
    from pkvm_emu.kernel.fs import FsError

    with pytest.raises(FsError) as caught:
        devices.fs.read("/dev/loop")
    assert caught.value.errno == 40


@pytest.mark.parametrize("text", ["_IOWR('d', 1)", "_IO('dd', 1)", "_IOR('d', 1, 99999)", "_IO('d', 300)", ""])
def test_bad_commands_are_refused(text: str) -> None:
    with pytest.raises(CommandError):
        ioctl_number(text)


def test_numbers_are_packed_as_headers_pack_them() -> None:
    assert ioctl_number("_IOWR('p', 3, 16)") == 0xC010_7003
    assert ioctl_number("iow(0x70,0x03,16)") == 0x4010_7003
    assert ioctl.describe(0x8004_7001) == "_IOR('p', 1, 4)"
    assert ioctl.describe(0x0001) == "_IO(0x0, 1)"
