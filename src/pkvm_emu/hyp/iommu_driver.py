"""``struct kvm_iommu_ops``: the functions of an IOMMU driver, which is a module, and how they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.abi.kcfi import kcfi_type_id
from pkvm_emu.hyp.errors import HypFault
from pkvm_emu.hyp.iommu_calls import call_driver
from pkvm_emu.hyp.iommu_rules import RULES

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor


class IommuDriver:
    """The driver's table at one hyp VA.

    Args:
        hyp: the hypervisor.
        address: hyp VA of ``struct kvm_iommu_ops``; 0 where no driver is there.
    """

    def __init__(self, hyp: Hypervisor, address: int) -> None:
        self._hyp = hyp
        self.address = address
        self._rules = RULES.get(hyp.generation.layout)

    def function(self, name: str) -> int:
        """Hyp VA of a member; 0 where the driver (or the generation) has none.

        Raises:
            HypFault: there is no driver: the hypervisor follows a NULL pointer.
        """
        if self._rules is None or name not in self._rules.members:
            return 0
        offset = 8 * self._rules.members.index(name)
        if not self.address:
            raise HypFault(f"kvm_iommu_ops->{name}: no IOMMU driver was initialised", offset, is_write=False)
        return self._hyp.load_u64(self.address + offset, f"kvm_iommu_ops->{name}")

    def has(self, name: str) -> bool:
        """Whether there is a driver that has this function."""
        return bool(self.address and self.function(name))

    def call(self, name: str, *args: int) -> int:
        """Call a member at EL2; x0. The caller has made sure that the driver has it."""
        flavour = self._hyp.kcfi_flavour
        kcfi = 0
        if flavour != "none" and self._rules is not None:
            kcfi = kcfi_type_id(self._rules.prototypes[name], normalised=flavour == "normalised")
        return call_driver(self._hyp, self.function(name), kcfi, *args, table=self.address, name=name)

    def call_int(self, name: str, *args: int) -> int:
        """Call a member that returns an ``int``."""
        return ((self.call(name, *args) & 0xFFFF_FFFF) ^ 1 << 31) - (1 << 31)
