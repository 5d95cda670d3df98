"""The kernel's side of IOMMU drivers that live at EL2 (android15 and later): the registered driver, and its start at boot.

Sources: arch/arm64/kvm/{iommu,pkvm}.c of android15-6.6 and android16-6.12.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from errno import EBADE, ENODEV, ENOMEM
from typing import TYPE_CHECKING

from pkvm_emu.hyp import layout as hyp_layout
from pkvm_emu.hyp.host_requests import DEST_HYP_ALLOC, DEST_HYP_IOMMU, TYPE_MEM
from pkvm_emu.hyp.iommu_blocks import BLOCK_SIZE, CMA_OFFSET
from pkvm_emu.hyp.iommu_rules import DOMAINS_ROOT_OFFSET, RULES
from pkvm_emu.kernel import layout
from pkvm_emu.kernel.devicetree.addresses import window
from pkvm_emu.kernel.devicetree.nodes import DeviceTree
from pkvm_emu.kernel.guest_access import hypercall_number
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

_HCALL_BASE = 0xC600_0000
_ERROR, _INFO = 3, 6
_REGION = "pkvm,cma"
#: ``struct kvm_iommu_driver``: init_driver, remove_driver, get_iommu_id (android15) or get_iommu_id_by_of (android16),
#: then (android16) get_device_iommu_num_ids and get_device_iommu_id.
INIT_DRIVER, REMOVE_DRIVER, GET_ID, NUM_IDS, DEVICE_ID = 0, 8, 16, 24, 32


@dataclass(frozen=True, slots=True)
class IommuBoot:
    """How a generation starts the driver.

    Attributes:
        missing: the line for a boot without one.
        init_optional: ``init_driver`` may be NULL: the driver then has started itself.
    """

    missing: str
    init_optional: bool


_SECURITY = "do not run confidential workloads in virtual machines"
BOOT: Mapping[str, IommuBoot] = {
    "a15": IommuBoot(f"pKVM enabled with no IOMMU driver, {_SECURITY}", True),
    "a16": IommuBoot(f"pKVM enabled without an IOMMU driver, {_SECURITY}", False),
}


@kernel_part
class IommuDrivers(State):
    """What is registered.

    Attributes:
        driver: kernel VA of the ``struct kvm_iommu_driver``; 0 without one.
        region: start and bytes of the memory that is kept for IOMMU drivers at EL2 (``pkvm,cma``, android15).
        taken: the 2 MiB pieces of it that are in use, by PA.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.iommu")
        self.driver = 0
        self.region = (0, 0)
        self.taken: StateDict[int, bool] = StateDict(kernel.machine.journal)


def s32(value: int) -> int:
    """A register as an ``int``."""
    return ((value & 0xFFFF_FFFF) ^ 1 << 31) - (1 << 31)


def call_hyp(kernel: Kernel, name: str, *args: int) -> tuple[int, ...]:
    """``kvm_call_hyp_nvhe``: a host hypercall by name, with a WARN where the hypervisor refuses it; x0..x7 after it."""
    registers = kernel.hvc(_HCALL_BASE | hypercall_number(kernel, name), *args)
    if registers[0] >> 63:
        warn(kernel, "arch/arm64/include/asm/kvm_host.h kvm_call_hyp_nvhe")
    return registers


def driver_function(kernel: Kernel, member: int) -> int:
    """A function of the registered driver, or 0."""
    driver = kernel.part(IommuDrivers).driver
    return kernel.memory.read_u64(driver + member) if driver else 0


def top_up(kernel: Kernel, result: tuple[int, ...], gfp: int) -> int:
    """Give the hypervisor the memory that it asked for with a result: 0, -EBADE (it asked for none), or -errno."""
    from pkvm_emu.kernel.exports.pkvm_memory import pkvm_topup_hyp_alloc, pkvm_topup_hyp_alloc_mgt_gfp

    kind, dest = result[2] & 0xFF, result[2] >> 8 & 0xFF
    pieces, size = s32(result[3]), s32(result[3] >> 32)
    if kind != TYPE_MEM:
        return pkvm_topup_hyp_alloc(kernel, 1) if s32(result[1]) == -ENOMEM else -EBADE
    if dest == DEST_HYP_IOMMU:
        return pkvm_topup_hyp_alloc_mgt_gfp(kernel, 1, pieces, size, gfp)
    if dest == DEST_HYP_ALLOC:
        return pkvm_topup_hyp_alloc(kernel, pieces)
    kernel.log.write("Bogus mem request", _ERROR)
    return -EBADE


def init_driver(kernel: Kernel) -> int:
    """``kvm_iommu_init_driver``: give EL2 the root table of domains and let the driver start: 0 or -errno."""
    rules, boot = RULES[kernel.generation.layout], BOOT[kernel.generation.layout]
    if not driver_function(kernel, GET_ID):
        kernel.kvm_log(boot.missing, _ERROR)
        return -ENODEV
    function = driver_function(kernel, INIT_DRIVER)
    if boot.init_optional and not function:
        return 0
    root = kernel.pages.alloc_pages((rules.root_pages - 1).bit_length(), zero=True)
    if root is None:
        return -ENOMEM
    variable = kernel.memory.image_pa + layout.IMAGE_HYP_TEXT + DOMAINS_ROOT_OFFSET
    kernel.machine.ram.write_u64(variable, hyp_layout.kern_hyp_va(kernel.memory.linear_va(root)))
    return kernel.call_s32(function)


def announce_region(kernel: Kernel) -> None:
    """``pkvm_iommu_cma_setup``: tell EL2 where the memory is that the device tree keeps for IOMMU drivers."""
    root = kernel.part(DeviceTree).tree
    if root is None or not RULES[kernel.generation.layout].has_block_pools:
        return
    node = next((node for node in root.walk() if _REGION in node.strings("compatible")), None)
    found = None if node is None else window(node)
    ram = kernel.machine.ram
    if found is None or not ram.base <= found.start < found.start + found.size <= ram.end:
        return
    if (found.start | found.size) % BLOCK_SIZE:
        kernel.kvm_log("pKVM IOMMU reserved memory not PMD-aligned", _INFO)
    kernel.part(IommuDrivers).region = (found.start, found.size)
    at = kernel.memory.image_pa + layout.IMAGE_HYP_TEXT + CMA_OFFSET
    ram.write_u64(at, found.start)
    ram.write_u64(at + 8, found.size)


def start_at_boot(kernel: Kernel) -> None:
    """Start the driver right before the host is deprivileged, and say so where that fails; android14 has no such step."""
    if kernel.generation.layout not in BOOT:
        return
    announce_region(kernel)
    error = init_driver(kernel)
    if error:
        kernel.log.write(f"Failed to init KVM IOMMU driver: {error}", _ERROR)
