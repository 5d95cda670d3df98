"""Where members of the structures of the host's IOMMU core are, by kernel line.

Drivers read and write them in place: ``dev_iommu_fwspec_get()`` and ``dev_iommu_priv_get()`` are inline functions, and a driver's
tables are constants of its own. Source: ``include/linux/iommu.h`` of android15-6.6 and android16-6.12; every offset agrees with
the debug information of the SMMUv3 drivers of those kernel trees. Other lines have other members, and no row before somebody
checked them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class IommuStructs:
    """One kernel line: byte offsets, and sizes of what the core allocates.

    Attributes:
        unit_ops, unit_fwnode: in ``struct iommu_device``.
        client_size: ``struct dev_iommu``; ``fwspec``, ``unit``, ``priv``, ``max_pasids`` are in it.
        fwspec_size: ``struct iommu_fwspec`` without ids; ``fwspec_ids`` is where they begin, ``fwspec_ops`` None where it has none.
        ops: members of ``struct iommu_ops`` by name, as far as the line has them.
        domain_ops: members of ``struct iommu_domain_ops`` by name; ``domain_ops_size`` is the whole of it.
        domain_owner: None where the line has no such member.
        domain_type: the first of the members of ``struct iommu_domain``; ``aperture_*`` are those of its geometry.
        region_size: ``struct iommu_resv_region``, which begins with a list.
        gather_size: ``struct iommu_iotlb_gather``; ``gather_freelist`` is its list.
    """

    unit_ops: int
    unit_fwnode: int
    client_size: int
    fwspec: int
    unit: int
    priv: int
    max_pasids: int
    fwspec_size: int
    fwspec_ops: int | None
    fwspec_fwnode: int
    fwspec_count: int
    fwspec_ids: int
    ops: Mapping[str, int]
    domain_ops: Mapping[str, int]
    domain_ops_size: int
    domain_type: int
    domain_operations: int
    domain_owner: int | None
    domain_pgsize_bitmap: int
    aperture_start: int
    aperture_end: int
    force_aperture: int
    region_size: int
    region_start: int
    region_length: int
    region_prot: int
    region_type: int
    gather_size: int
    gather_freelist: int
    unit_max_pasids: int


IOMMU_STRUCTS: Mapping[tuple[int, int], IommuStructs] = {
    (6, 6): IommuStructs(
        unit_ops=16,
        unit_fwnode=24,
        unit_max_pasids=40,
        client_size=96,
        fwspec=64,
        unit=72,
        priv=80,
        max_pasids=88,
        fwspec_size=24,
        fwspec_ops=0,
        fwspec_fwnode=8,
        fwspec_count=20,
        fwspec_ids=24,
        ops={
            "domain_alloc": 16,
            "probe_device": 24,
            "release_device": 32,
            "probe_finalize": 40,
            "device_group": 56,
            "get_resv_regions": 64,
            "of_xlate": 72,
            "def_domain_type": 112,
            "default_domain_ops": 128,
            "pgsize_bitmap": 136,
            "owner": 144,
        },
        domain_ops={
            "attach_dev": 0,
            "map_pages": 24,
            "unmap_pages": 40,
            "flush_iotlb_all": 48,
            "iotlb_sync_map": 56,
            "iotlb_sync": 64,
            "iova_to_phys": 72,
            "free": 104,
        },
        domain_ops_size=112,
        domain_type=0,
        domain_operations=8,
        domain_owner=None,
        domain_pgsize_bitmap=16,
        aperture_start=24,
        aperture_end=32,
        force_aperture=40,
        region_size=48,
        region_start=16,
        region_length=24,
        region_prot=32,
        region_type=36,
        gather_size=64,
        gather_freelist=24,
    ),
    (6, 12): IommuStructs(
        unit_ops=16,
        unit_fwnode=24,
        unit_max_pasids=48,
        client_size=88,
        fwspec=56,
        unit=64,
        priv=72,
        max_pasids=80,
        fwspec_size=16,
        fwspec_ops=None,
        fwspec_fwnode=0,
        fwspec_count=12,
        fwspec_ids=16,
        ops={
            "domain_alloc": 16,
            "domain_alloc_paging": 32,
            "probe_device": 48,
            "release_device": 56,
            "probe_finalize": 64,
            "device_group": 72,
            "get_resv_regions": 80,
            "of_xlate": 88,
            "def_domain_type": 128,
            "default_domain_ops": 144,
            "pgsize_bitmap": 152,
            "owner": 160,
            "identity_domain": 168,
            "release_domain": 184,
            "default_domain": 192,
        },
        domain_ops={
            "attach_dev": 0,
            "map_pages": 16,
            "unmap_pages": 24,
            "flush_iotlb_all": 32,
            "iotlb_sync_map": 40,
            "iotlb_sync": 48,
            "iova_to_phys": 64,
            "free": 96,
        },
        domain_ops_size=160,
        domain_type=0,
        domain_operations=8,
        domain_owner=24,
        domain_pgsize_bitmap=32,
        aperture_start=40,
        aperture_end=48,
        force_aperture=56,
        region_size=48,
        region_start=16,
        region_length=24,
        region_prot=32,
        region_type=36,
        gather_size=64,
        gather_freelist=24,
    ),
}
