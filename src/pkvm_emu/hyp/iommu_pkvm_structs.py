"""``struct pkvm_iommu_driver``, ``pkvm_iommu_ops`` and ``pkvm_iommu`` of android14, in EL2 memory.

The driver and its ops are the module's, a ``struct pkvm_iommu`` is made by the hypervisor in a page that the host gave. Sources:
arch/arm64/include/asm/kvm_host.h, arch/arm64/kvm/hyp/include/nvhe/iommu.h, and the offsets in a shipped 5.15 driver (its
per-device data follow ``powered`` and ``flags`` without a gap).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.hyp.iommu_calls import call_driver

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

#: Members of ``struct pkvm_iommu_ops`` as declared; then a size_t, the bytes of data that the driver wants with each device.
MEMBERS = (
    *("init", "validate", "validate_child", "host_stage2_idmap_prepare", "host_stage2_idmap_apply"),
    *("host_stage2_idmap_complete", "suspend", "resume", "host_dabt_handler"),
)
DATA_SIZE = 8 * len(MEMBERS)
_SLOTS = len(MEMBERS) + 1
#: So many functions have to be named like members before an order other than the declared one is believed.
_ENOUGH_NAMES = 3
_DRIVER_LIST, _DRIVER_STATE = 8, 24
NOT_READY, INITIALISING, READY = 0, 1, 2
_DEVICE_SIZE = 104
#: Offsets in ``struct pkvm_iommu``.
_PARENT, _LIST, _SIBLINGS, _CHILDREN, _ID, _OPS, _PA, _VA, _MMIO_SIZE, _POWERED, _FLAGS = (
    *(0, 8, 24, 40, 56, 64, 72, 80, 88, 96, 97),
)


def list_add_tail(hyp: Hypervisor, entry: int, head: int) -> None:
    """``list_add_tail`` on ``struct list_head`` in EL2 memory."""
    last = hyp.load_u64(head + 8, "list_add_tail")
    for at, value in ((last, entry), (entry + 8, last), (entry, head), (head + 8, entry)):
        hyp.write_u64(at, value, "list_add_tail")


def ops_offsets(hyp: Hypervisor, ops: int) -> dict[str, int]:
    """Offset of each member, ``data_size`` included, in the ``struct pkvm_iommu_ops`` at ``ops``.

    Kernels built with structure randomisation may have another order than the declared one, and the modules built for them too. The
    names of the functions that the slots point at tell: ``..._host_stage2_idmap_apply`` is that member. Where the names are
    too few or contradict each other the declared order holds.
    """
    declared = {name: 8 * index for index, name in enumerate((*MEMBERS, "data_size"))}
    named: dict[str, int] = {}
    by_length = sorted(MEMBERS, key=len, reverse=True)
    for offset in range(0, 8 * _SLOTS, 8):
        name = hyp.machine.core.describe(hyp.load_u64(ops + offset, "pkvm_iommu_ops"), 2).split("+")[0]
        found = next((member for member in by_length if name.endswith(f"_{member}")), None)
        if found in named:
            return declared
        if found is not None:
            named[found] = offset
    moved = any(declared[name] != offset for name, offset in named.items())
    if len(named) < _ENOUGH_NAMES or not moved:
        return declared
    free = [offset for offset in range(0, 8 * _SLOTS, 8) if offset not in named.values()]
    sizes = [offset for offset in free if hyp.to_pa(hyp.load_u64(ops + offset, "pkvm_iommu_ops")) is None]
    used = max(sizes, key=lambda offset: hyp.load_u64(ops + offset, "pkvm_iommu_ops"), default=declared["data_size"])
    return {**named, "data_size": used}


class PkvmIommuDriver:
    """A driver: its ``struct pkvm_iommu_driver`` (hyp VA) and its functions.

    Args:
        hyp: the hypervisor.
        address: hyp VA of the structure.
        ops: hyp VA of its ``struct pkvm_iommu_ops``; None: read it from the structure.
    """

    def __init__(self, hyp: Hypervisor, address: int, ops: int | None = None) -> None:
        self._hyp = hyp
        self.address = address
        self.ops = hyp.load_u64(address, "pkvm_iommu_driver.ops") if ops is None else ops
        self._offsets = ops_offsets(hyp, self.ops) if self.ops else {}

    @property
    def state(self) -> int:
        """``NOT_READY``, ``INITIALISING`` or ``READY``."""
        return int.from_bytes(self._hyp.load(self.address + _DRIVER_STATE, 4, "pkvm_iommu_driver.state"), "little")

    def set_state(self, state: int) -> None:
        """Set :attr:`state`."""
        self._hyp.write(self.address + _DRIVER_STATE, state.to_bytes(4, "little"), "pkvm_iommu_driver.state")

    def link(self, head: int) -> None:
        """Append it to the hypervisor's list of drivers."""
        list_add_tail(self._hyp, self.address + _DRIVER_LIST, head)

    @property
    def device_size(self) -> int:
        """Bytes that a device takes in the page that the host gave."""
        size = self._hyp.load_u64(self.ops + self._offsets["data_size"], "pkvm_iommu_ops.data_size")
        return _DEVICE_SIZE + size + 7 & ~7

    def has(self, name: str) -> bool:
        """Whether the driver has a function."""
        return bool(self.function(name))

    def function(self, name: str) -> int:
        """Hyp VA of a function, or 0."""
        offset = self._offsets.get(name)
        return 0 if offset is None else self._hyp.load_u64(self.ops + offset, f"pkvm_iommu_ops->{name}")

    def call(self, name: str, *args: int) -> int:
        """Call a function that returns an ``int`` (or nothing); no function is 0."""
        function = self.function(name)
        if not function:
            return 0
        return ((call_driver(self._hyp, function, 0, *args, table=self.ops, name=name) & 0xFFFF_FFFF) ^ 1 << 31) - (
            1 << 31
        )


