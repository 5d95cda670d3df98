"""Reserved memory of a given tree: nobody else gets it, regions without an address get one, devices allocate from theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pkvm_emu
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.errors import InputError
from pkvm_emu.kernel.cma import ContiguousAreas
from pkvm_emu.kernel.devicetree.reserved import ReservedMemory
from pkvm_emu.kernel.devicetree.source import parse_source, to_source
from pkvm_emu.kernel.devicetree.wants import wants_of
from pkvm_emu.kernel.vmemmap import Vmemmap
from pkvm_emu.system import System

Run = Callable[..., System]
Said = Callable[[System], list[str]]
Driver = Callable[..., ModuleFile]
TREE = """reserved-memory { #address-cells = <2>; #size-cells = <2>; ranges; %s };
dma@10000000 { compatible = "acme,dma"; reg = <0 0x10000000 0 0x1000>; memory-region = <&pool>; };"""
FIXED = 'pool: pool@50000000 { compatible = "shared-dma-pool"; reg = <0 0x50000000 0 0x200000>; reusable; };'
TEXT = """
#include <linux/cma.h>
#include <linux/mm.h>
static int show(struct cma *area, void *data)
{
	pr_info("=area %s %llx %lx\\n", cma_get_name(area), cma_get_base(area), cma_get_size(area));
	return 0;
}
static int probe(struct platform_device *pdev)
{
	struct cma *area;
	struct page *first, *second;
	int ret = of_reserved_mem_device_init_by_idx(&pdev->dev, pdev->dev.of_node, 0);

	if (ret)
		return ret;
	area = pdev->dev.cma_area;
	if (!area) {
		pr_info("=no area\\n");
		return 0;
	}
	first = cma_alloc(area, 3, 0, false);
	second = cma_alloc(area, 16, 4, false);
	pr_info("=%llx %llx\\n", (u64)first, (u64)second);
	pr_info("=too many: %d, none: %d\\n", cma_alloc(area, 513, 0, true) != NULL, cma_alloc(NULL, 1, 0, true) != NULL);
	pr_info("=released %d, not of it %d\\n", cma_release(area, first, 3),
		cma_release(area, (void *)((u64)first + (0x1000000 >> 6)), 1));
	pr_info("=again %llx\\n", (u64)cma_alloc(area, 2, 0, false));
	cma_for_each_area(show, NULL);
	of_reserved_mem_device_release(&pdev->dev);
	pr_info("=gone %d\\n", pdev->dev.cma_area == NULL);
	return 0;
}
static const struct of_device_id ids[] = { { .compatible = "acme,dma" }, { } };
static struct platform_driver acme = { .probe = probe, .driver = { .name = "acme-dma", .of_match_table = ids } };
module_platform_driver(acme);
"""


def pages(system: System, line: str) -> list[int | None]:
    """Physical addresses of the ``struct page`` pointers in a line."""
    return [system.kernel.part(Vmemmap).physical(int(word, 16)) for word in line.split()]


def test_a_device_allocates_from_the_region_it_was_given(run: Run, said: Said) -> None:
    system = run(TEXT, TREE % FIXED)
    lines = said(system)
    assert pages(system, lines[0]) == [0x5000_0000, 0x5001_0000]
    assert pages(system, lines[3].removeprefix("again")) == [0x5000_0000]
    assert [lines[1], lines[2], *lines[4:]] == [
        "too many: 0, none: 0",
        "released 1, not of it 0",
        "area pool 50000000 200000",
        "area reserved 40000000 40000000",
        "gone 1",
    ]


def test_a_region_that_is_not_reusable_is_no_contiguous_area(run: Run, said: Said) -> None:
    assert said(run(TEXT, TREE % FIXED.replace("reusable", "no-map"))) == ["no area"]


def test_reserved_regions_are_given_to_nobody(run: Run) -> None:
    # The first free page of this machine, so that whatever allocates next would get it.
    first = run(TEXT, TREE % FIXED).kernel.pages.next_fresh & -0x20_0000
    system = run(TEXT, (TREE % FIXED).replace("50000000", f"{first:x}"))
    got = {system.kernel.pages.alloc_pages(0) or 0 for _ in range(3000)}
    assert not any(first <= page < first + 0x20_0000 for page in got)


def test_a_region_without_an_address_gets_one_in_its_range(run: Run, said: Said) -> None:
    sized = """pool: pool { compatible = "shared-dma-pool"; size = <0 0x200000>; alignment = <0 0x400000>; reusable;
        alloc-ranges = <0 0x40000000 0 0x20000000>; };
        other { compatible = "acme,other"; size = <0 0x100000>; };"""
    system = run(TEXT, TREE % sized)
    regions = system.kernel.part(ReservedMemory).regions
    assert regions["/reserved-memory/pool"] == (0x5FC0_0000, 0x20_0000)
    other = regions["/reserved-memory/other"]
    assert other is not None
    assert other.start + other.size <= system.kernel.hyp_reserved
    assert pages(system, said(system)[0]) == [0x5FC0_0000, 0x5FC1_0000]


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (
            FIXED.replace("50000000", "40300000"),
            "OF: reserved mem: failed to reserve memory for node 'pool@40300000': base 0x0000000040300000, size 2 MiB",
        ),
        (
            "pool: pool { size = <1 0>; };",
            "OF: reserved mem: failed to allocate memory for node 'pool': size 4096 MiB",
        ),
    ],
)
def test_a_region_that_is_not_free_is_reported_and_forgotten(run: Run, region: str, message: str) -> None:
    system = run(TEXT, TREE % region)
    assert message in [record.text for record in system.kernel.log]
    assert not system.kernel.part(ContiguousAreas).areas


def test_areas_go_back_with_a_snapshot(run: Run) -> None:
    system = run(TEXT, TREE % FIXED)
    areas = system.kernel.part(ContiguousAreas)
    before, digest = system.snapshot(), system.machine.digest()
    at = areas.of_region(0x5100_0000, 0x1000, "late")
    assert areas.take(at, 1, 0) == 0x5100_0000
    assert system.kernel.pages.reserve(0x5200_0000, 0x5200_1000)
    system.restore(before)
    assert system.machine.digest() == digest
    assert at not in areas.areas


# The made-up board

NUMBERS = """
static int __init start(void)
{
	struct device_node *node = of_find_node_by_name(NULL, "acme");
	u32 on = 0, cells[4] = { 0 }, count = 0;

	of_property_read_u32(node, "use-dma", &on);
	of_property_read_u32(node, "acme,count", &count);
	node = of_find_compatible_node(NULL, NULL, "acme,unit");
	of_property_read_u32_array(node, "reg", cells, 4);
	pr_info("=%u %u %x %x\\n", on, count, cells[1], cells[3]);
	return 0;
}
module_init(start);
"""
LOOKED_UP = """
static int __init start(void)
{
	struct device_node *node = of_find_compatible_node(NULL, NULL, "acme,store");
	struct reserved_mem *found;

	if (!node) {
		pr_info("=no node\\n");
		return -EINVAL;
	}
	found = of_reserved_mem_lookup(node);
	pr_info("=%d\\n", found != NULL);
	return 0;
}
module_init(start);
"""


def test_numbers_whose_names_turn_something_on_are_one(driver: Driver, said: Said) -> None:
    # And windows that are read as plain numbers are one page.
    assert said(pkvm_emu.boot(modules=[driver(NUMBERS)])) == ["1 0 10000000 1000"]


def test_a_node_that_is_looked_up_as_reserved_memory_is_a_region(driver: Driver, said: Said) -> None:
    module = driver(LOOKED_UP)
    assert wants_of(module).reserved == ["acme,store"]
    assert said(pkvm_emu.boot(modules=[module])) == ["1"]


def test_a_driver_that_allocates_pages_of_its_pool_gets_one_it_can(driver: Driver, said: Said) -> None:
    system = pkvm_emu.boot(modules=[driver(TEXT)])
    assert said(system)[1] == "too many: 0, none: 0"
    again = pkvm_emu.boot(modules=[driver(TEXT)], dtb=parse_source(to_source(system.device_tree)))
    assert said(again) == said(system)


def test_a_region_holds_the_file_that_its_node_names(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plug-in.bin").write_bytes(b"entry")
    named = FIXED.replace("reusable", 'pkvm-emu,contents = "plug-in.bin"; reusable')
    assert run(TEXT, TREE % named).machine.ram.read(0x5000_0000, 6) == b"entry\0"
    (tmp_path / "plug-in.bin").write_bytes(bytes(0x20_0001))
    with pytest.raises(InputError, match=r"plug-in.bin: 0x200001 bytes do not go into /reserved-memory/pool@50000000"):
        run(TEXT, TREE % named)
    (tmp_path / "plug-in.bin").unlink()
    with pytest.raises(InputError, match=r"plug-in.bin: cannot be read: No such file"):
        run(TEXT, TREE % named)
