"""The board made up for modules, and what is read off their code for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pkvm_emu
from pkvm_emu.cli.main import main
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.kernel.devicetree.addresses import interrupts, windows
from pkvm_emu.kernel.devicetree.source import parse_source, to_source
from pkvm_emu.kernel.devicetree.wants import wants_of
from pkvm_emu.system import System

Driver = Callable[..., ModuleFile]
Said = Callable[[System], list[str]]

TEXT = """
static int probe(struct platform_device *pdev)
{
	struct device_node *node = pdev->dev.of_node;
	u32 sizes[2]; u64 base; const char *mode = NULL;

	if (of_property_read_u32_array(node, "acme,sizes", sizes, 2))
		return -EINVAL;
	if (of_property_read_u64(node, "acme,base", &base))
		return -EINVAL;
	if (of_property_read_string(node, "acme,mode", &mode))
		return -EINVAL;
	if (!of_parse_phandle(node, "memory-region", 0) || !of_find_compatible_node(NULL, NULL, "acme,helper"))
		return -EINVAL;
	if (IS_ERR(devm_platform_ioremap_resource(pdev, 1)) || platform_get_irq(pdev, 1) < 0)
		return -EINVAL;
	pr_info("=probed %u %s\\n", of_property_read_bool(node, "acme,flag"), mode);
	return 0;
}
static const struct of_device_id ids[] = { { .compatible = "NAME" }, { } };
static struct platform_driver acme = { .probe = probe, .driver = { .name = "NAME", .of_match_table = ids } };
module_platform_driver(acme);
"""


@pytest.fixture
def module(driver: Driver) -> ModuleFile:
    return driver(TEXT.replace("NAME", "acme,dma"))


def test_a_modules_code_tells_what_it_asks_for(module: ModuleFile) -> None:
    wants = wants_of(module)
    assert wants.tables == [["acme,dma"]]
    assert wants.nodes == ["acme,helper"]
    read = {name: (one.kind, one.length) for name, one in wants.properties.items()}
    assert read["acme,sizes"] == ("u32", 2)
    assert read["acme,base"] == ("u64", 1)
    assert read["acme,mode"] == ("string", 1)
    assert read["memory-region"][0] == "phandle"
    assert (wants.windows, wants.interrupts) == (2, 2)


def test_a_driver_finds_everything_on_the_board_made_up_for_it(module: ModuleFile, said: Said) -> None:
    system = pkvm_emu.boot(modules=[module])
    # Flags stay unset: whether a driver wants one cannot be known.
    assert said(system) == ["probed 0 pkvm-emu"]
    node = system.device_tree.find("/dma@10000000")
    assert node is not None
    assert [(one.start, one.size) for one in windows(node)] == [(0x1000_0000, 0x1_0000), (0x1001_0000, 0x1_0000)]
    assert [one.hwirq for one in interrupts(system.device_tree, node)] == [32, 33]


def test_a_reserved_region_of_the_board_is_ram_that_nobody_else_gets(module: ModuleFile) -> None:
    system = pkvm_emu.boot(modules=[module])
    reserved = system.device_tree.child("reserved-memory")
    assert reserved is not None
    start, size = windows(reserved.children[0])[0]
    got = {system.kernel.pages.alloc_pages(0) or 0 for _ in range(2000)}
    assert start in system.machine.ram
    assert not any(start <= page < start + size for page in got)


def test_the_printed_board_can_be_given_back(module: ModuleFile, said: Said) -> None:
    printed = to_source(pkvm_emu.boot(modules=[module]).device_tree)
    edited = printed.replace('acme,mode = "pkvm-emu"', 'acme,mode = "fast"; acme,flag')
    assert said(pkvm_emu.boot(modules=[module], dtb=parse_source(edited))) == ["probed 1 fast"]


def test_a_given_tree_gets_the_machines_memory(module: ModuleFile) -> None:
    tree = parse_source(
        '/ { #address-cells = <2>; #size-cells = <2>; memory@0 { device_type = "memory"; reg = <0 0 0 1>; }; };'
    )
    system = pkvm_emu.boot(modules=[module], dtb=tree)
    memory = system.device_tree.child("memory@0")
    assert memory is not None
    assert windows(memory) == [(system.machine.ram.base, system.machine.ram.size)]


def test_a_module_without_device_tree_needs_no_board(driver: Driver) -> None:
    system = pkvm_emu.boot(modules=[driver("static int __init start(void) { return 0; } module_init(start);")])
    assert system.device_tree.child("aliases") is not None
    assert not system.mmio.covers(0x1000_0000)


def test_the_board_grows_for_modules_that_come_later(driver: Driver, module: ModuleFile, said: Said) -> None:
    later = driver(TEXT.replace("NAME", "acme,late"))
    other = driver(TEXT.replace("NAME", "acme,other"))
    later.__dict__["name"], other.__dict__["name"] = "late", "other"
    system = pkvm_emu.boot(modules=[module])
    saved = system.snapshot()
    system.load(later)
    first = system.machine.digest()
    # The same module after a restore finds the same board, whatever was loaded in between.
    system.restore(saved)
    system.load(other)
    system.restore(saved)
    system.load(later)
    assert system.machine.digest() == first
    assert said(system) == ["probed 0 pkvm-emu"] * 2


def test_the_command_line_prints_the_board_and_takes_a_tree(
    tmp_path: Path, driver: Driver, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(__file__).parents[3] / "modules/pkvm_driver"
    assert main(["run", str(path), "--dts"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("/dts-v1/;\n")
    tree = tmp_path / "board.dts"
    tree.write_text(printed)
    assert main(["run", str(path), "--dtb", str(tree)]) == 0
    assert main(["run", str(path), "--dtb", str(tmp_path / "absent.dtb")]) == 2


LOOKUPS = """
static int probe(struct platform_device *pdev) { return 0; }
static const struct of_device_id ids[] = { { .compatible = "acme,user" }, { } };
static struct platform_driver acme = { .probe = probe, .driver = { .name = "acme", .of_match_table = ids } };
static int __init acme_init(void)
{
	struct device_node *node = of_find_node_by_name(NULL, "acme-switch");
	struct reserved_mem *pool;
	const char *status = "";

	if (!node || of_property_read_string(node, "status", &status))
		return -ENODEV;
	pool = of_reserved_mem_lookup(of_find_compatible_node(NULL, NULL, "acme,pool"));
	if (!pool)
		return -ENOMEM;
	pr_info("=%s %llx\\n", status, pool->size);
	return platform_driver_register(&acme);
}
module_init(acme_init);
"""


def test_nodes_looked_up_by_name_and_reserved_pools_are_made_up(driver: Driver, said: Said) -> None:
    wants = wants_of(driver(LOOKUPS))
    assert wants.names == ["acme-switch"]
    assert wants.reserved == ["acme,pool"]
    system = pkvm_emu.boot(modules=[driver(LOOKUPS)])
    assert said(system) == ["okay 200000"]
    pool = next(node for node in system.device_tree.find("/reserved-memory").children if "pool" in node.name)
    assert pool.strings("compatible") == ["acme,pool"]
