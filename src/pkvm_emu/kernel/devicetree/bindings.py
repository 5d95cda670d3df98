"""What public device-tree bindings prescribe, for nodes that the made-up board gets.

What a driver reads does not tell what has to be there: a number that it compares, an interrupt that it does not want to see, a
property that it looks up at other nodes. A binding that is published says so, and it beats the guess of
:mod:`pkvm_emu.kernel.devicetree.board`.

Sources: ``Documentation/devicetree/bindings/iommu/{arm,smmu-v3.yaml,iommu.txt}`` and ``power/power-domain.yaml`` there; that pKVM's
driver of an SMMUv3 takes no combined interrupt, and reads ``iommu-idmapped`` of the masters:
``drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3-kvm.c`` of android16-6.12.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pkvm_emu.kernel.devicetree.tree import PropertyValue, TreeNode

#: How many cells follow the phandle in ``iommus``; a node that has it is an IOMMU.
IOMMU_CELLS = "#iommu-cells"
_STREAM = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One binding, as far as the made-up board needs it.

    Attributes:
        size: bytes of its registers.
        interrupts: their names, in order.
        properties: what every node has.
        has_power_domain: a node may have ``power-domains``: it gets one where its driver looks for it.
        of_masters: properties of the bus masters behind it.
    """

    size: int
    interrupts: tuple[str, ...]
    properties: Mapping[str, PropertyValue]
    has_power_domain: bool = False
    of_masters: Mapping[str, PropertyValue]


BINDINGS: Mapping[str, Binding] = {
    "arm,smmu-v3": Binding(
        size=0x2_0000,
        interrupts=("eventq", "gerror"),
        # The model that stands behind it says IDR0.COHACC.
        properties={IOMMU_CELLS: 1, "dma-coherent": None},
        has_power_domain=True,
        of_masters={"iommu-idmapped": None},
    ),
}


def binding_of(node: TreeNode) -> Binding | None:
    """The binding of a node, by its first ``compatible`` string; None where it has none that is known."""
    return BINDINGS.get(node.string("compatible") or "")


def behind(master: TreeNode, iommu: TreeNode, phandle: int) -> None:
    """Put a bus master behind an IOMMU: ``iommus``, and the properties that the IOMMU's binding wants of it.

    Nothing happens where it is behind one already, or where the other node is no IOMMU.

    Args:
        master: the node of the master.
        iommu: the node of the IOMMU.
        phandle: what ``iommu`` is referred to by.
    """
    count = iommu.cell(IOMMU_CELLS, 0)
    binding = binding_of(iommu)
    if "iommus" in master.properties or not count or binding is None:
        return
    master.set("iommus", (phandle, *(0,) * (count - 1), _STREAM))
    for name, value in binding.of_masters.items():
        master.set(name, value)
