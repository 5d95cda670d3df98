"""Which initramfs a kernel was booted with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.kernel.registry import kernel_part

if TYPE_CHECKING:
    from pkvm_emu.kernel.initramfs.image import Initramfs
    from pkvm_emu.kernel.kernel import Kernel


@kernel_part
class BootImageFiles:
    """Which initramfs a kernel was booted with; fixed before anything runs.

    Args:
        kernel: the kernel.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.image: Initramfs | None = None
        #: The kernel has taken the bootconfig (the command line said ``bootconfig``).
        self.uses_bootconfig = False
        self.boot_line = ""