class PkvmIommu:
    """A registered device: its ``struct pkvm_iommu`` at a hyp VA."""

    def __init__(self, hyp: Hypervisor, address: int) -> None:
        self._hyp = hyp
        self.address = address

    @classmethod
    def make(cls, hyp: Hypervisor, address: int, device_id: int, ops: int, pa: int, size: int, flags: int) -> PkvmIommu:
        """Fill the structure at ``address``; it has no parent, no mapping and is powered off."""
        device = cls(hyp, address)
        hyp.write(address, bytes(_DEVICE_SIZE), "pkvm_iommu")
        children = address + _CHILDREN
        for at, value in (
            *((_CHILDREN, children), (_CHILDREN + 8, children), (_ID, device_id)),
            *((_OPS, ops), (_PA, pa), (_MMIO_SIZE, size)),
        ):
            hyp.write_u64(address + at, value, "pkvm_iommu")
        hyp.write(address + _FLAGS, bytes((flags,)), "pkvm_iommu.flags")
        return device

    def _word(self, offset: int) -> int:
        return self._hyp.load_u64(self.address + offset, "pkvm_iommu")

    @property
    def id(self) -> int:
        """What the host calls it: the address of its ``struct device``."""
        return self._word(_ID)

    @property
    def pa(self) -> int:
        """PA of its registers."""
        return self._word(_PA)

    @property
    def size(self) -> int:
        """Bytes of its registers."""
        return self._word(_MMIO_SIZE)

    @property
    def end(self) -> int:
        """PA behind its registers."""
        return self.pa + self.size

    @property
    def driver(self) -> PkvmIommuDriver:
        """The functions of its driver."""
        return PkvmIommuDriver(self._hyp, 0, self._word(_OPS))

    @property
    def powered(self) -> bool:
        """It was resumed, and not suspended since."""
        return self._hyp.load(self.address + _POWERED, 1, "pkvm_iommu.powered") != b"\0"

    def set_powered(self, on: bool) -> None:
        """Set :attr:`powered`."""
        self._hyp.write(self.address + _POWERED, bytes((on,)), "pkvm_iommu.powered")

    def set_va(self, va: int) -> None:
        """Store where EL2 maps its registers."""
        self._hyp.write_u64(self.address + _VA, va, "pkvm_iommu.va")

    def set_parent(self, parent: PkvmIommu) -> None:
        """Store its parent."""
        self._hyp.write_u64(self.address + _PARENT, parent.address, "pkvm_iommu.parent")

    def link(self, head: int, parent: PkvmIommu | None) -> None:
        """Append it to the hypervisor's list of devices and to its parent's children."""
        list_add_tail(self._hyp, self.address + _LIST, head)
        if parent is not None:
            list_add_tail(self._hyp, self.address + _SIBLINGS, parent.address + _CHILDREN)
