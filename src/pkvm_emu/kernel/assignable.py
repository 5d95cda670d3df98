"""The devices that the host announces to the hypervisor before it is deprivileged, so that guests may get them.

They are listed by nodes that are compatible with ``pkvm,device-assignment``: ``devices = <&device group>, ...``. Source:
arch/arm64/kvm/pkvm.c of android16 (pkvm_init_devices, pkvm_register_device).
"""

from __future__ import annotations

from errno import E2BIG, EINVAL, ENOMEM
from typing import TYPE_CHECKING

from pkvm_emu.abi.structs import PKVM_DEVICE
from pkvm_emu.hyp import layout as hyp_layout
from pkvm_emu.hyp.devices import DEVICES_OFFSET, MAX_IOMMUS, MAX_RESOURCES, PAIR
from pkvm_emu.kernel import layout
from pkvm_emu.kernel.devicetree.addresses import windows
from pkvm_emu.kernel.devicetree.nodes import DeviceTree
from pkvm_emu.kernel.devicetree.tree import TreeNode, by_phandle
from pkvm_emu.kernel.iommu import GET_ID, call_hyp, driver_function, s32

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

COMPATIBLE = "pkvm,device-assignment"
_PAGE_SIZE, _PAGE_SHIFT = 4096, 12
_ERROR, _WARNING, _INFO = 3, 4, 6


def _listed(root: TreeNode) -> list[tuple[TreeNode, int]]:
    """The devices and their groups. As in the kernel the count goes on from one list to the next, so a second list begins behind
    as many of its own entries as the first has.
    """
    found: list[tuple[TreeNode, int]] = []
    for node in root.walk():
        if COMPATIBLE not in node.strings("compatible"):
            continue
        cells = node.cells("devices")
        while 2 * len(found) + 1 < len(cells):
            device = by_phandle(root, cells[2 * len(found)])
            if device is None:
                break
            found.append((device, cells[2 * len(found) + 1]))
    return found


def _describe(kernel: Kernel, root: TreeNode, device: TreeNode, group: int) -> bytes | int:
    """A ``struct pkvm_device``, or a negative errno."""
    data = bytearray(PKVM_DEVICE.size)
    ranges = windows(device)
    if len(ranges) > MAX_RESOURCES:
        return -E2BIG
    for place, one in enumerate(ranges):
        if (one.start | one.size) % _PAGE_SIZE:
            return -EINVAL
        data[PAIR * place : PAIR * (place + 1)] = one.start.to_bytes(8, "little") + one.size.to_bytes(8, "little")
    cells = device.cells("iommus")
    ids: list[tuple[int, int]] = []
    while cells:
        iommu = by_phandle(root, cells[0])
        count = 1 if iommu is None else iommu.cell("#iommu-cells", 0)
        if iommu is None:
            break
        if count != 1:
            kernel.kvm_log(f"[Devices] Unsupported binding for {device.name}, expected <&iommu id>", _ERROR)
            return -EINVAL
        if len(ids) >= MAX_IOMMUS:
            return -E2BIG
        ids.append((_iommu_id(kernel, iommu), cells[1] if len(cells) > 1 else 0))
        cells = cells[2:]
    start = PKVM_DEVICE.offset("iommus")
    for place, (number, endpoint) in enumerate(ids):
        at = start + PAIR * place
        data[at : at + PAIR] = number.to_bytes(8, "little") + endpoint.to_bytes(8, "little")
    for name, value in (("nr_resources", len(ranges)), ("nr_iommus", len(ids)), ("group_id", group)):
        at = PKVM_DEVICE.offset(name)
        data[at : at + 4] = value.to_bytes(4, "little")
    return bytes(data)


def _iommu_id(kernel: Kernel, node: TreeNode) -> int:
    """What the IOMMU driver calls an IOMMU; 0 without a driver."""
    function = driver_function(kernel, GET_ID)
    live = kernel.part(DeviceTree).live(node)
    return kernel.call(function, live.address) & 0xFFFF_FFFF if function and live is not None else 0


def announce_devices(kernel: Kernel) -> None:
    """Tell the hypervisor about the assignable devices, and say in the log what there are."""
    root = kernel.part(DeviceTree).tree
    listed = [] if root is None else _listed(root)
    kernel.kvm_log(f"Found {len(listed)} assignable devices", _INFO)
    error = _write_table(kernel, root, listed) if listed and root is not None else 0
    if error:
        kernel.log.write(f"Failed to init kvm devices {error}", _ERROR)
    error = s32(call_hyp(kernel, "devices_init")[1])
    if error:
        kernel.log.write(f"Assignable devices failed to initialize in the hypervisor {error}", _WARNING)


def _write_table(kernel: Kernel, root: TreeNode, listed: list[tuple[TreeNode, int]]) -> int:
    pages = -(-len(listed) * PKVM_DEVICE.size // _PAGE_SIZE)
    table = kernel.pages.alloc_pages((pages - 1).bit_length(), zero=True)
    if table is None:
        return -ENOMEM
    for place, (device, group) in enumerate(listed):
        described = _describe(kernel, root, device, group)
        if isinstance(described, int):
            kernel.pages.free_pages(table, (pages - 1).bit_length())
            return described
        kernel.machine.ram.write(table + place * PKVM_DEVICE.size, described)
    at = kernel.memory.image_pa + layout.IMAGE_HYP_TEXT + DEVICES_OFFSET
    kernel.machine.ram.write_u64(at, hyp_layout.kern_hyp_va(kernel.memory.linear_va(table)))
    kernel.machine.ram.write_u64(at + 8, len(listed))
    return 0
