"""The ``of_*`` functions as a module sees them, error codes included."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pkvm_emu.errors import ModuleError
from pkvm_emu.system import System

Run = Callable[..., System]
Said = Callable[[System], list[str]]

TREE = """
aliases { uart0 = "/soc/serial@2000"; };
soc: soc { compatible = "acme,bus"; #address-cells = <1>; #size-cells = <1>; ranges = <0 0 0x20000000 0x10000>;
	serial: serial@2000 {
		compatible = "acme,uart-v2", "acme,uart"; reg = <0x2000 0x100>, <0x3000 0x200>; reg-names = "main", "fifo";
		numbers = <1 2 3>; wide = <0x1 0x2>; bytes = [01 02 03]; empty; unterminated = [61 62];
		names = "rx", "tx"; clocks = <&clock 7 8>, <0>, <&clock 9 10>; status = "okay";
	};
	off { compatible = "acme,uart"; status = "disabled"; };
};
clock: clock { #clock-cells = <2>; device_type = "clock"; };
"""


def module(body: str) -> str:
    """A module that runs ``body`` once, with ``uart`` the serial node, and reports by ``say(format, value)``."""
    return f"""
#define say(fmt, ...) pr_info("=" fmt "\\n", ##__VA_ARGS__)
static int __init start(void)
{{
	struct device_node *uart = of_find_node_by_path("/soc/serial@2000");
	{body}
	return 0;
}}
module_init(start);
"""


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ('of_property_read_variable_u32_array(uart, "numbers", out, 1, 0)', 1),
        ('of_property_read_variable_u32_array(uart, "numbers", out, 1, 8)', 3),
        ('of_property_read_variable_u32_array(uart, "numbers", out, 4, 0)', -75),
        ('of_property_read_variable_u32_array(uart, "numbers", out, 1, 2)', -75),
        ('of_property_read_variable_u32_array(uart, "absent", out, 1, 0)', -22),
        ('of_property_read_variable_u32_array(uart, "empty", out, 1, 0)', -61),
        ('of_property_read_u32_index(uart, "numbers", 2, out)', 0),
        ('of_property_read_u32_index(uart, "numbers", 3, out)', -75),
        ('of_property_count_elems_of_size(uart, "numbers", 4)', 3),
        ('of_property_count_elems_of_size(uart, "bytes", 4)', -22),
        ('of_property_count_elems_of_size(uart, "empty", 4)', -61),
        ('of_property_read_string(uart, "names", &text)', 0),
        ('of_property_read_string(uart, "unterminated", &text)', -84),
        ('of_property_read_string(uart, "absent", &text)', -22),
        ('of_property_read_string(uart, "empty", &text)', -61),
        ('of_parse_phandle_with_args(uart, "clocks", "#clock-cells", 1, &args)', -2),
        ('of_parse_phandle_with_args(uart, "clocks", "#clock-cells", 3, &args)', -2),
        ('of_parse_phandle_with_args(uart, "absent", "#clock-cells", 0, &args)', -2),
        ('of_parse_phandle_with_args(uart, "clocks", "#reset-cells", 0, &args)', -22),
        ('of_parse_phandle_with_args(uart, "clocks", "#clock-cells", -1, &args)', -22),
        ("of_address_to_resource(uart, 2, &res)", -22),
        ('of_device_is_compatible(uart, "acme,uart-v2")', 0x3FFF_FFFF),
        ('of_device_is_compatible(uart, "acme,uart")', 0x3FFF_FFFF - 4),
        ('of_device_is_compatible(uart, "acme,other")', 0),
    ],
)
def test_a_result_is_the_kernels(run: Run, said: Said, call: str, result: int) -> None:
    unused = "(void)out; (void)text; (void)args; (void)res;"
    body = (
        f'u32 out[8]; const char *text; struct of_phandle_args args; struct resource res; {unused} say("%d", {call});'
    )
    assert said(run(module(body), TREE)) == [str(result)]


def test_numbers_come_in_the_hosts_order(run: Run, said: Said) -> None:
    body = """
	u32 three[3]; u64 wide;
	of_property_read_variable_u32_array(uart, "numbers", three, 3, 0);
	of_property_read_u64(uart, "wide", &wide);
	say("%u %u %u %llx", three[0], three[1], three[2], wide);
"""
    assert said(run(module(body), TREE)) == ["1 2 3 100000002"]


def test_a_reference_gives_node_and_arguments(run: Run, said: Said) -> None:
    body = """
	struct of_phandle_args args;
	struct device_node *clock = of_find_compatible_node(NULL, "clock", NULL);
	of_parse_phandle_with_args(uart, "clocks", "#clock-cells", 2, &args);
	say("%d %d %u %u", args.np == of_find_node_by_path("/clock"), args.args_count, args.args[0], args.args[1]);
	say("%d", clock == NULL);
"""
    assert said(run(module(body), TREE)) == ["1 2 9 10", "0"]


def test_addresses_go_through_the_ranges_of_the_bus(run: Run, said: Said) -> None:
    body = """
	struct resource res = { 0 };
	of_address_to_resource(uart, 1, &res);
	say("%llx-%llx %s %lx", (u64)res.start, (u64)res.end, res.name, res.flags);
"""
    assert said(run(module(body), TREE)) == ["20003000-200031ff fifo 200"]


def test_a_path_may_begin_with_an_alias_and_end_with_options(run: Run, said: Said) -> None:
    body = """
	const char *options = NULL;
	say("%d", of_find_node_opts_by_path("uart0:115200n8", &options) == uart);
	say("%s", options);
	say("%d", of_find_node_opts_by_path("uart1", NULL) == NULL);
	say("%d", of_find_node_opts_by_path("/soc/serial", NULL) == NULL);
"""
    assert said(run(module(body), TREE)) == ["1", "115200n8", "1", "1"]


def test_searches_go_on_after_a_node(run: Run, said: Said) -> None:
    body = """
	struct device_node *first = of_find_compatible_node(NULL, NULL, "acme,uart");
	struct device_node *second = of_find_compatible_node(first, NULL, "ACME,UART");
	say("%d %d", first == uart, second != NULL && second != first);
	say("%d", of_find_compatible_node(second, NULL, "acme,uart") == NULL);
	say("%d %d", of_device_is_available(first), of_device_is_available(second));
"""
    assert said(run(module(body), TREE)) == ["1 1", "1", "1 0"]


def test_a_table_gives_its_best_row(run: Run, said: Said) -> None:
    body = """
	static const struct of_device_id ids[] = {
		{ .compatible = "acme,uart", .data = "old" }, { .compatible = "acme,uart-v2", .data = "new" }, { } };
	const struct of_device_id *match = NULL;
	say("%d %s", of_find_matching_node_and_match(NULL, ids, &match) == uart, (const char *)match->data);
"""
    assert said(run(module(body), TREE)) == ["1 new"]


def test_members_of_a_node_are_where_compiled_code_reads_them(run: Run, said: Said) -> None:
    body = """
	void **raw = (void **)uart, **parent = raw[112 / 8], **child = parent[120 / 8];
	void **property = raw[96 / 8];
	say("%s %s %x", (char *)raw[0], (char *)raw[2], ((u32 *)raw)[2]);
	say("%s %d", (char *)parent[2], (void *)child == uart);
	say("%s %d %s", (char *)property[0], ((int *)property)[2], (char *)property[2]);
"""
    assert said(run(module(body), TREE)) == ["serial serial@2000 0", "soc 1", "compatible 23 acme,uart-v2"]


def test_no_node_is_no_error_but_a_stray_pointer_is_one(run: Run, said: Said) -> None:
    assert said(run(module('say("%d", of_get_property(NULL, "reg", NULL) == NULL);'), TREE)) == ["1"]
    with pytest.raises(ModuleError, match="0x1234 is no device-tree node, called from init_module"):
        run(module('of_get_property((void *)0x1234, "reg", NULL);'), TREE)


@pytest.mark.parametrize("generation", ["android14-6.1", "android16-6.12"])
def test_a_reserved_region_is_found_with_its_range(run: Run, said: Said, generation: str) -> None:
    pool = "pool@50000000 { reg = <0 0x50000000 0 0x200000>; };"
    tree = f"reserved-memory {{ #address-cells = <2>; #size-cells = <2>; ranges; {pool} }};"
    body = """
	struct reserved_mem *region = of_reserved_mem_lookup(of_find_node_by_path("/reserved-memory/pool@50000000"));
	say("%s %llx %llx", region->name, (u64)region->base, (u64)region->size);
	say("%d", of_reserved_mem_lookup(of_find_node_by_path("/reserved-memory")) == NULL);
"""
    assert said(run(module(body), tree, generation)) == ["pool@50000000 50000000 200000", "1"]


def test_runtime_pm_counts_uses(run: Run, said: Said) -> None:
    body = """
	struct device *dev = &of_find_device_by_node(of_find_node_by_path("/soc"))->dev;
	say("%d", pm_runtime_get_sync(dev));
	pm_runtime_enable(dev);
	say("%d %d", pm_runtime_get_sync(dev), pm_runtime_get_sync(dev));
	say("%d %d", pm_runtime_put_sync(dev), pm_runtime_put_sync(dev));
	say("%d", pm_runtime_put_sync_suspend(dev));
	say("%d", pm_runtime_put_sync_suspend(dev));
"""
    system = run(module(body), TREE)
    # Not enabled; resumed, active already; uses left twice; the last use ends in a suspend; underflow.
    assert said(system) == ["-13", "0 1", "0 0", "0", "-22"]
    assert "platform soc: Runtime PM usage count underflow!" in system.dmesg
