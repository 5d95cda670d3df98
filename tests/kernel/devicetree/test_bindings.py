"""Nodes of the made-up board that a published binding prescribes, and what drivers of an IOMMU work out about page tables."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import pkvm_emu
from pkvm_emu.devices.models.smmu_v3 import SmmuV3
from pkvm_emu.kernel.devicetree.addresses import windows
from pkvm_emu.kernel.devicetree.nodes import DeviceTree
from pkvm_emu.kernel.devicetree.source import parse_source
from pkvm_emu.kernel.exports.io_pgtable import io_pgtable_configure
from pkvm_emu.kernel.exports.of_references import of_dma_is_coherent
from pkvm_emu.system import System

TEXT = """
static int probe(struct platform_device *pdev)
{
	struct device_node *node = pdev->dev.of_node;
	struct of_phandle_args args;
	u32 cells;

	if (of_property_read_u32(node, "#iommu-cells", &cells) || of_property_read_u32(node, "arm,smc-id", &cells))
		pr_info("=cells %u\\n", cells);
	POWER
	pm_runtime_enable(&pdev->dev);
	return 0;
}
static const struct of_device_id ids[] = { { .compatible = "arm,smmu-v3" }, { } };
static struct platform_driver acme = { .probe = probe, .driver = { .name = "mmu", .of_match_table = ids } };
module_platform_driver(acme);
"""
POWER = 'of_parse_phandle_with_args(node, "power-domains", "#power-domain-cells", 0, &args);'


def test_an_smmu_is_as_its_binding_says(driver: Callable, said: Callable[[System], list[str]]) -> None:
    system = pkvm_emu.boot(modules=[driver(TEXT.replace("POWER", POWER))])
    tree = system.device_tree
    node = tree.find("/smmu-v3@10000000")
    assert [one.size for one in windows(node)] == [0x2_0000]
    assert node.strings("interrupt-names") == ["eventq", "gerror"]
    assert len(node.cells("interrupts")) == 6
    assert node.cells("#iommu-cells") == [1]
    assert "dma-coherent" in node.properties
    # What the driver reads elsewhere is not guessed for it.
    assert "arm,smc-id" not in node.properties
    assert said(system) == ["cells 1"]
    assert isinstance(system.mmio.model(0x1000_0000), SmmuV3)
    # Nothing else lies in its second page of registers.
    master = tree.find("/dma-master@10020000")
    assert master.cells("iommus") == [node.phandle, 1]
    assert "iommu-idmapped" in master.properties
    controller = tree.find("/power-controller")
    assert node.cells("power-domains") == [controller.phandle]
    assert controller.cells("#power-domain-cells") == [0]


def test_a_driver_that_looks_for_no_power_domain_gets_none(driver: Callable) -> None:
    tree = pkvm_emu.boot(modules=[driver(TEXT.replace("POWER", ""))]).device_tree
    assert "power-domains" not in tree.find("/smmu-v3@10000000").properties
    assert tree.find("/power-controller") is None


def test_dma_goes_by_way_of_an_interconnect() -> None:
    tree = parse_source("""/dts-v1/; / { #address-cells = <2>; #size-cells = <2>;
        noc: noc { #interconnect-cells = <0>; dma-coherent; };
        one { interconnects = <&noc>; interconnect-names = "dma-mem"; };
        two { interconnects = <&noc>; interconnect-names = "other"; };
        three { interconnects = <9>; interconnect-names = "dma-mem"; }; };""")
    kernel = pkvm_emu.boot("16", dtb=tree).kernel
    nodes = kernel.part(DeviceTree)
    assert [of_dma_is_coherent(kernel, nodes.find(f"/{name}").address) for name in ("one", "two", "three")] == [
        True,
        False,
        False,
    ]
    assert not of_dma_is_coherent(kernel, 0)


@pytest.fixture(scope="module")
def configure() -> Callable[..., tuple[int, ...]]:
    kernel = pkvm_emu.boot("16").kernel
    page = kernel.memory.linear_va(kernel.pages.alloc_pages(0, zero=True))

    def run(kind: int, sizes: int, ias: int, oas: int, coherent: int = 1, quirks: int = 0) -> tuple[int, ...]:
        """The result; page sizes, ias and oas; TCR or VTCR, and MAIR."""
        memory = kernel.memory
        memory.write(page, bytes(112))
        for at, value in ((0, kind), (8, quirks), (16, sizes), (24, oas << 32 | ias), (32, coherent)):
            memory.write_u64(page + at, value)
        result = io_pgtable_configure(kernel, page, 0)
        both = memory.read_u64(page + 24)
        return (
            result,
            memory.read_u64(page + 16),
            both & 0xFFFF_FFFF,
            both >> 32,
            *(memory.read_u64(page + at) for at in (80, 88)),
        )

    return run


SIZES = 0x4020_1000


def test_stage_1_tables_of_4k(configure: Callable[..., tuple[int, ...]]) -> None:
    # 39 bits of addresses, 48 out, inner shareable and write-back: IPS 5, SH 3, ORGN and IRGN 1, TSZ 25.
    assert configure(2, SIZES | 1 << 16, 39, 48) == (
        0,
        SIZES,
        39,
        48,
        5 | 3 << 5 | 1 << 7 | 1 << 9 | 25 << 11,
        0xF404FF44,
    )
    assert configure(2, SIZES, 52, 52, 0)[:5] == (0, SIZES, 48, 48, 5 | 2 << 5 | 16 << 11)


@pytest.mark.parametrize(("ias", "oas", "sl"), [(48, 48, 2), (40, 40, 1), (39, 48, 1), (30, 48, 0)])
def test_stage_2_tables_begin_where_the_architecture_says(
    configure: Callable[..., tuple[int, ...]], ias: int, oas: int, sl: int
) -> None:
    result = configure(3, SIZES, ias, oas)
    assert result[0] == 0
    assert (result[4] >> 11 & 3, result[4] >> 13) == (sl, 64 - ias)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((10, SIZES, 48, 48), -22), ((4, SIZES, 32, 32), -95), ((2, 1 << 13, 48, 48), -22), ((2, SIZES, 48, 47), -22),
     ((2, SIZES, 48, 48, 1, 1 << 1), -22), ((2, SIZES, 48, 48, 1, 1 << 6), -22), ((3, SIZES, 48, 48, 1, 1 << 5), -22),
     ((2, SIZES, 48, 48, 0, 1 << 6), 0), ((3, SIZES, 48, 48, 1, 1 << 8), 0)],
)  # fmt: skip
def test_what_tables_cannot_be(
    configure: Callable[..., tuple[int, ...]], arguments: tuple[int, ...], error: int
) -> None:
    assert configure(*arguments)[0] == error


def test_on_6_6_the_size_of_the_first_table_comes_back() -> None:
    kernel = pkvm_emu.boot("15").kernel
    page = kernel.memory.linear_va(kernel.pages.alloc_pages(0, zero=True))
    memory = kernel.memory
    found = []
    for kind, ias, oas in ((2, 48, 48), (2, 39, 48), (3, 40, 40), (3, 42, 42)):
        memory.write(page, bytes(128))
        for at, value in ((0, kind), (16, SIZES), (24, oas << 32 | ias), (32, 1)):
            memory.write_u64(page + at, value)
        assert io_pgtable_configure(kernel, page, page + 112) == 0
        found.append((memory.read_u64(page + 112), memory.read_u64(page + 64) >> (11 if kind == 2 else 13)))
    # Two and eight tables are put together for 40 and 42 bits at stage 2.
    assert found == [(4096, 16), (4096, 25), (2 * 4096, 24), (8 * 4096, 22)]
    memory.write_u64(page + 8, 1 << 8)
    assert io_pgtable_configure(kernel, page, page + 112) == -22
