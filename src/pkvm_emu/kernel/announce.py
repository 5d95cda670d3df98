"""The lines that KVM and the boot code write to the kernel log around the life of protected modules.

Source: ``arch/arm64/kvm/{pkvm,arm}.c``, ``init/main.c``.
"""

from __future__ import annotations

from pkvm_emu.kernel.assignable import announce_devices
from pkvm_emu.kernel.iommu import start_at_boot
from pkvm_emu.kernel.kernel import Kernel

_INFO, _NOTICE = 6, 5


def start(kernel: Kernel) -> None:
    """The reservation for the hypervisor, and the command line."""
    if kernel.protected:
        size = kernel.hyp_reserved_size >> 20
        kernel.log.write(f"kvm [0]: Reserved {size} MiB at {kernel.hyp_reserved:#x}", _INFO)
    kernel.log.write(f"Kernel command line: {kernel.command_line}", _NOTICE)


def hypervisor_ready(kernel: Kernel) -> None:
    """EL2 is initialised, in the mode that ``kvm-arm.mode=`` asks for; hVHE exists in protected mode only."""
    wanted = kernel.command_line.get("kvm-arm.mode", "protected")
    if wanted == "none":
        kernel.kvm_log("KVM disabled from command line", _INFO)
        return
    mode = "VHE" if kernel.machine.profile.hvhe and wanted != "nvhe" else "Hyp nVHE"
    if kernel.protected:
        mode = f"Protected {'hVHE' if kernel.machine.profile.hvhe else 'nVHE'}"
    kernel.kvm_log(f"{mode} mode initialized successfully", _INFO)


def before_deprivilege(kernel: Kernel) -> None:
    """IOMMU driver and assignable devices, in generations that initialise them after the modules."""
    start_at_boot(kernel)
    if kernel.generation.boot.iommu_and_devices:
        announce_devices(kernel)
