"""What the IOMMU core and its drivers did, as plain facts for reports: of either form of the core."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pkvm_emu.hyp.iommu import Iommu
from pkvm_emu.hyp.iommu_calls import IommuCalls
from pkvm_emu.hyp.iommu_pkvm import PkvmIommus
from pkvm_emu.hyp.iommu_pkvm_structs import PkvmIommu, PkvmIommuDriver
from pkvm_emu.hyp.iommu_rules import MAX_DOMAINS

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor


def iommu_facts(hyp: Hypervisor, describe: Callable[[int], str]) -> list[dict[str, Any]]:
    """One entry a driver that was initialised: its table, functions entered with counts, domains, devices, power domains.

    Args:
        hyp: the hypervisor.
        describe: names a hyp VA.
    """
    core, found = hyp.part(Iommu), []
    if core.ops:
        found.append(_with_domains(hyp, core, describe))
    pkvm = hyp.part(PkvmIommus)
    for address in pkvm.drivers:
        driver = PkvmIommuDriver(hyp, address)
        devices = [PkvmIommu(hyp, one) for one in pkvm.devices]
        found.append(
            {
                "table": describe(driver.ops),
                "address": driver.ops,
                "follows": True,
                "callbacks": hyp.part(IommuCalls).of(driver.ops),
                "domains": [],
                "devices": [
                    {"id": one.id, "registers": hex(one.pa), "powered": "yes" if one.powered else "no"}
                    for one in devices
                    if one.driver.ops == driver.ops
                ],
                "power_domains": {},
            }
        )
    return found


def _with_domains(hyp: Hypervisor, core: Iommu, describe: Callable[[int], str]) -> dict[str, Any]:
    off = core.rules.power_is_off
    powers = {
        number: bool(hyp.load(iommu + off, 1, "kvm_hyp_iommu.power_is_off")[0])
        for number, iommu in core.power_domains.items()
    }
    return {
        "table": describe(core.ops),
        "address": core.ops,
        "follows": core.follows,
        "callbacks": hyp.part(IommuCalls).of(core.ops),
        "domains": _domains(hyp, core),
        "devices": [
            {"iommu": iommu, "endpoint": endpoint, "pasid": pasid, "domain": domain}
            for (iommu, endpoint, pasid), domain in sorted(core.attached.items())
        ],
        "power_domains": powers,
    }


def _domains(hyp: Hypervisor, core: Iommu) -> list[dict[str, int]]:
    """The domains that are allocated, read from the core's tables."""
    rules, found = core.rules, []
    for index in range(MAX_DOMAINS // rules.domains_per_page):
        page = (
            hyp.load_u64(core.domains_root + 8 * index, "the root table of IOMMU domains") if core.domains_root else 0
        )
        if not page:
            continue
        data = hyp.load(page, rules.domains_per_page * rules.domain_size, "IOMMU domains")
        for place in range(rules.domains_per_page):
            references = int.from_bytes(data[place * rules.domain_size :][:4], "little")
            if references:
                found.append({"id": index * rules.domains_per_page + place, "references": references})
    return found
