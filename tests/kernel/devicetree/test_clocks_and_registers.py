"""What a driver takes from its node's neighbours: clocks, a system controller's registers; and the files that it declares."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pkvm_emu.kernel.fs import FsError
from pkvm_emu.system import System

Run = Callable[..., System]
Said = Callable[[System], list[str]]
TREE = (
    'osc: osc { compatible = "fixed-clock"; #clock-cells = <0>; clock-frequency = <24000000>; };'
    "pll: pll { #clock-cells = <1>; };"
    'ctl: syscon@20000000 { compatible = "acme,ctl", "syscon"; reg = <0 0x20000000 0 0x1000>; };'
    'unit@10000000 { compatible = "acme,unit"; reg = <0 0x10000000 0 0x1000>;'
    ' clocks = <&pll 3>, <&osc>; clock-names = "bus", "core"; acme,ctl = <&ctl>; };'
)
DRIVER = """
struct clk;
struct clk *devm_clk_get(struct device *dev, const char *name);
int clk_prepare(struct clk *clk);
int clk_enable(struct clk *clk);
void clk_disable(struct clk *clk);
unsigned long clk_get_rate(struct clk *clk);
struct regmap;
struct regmap *syscon_regmap_lookup_by_phandle(struct device_node *np, const char *property);
int regmap_read(struct regmap *map, unsigned int reg, unsigned int *val);
int regmap_write(struct regmap *map, unsigned int reg, unsigned int val);
int regmap_update_bits_base(struct regmap *map, u32 reg, u32 mask, u32 val, bool *change, bool async, bool force);
static ssize_t state_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%s\\n", dev_name(dev));
}
static DEVICE_ATTR_RO(state);
static struct attribute *unit_attrs[] = { &dev_attr_state.attr, NULL };
ATTRIBUTE_GROUPS(unit);
struct driver_attribute {
	struct attribute attr;
	ssize_t (*show)(struct device_driver *driver, char *buf);
	ssize_t (*store)(struct device_driver *driver, const char *buf, size_t count);
};
static char word[8] = "first";
static ssize_t word_show(struct device_driver *driver, char *buf)
{
	return sysfs_emit(buf, "%s %s\\n", driver->name, word);
}
static ssize_t word_store(struct device_driver *driver, const char *buf, size_t count)
{
	if (count >= sizeof(word))
		return -ENOSPC;
	memcpy(word, buf, count);
	word[count] = 0;
	return count;
}
static struct driver_attribute word_attr = __ATTR_RW(word);
static struct attribute *driver_attrs[] = { &word_attr.attr, NULL };
ATTRIBUTE_GROUPS(driver);
static int probe(struct platform_device *pdev)
{
	struct clk *core = devm_clk_get(&pdev->dev, "core"), *bus = devm_clk_get(&pdev->dev, "bus");
	struct regmap *map = syscon_regmap_lookup_by_phandle(pdev->dev.of_node, "acme,ctl");
	unsigned int value = 0;
	bool change = false;

	pr_info("=none %ld\\n", PTR_ERR(devm_clk_get(&pdev->dev, "none")));
	pr_info("=rates %lu %lu\\n", clk_get_rate(core), clk_get_rate(bus));
	pr_info("=unprepared %d, prepared %d %d\\n", clk_enable(core), clk_prepare(core), clk_enable(core));
	clk_disable(core);
	clk_disable(core);
	regmap_write(map, 8, 0xf0);
	regmap_update_bits_base(map, 8, 0xff, 0x0f, &change, false, false);
	pr_info("=change %d, read %d", change, regmap_read(map, 8, &value));
	pr_info("=value %x, odd %d, outside %d\\n", value, regmap_read(map, 9, &value), regmap_read(map, 0x1000, &value));
	pr_info("=no map %ld\\n", PTR_ERR(syscon_regmap_lookup_by_phandle(pdev->dev.of_node, "acme,none")));
	return 0;
}
static const struct of_device_id ids[] = { { .compatible = "acme,unit" }, { } };
static struct platform_driver unit = { .probe = probe,
	.driver = { .name = "acme-unit", .of_match_table = ids, .groups = driver_groups,
		.dev_groups = unit_groups } };
module_platform_driver(unit);
"""


def test_clocks_and_system_registers_come_from_the_tree(run: Run, said: Said) -> None:
    system = run(DRIVER, TREE)
    assert said(system) == [
        "none -2",
        "rates 24000000 0",
        "unprepared -108, prepared 0 0",
        "change 1, read 0",
        "value f, odd -22, outside -22",
        "no map -19",
    ]
    log = [record.text for record in system.kernel.log]
    assert "Enabling unprepared osc" in log
    assert "osc already disabled" in log
    assert system.mmio.peek(0x2000_0008) == 0x0F


def test_a_drivers_groups_are_files_of_its_devices(run: Run) -> None:
    system = run(DRIVER, TREE)
    path = "/sys/devices/platform/10000000.unit/state"
    assert system.fs.read(path) == "10000000.unit\n"


def test_a_driver_has_files_of_its_own(run: Run) -> None:
    system = run(DRIVER, TREE)
    path = "/sys/bus/platform/drivers/acme-unit/word"
    assert system.fs.read(path) == "acme-unit first\n"
    system.fs.write(path, "second")
    assert system.fs.read(path) == "acme-unit second\n"
    with pytest.raises(FsError) as caught:
        system.fs.write(path, "far too long")
    assert caught.value.errno == 28
