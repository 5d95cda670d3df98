"""``struct iommu_domain_ops`` of a driver, whichever order its members have.

The structure holds nothing but functions, so a kernel with RANDSTRUCT shuffles it, by a seed that no binary tells. Where the driver
was compiled with kCFI, the type id in front of a function says which member it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pkvm_emu.abi.kcfi import kcfi_type_id
from pkvm_emu.errors import ModuleError

if TYPE_CHECKING:
    from pkvm_emu.abi.iommu_structs import IommuStructs
    from pkvm_emu.kernel.kernel import Kernel

#: Of the members that are called and of what has the type of one, in each form that a line has. Source: include/linux/iommu.h.
_PROTOTYPES = {
    "attach_dev": ("int (struct iommu_domain *, struct device *)",),
    "map_pages": ("int (struct iommu_domain *, unsigned long, phys_addr_t, size_t, size_t, int, gfp_t, size_t *)",),
    "unmap_pages": ("size_t (struct iommu_domain *, unsigned long, size_t, size_t, struct iommu_iotlb_gather *)",),
    "iotlb_sync_map": (
        "void (struct iommu_domain *, unsigned long, size_t)",
        "int (struct iommu_domain *, unsigned long, size_t)",
    ),
    "iotlb_sync": ("void (struct iommu_domain *, struct iommu_iotlb_gather *)",),
    "iova_to_phys": ("phys_addr_t (struct iommu_domain *, dma_addr_t)",),
    "flush_iotlb_all": ("void (struct iommu_domain *)",),
    "free": ("void (struct iommu_domain *)",),
}
_TYPES = {
    name: frozenset(kcfi_type_id(text, normalised=flavour) for text in texts for flavour in (False, True))
    for name, texts in _PROTOTYPES.items()
}
_KNOWN = frozenset().union(*_TYPES.values())


def domain_operation(kernel: Kernel, rows: IommuStructs, table: int, name: str) -> int:
    """The member ``name`` of a table at a kernel VA; 0 where it has none.

    Args:
        kernel: whose memory.
        rows: where the members are without RANDSTRUCT.
        table: VA of the ``struct iommu_domain_ops``.
        name: one of ``rows.domain_ops``.

    Raises:
        ModuleError: the table is shuffled, and several of its functions have the type of that member.
    """
    if not _is_shuffled(kernel, rows, table):
        return kernel.memory.read_u64(table + rows.domain_ops[name])
    found = [function for _, function in _functions(kernel, rows, table) if _type_of(kernel, function) in _TYPES[name]]
    if len(found) > 1:
        # flush_iotlb_all() has the type of free().
        named = [function for function in found if name in kernel.describe(function)]
        if len(named) != 1:
            where = ", ".join(kernel.describe(function) for function in found)
            raise ModuleError(
                f"RANDSTRUCT has shuffled struct iommu_domain_ops, and each of {where} may be its {name}()"
            )
        found = named
    return found[0] if found else 0


def _is_shuffled(kernel: Kernel, rows: IommuStructs, table: int) -> bool:
    """Whether a function is where none of its type would be."""
    names = {offset: name for name, offset in rows.domain_ops.items()}
    for offset, function in _functions(kernel, rows, table):
        kind = _type_of(kernel, function)
        if kind in _KNOWN and (offset not in names or kind not in _TYPES[names[offset]]):
            return True
    return False


def _functions(kernel: Kernel, rows: IommuStructs, table: int) -> Iterator[tuple[int, int]]:
    for offset in range(0, rows.domain_ops_size, 8):
        function = kernel.memory.read_u64(table + offset)
        if function:
            yield offset, function


def _type_of(kernel: Kernel, function: int) -> int:
    return kernel.memory.read_u32(function - 4)
