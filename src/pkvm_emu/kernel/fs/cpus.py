"""``/sys/devices/system/cpu``: which CPUs there are and which are online; ``cpuN/online`` takes them off and on.

Sources: ``drivers/base/cpu.c``, ``kernel/cpu.c``.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL
from typing import TYPE_CHECKING

from pkvm_emu.kernel.fs.registry import provider
from pkvm_emu.kernel.fs.sysfs import SysfsFile
from pkvm_emu.kernel.smp import Smp

if TYPE_CHECKING:
    from pkvm_emu.kernel.fs.filesystem import FileSystem
    from pkvm_emu.kernel.kernel import Kernel

_ROOT = "/sys/devices/system/cpu"
_TRUE, _FALSE = ("1", "y", "on"), ("0", "n", "off")


def cpu_list(numbers: list[int]) -> str:
    """Numbers as the kernel lists them.

    >>> cpu_list([0, 1, 2, 5])
    '0-2,5'
    """
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)


def _list_file(kernel: Kernel, wanted: Callable[[bool], bool]) -> SysfsFile:
    smp = kernel.part(Smp)

    def show() -> str:
        return cpu_list([c.index for c in kernel.machine.cpus if wanted(smp.is_online(c.index))]) + "\n"

    return SysfsFile(show)


def _online_file(kernel: Kernel, cpu: int) -> SysfsFile:
    def show() -> str:
        return f"{int(kernel.part(Smp).is_online(cpu))}\n"

    def store(data: bytes) -> int:
        text = data.decode("latin-1").strip().lower()
        if text not in _TRUE + _FALSE:
            return -EINVAL
        wanted = text in _TRUE
        if kernel.part(Smp).is_online(cpu) == wanted:
            return 0
        return kernel.part(Smp).cpu_up(cpu) if wanted else kernel.part(Smp).cpu_down(cpu)

    return SysfsFile(show, store, 0o644)


@provider
def cpus(kernel: Kernel, fs: FileSystem) -> None:
    """The files of the CPUs; CPU 0 cannot be taken off, so it has no ``online``."""
    fs.add(f"{_ROOT}/online", _list_file(kernel, lambda online: online))
    fs.add(f"{_ROOT}/offline", _list_file(kernel, lambda online: not online))
    fs.add(f"{_ROOT}/present", _list_file(kernel, lambda online: True))
    fs.add(f"{_ROOT}/possible", _list_file(kernel, lambda online: True))
    for cpu in kernel.machine.cpus[1:]:
        fs.add(f"{_ROOT}/cpu{cpu.index}/online", _online_file(kernel, cpu.index))
