"""The lines that KVM and the boot code write to the kernel log around the life of protected modules.

Source: ``arch/arm64/kvm/{pkvm,arm}.c``, ``init/main.c``.
"""

from __future__ import annotations

from pkvm_emu.kernel.kernel import Kernel

_INFO, _NOTICE, _ERROR = 6, 5, 3
_ENODEV = 19


def start(kernel: Kernel) -> None:
    """The reservation for the hypervisor, and the command line."""
    if kernel.protected:
        size = kernel.hyp_reserved_size >> 20
        kernel.log.write(f"kvm [0]: Reserved {size} MiB at {kernel.hyp_reserved:#x}", _INFO)
    kernel.log.write(f"Kernel command line: {kernel.command_line}", _NOTICE)


def hypervisor_ready(kernel: Kernel) -> None:
    """EL2 is initialised."""
    mode = "hVHE" if kernel.machine.profile.hvhe else "nVHE"
    kernel.kvm_log(f"{'Protected ' if kernel.protected else ''}{mode} mode initialized successfully", _INFO)


def before_deprivilege(kernel: Kernel) -> None:
    """IOMMU driver and assignable devices, in generations that initialise them after the modules."""
    if not kernel.generation.boot.iommu_and_devices:
        return
    kernel.kvm_log(
        "pKVM enabled without an IOMMU driver, do not run confidential workloads in virtual machines", level=4
    )
    kernel.log.write(f"Failed to init KVM IOMMU driver: {-_ENODEV}", _ERROR)
    kernel.kvm_log("Found 0 assignable devices", _INFO)
