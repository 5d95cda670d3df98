"""Devices that the device tree says guests may get."""

from __future__ import annotations

import pytest
from iommu_modules import DOMAINS, DOMAINS_EL1

from pkvm_emu.hyp.devices import Devices
from pkvm_emu.kernel.devicetree.source import parse_source
from pkvm_emu.system import System, boot

TREE = """/ {
	#address-cells = <2>; #size-cells = <2>;
	assign { compatible = "pkvm,device-assignment"; devices = <&gpu 7>, <&nic 8>; };
	smmu: iommu@19000000 { reg = <0 0x19000000 0 0x1000>; #iommu-cells = <1>; };
	gpu: gpu@1a000000 { reg = <0 0x1a000000 0 0x2000>, <0 0x1b000000 0 0x1000>; iommus = <&smmu 0x31>, <&smmu 0x32>; };
	nic: nic@1c000000 { reg = <0 0x1c000000 0 0x1000>; %s };
};"""


@pytest.fixture
def start(c_module):
    def run(extra: str = "") -> System:
        ko = c_module(el1=DOMAINS_EL1, el2=DOMAINS, generation="16")
        return boot("16", [ko], dtb=parse_source(TREE % extra))

    return run


def test_the_hypervisor_takes_the_table_over(start) -> None:
    system = start()
    devices = system.hyp.part(Devices)
    assert "kvm [1]: Found 2 assignable devices" in system.dmesg
    assert list(devices.resources) == [((0x1A00_0000, 0x2000), (0x1B00_0000, 0x1000)), ((0x1C00_0000, 0x1000),)]
    # The driver's get_iommu_id_by_of() says 3 to every node.
    assert list(devices.iommus) == [((3, 0x31), (3, 0x32)), ()]
    assert list(devices.groups) == [7, 8]
    assert system.pages.check() == []


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        ("reg = <0 0x1c000000 0 0x800>;", "Failed to init kvm devices -22"),
        ("iommus = <&twin 1 2>; twin: iommu { #iommu-cells = <2>; };", "Unsupported binding for nic@1c000000"),
    ],
    ids=["registers that are no pages", "two ids for an endpoint"],
)
def test_a_device_that_cannot_be_described_leaves_none(start, extra: str, line: str) -> None:
    system = start(extra)
    assert line in system.dmesg
    assert len(system.hyp.part(Devices).resources) == 0
