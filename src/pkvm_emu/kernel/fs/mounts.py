"""Where file systems are mounted: what can be created below each directory, and the error where nothing can."""

from __future__ import annotations

from typing import NamedTuple

from pkvm_emu.abi.errno import ENOENT
from pkvm_emu.kernel.fs.node import EACCES


class MountPoint(NamedTuple):
    """A directory that exists from the start.

    ``create_errno`` is what creating a file below it gives where no file system put one; None: it can be created.
    """

    path: str
    mode: int
    create_errno: int | None


#: The directories of an initramfs and what is mounted on them, parents first.
MOUNT_POINTS = (
    MountPoint("/proc", 0o555, ENOENT),
    MountPoint("/sys", 0o755, EACCES),
    MountPoint("/sys/kernel/debug", 0o700, EACCES),
    MountPoint("/sys/kernel/tracing", 0o700, EACCES),
    MountPoint("/dev", 0o755, None),
    MountPoint("/tmp", 0o1777, None),
    MountPoint("/lib/modules", 0o755, None),
)
