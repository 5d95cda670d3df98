"""What ``run`` says about registers and about the IOMMU driver."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pkvm_emu.cli.main import main

HERE = Path(__file__).parents[1]
MODELS = HERE / "devices/model_file.py"
EL2 = """
static unsigned long regs;
int hyp_init(const struct pkvm_module_ops *ops)
{
	return ops->create_private_mapping(0x10000000, 0x1000, PAGE_HYP_DEVICE, &regs);
}
void hyp_call(pkvm_handler_regs_t *ctx)
{
	u64 *x = (u64 *)ctx;
	int i;

	for (i = 0; i < 3; i++)
		*(volatile u32 *)(regs + 0x00) = i;
	x[0] = 0;
	x[1] = *(volatile u32 *)(regs + 0x04);
}
"""
DRIVER = """
#include <nvhe/iommu.h>
static int init(void) { return 0; }
static int alloc_domain(struct kvm_hyp_iommu_domain *d, int type) { return 0; }
static void free_domain(struct kvm_hyp_iommu_domain *d) { }
static struct kvm_hyp_iommu *by_id(pkvm_handle_t id) { return 0; }
struct kvm_iommu_ops table = {
	.init = init, .alloc_domain = alloc_domain, .free_domain = free_domain, .get_iommu_by_id = by_id,
};
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
"""
DRIVER_EL1 = """
#include <asm/kvm_host.h>
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
extern struct kvm_iommu_ops __kvm_nvhe_table;
static unsigned long token;
static int start(void)
{
	struct kvm_hyp_memcache mc = { 0 };

	topup_hyp_memcache(&mc, 1, 0);
	return kvm_iommu_init_hyp((struct kvm_iommu_ops *)pkvm_el2_mod_va(&__kvm_nvhe_table, token), &mc) ?:
		kvm_iommu_alloc_domain(0, 0);
}
static pkvm_handle_t id(struct device_node *np) { return 3; }
static struct kvm_iommu_driver driver = { .init_driver = start, .get_iommu_id_by_of = id };
static int __init probe_init(void)
{
	return pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token) ?: kvm_iommu_register_driver(&driver);
}
module_init(probe_init);
"""
Run = Callable[..., str]


@pytest.fixture
def run(c_module: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> Run:
    ko = str(c_module(el2=EL2))

    def report(*arguments: str) -> str:
        assert main(["run", ko, "--mmio", f"0x10000000:4k={MODELS}:Timer", "--call", "hyp_call", *arguments]) == 0
        return capsys.readouterr().out

    return report


def test_the_summary_counts_by_register(run: Run) -> None:
    printed = run()
    lines = printed[printed.index("\nRegisters\n") :].splitlines()[2:5]
    assert lines[0] == f"  0x10000000:4k={MODELS}:Timer: 1 read, 3 writes, from EL2"
    assert lines[1].startswith("    CONTROL          3 writes, last 0x2 [MODE=0x1 ENABLE=0] by __kvm_nvhe_hyp_call+")
    assert lines[2].startswith("    STATUS           1 read, last 0x1 by __kvm_nvhe_hyp_call+")


def test_the_log_lists_every_access(run: Run) -> None:
    printed = run("--mmio-log")
    lines = [line for line in printed.splitlines() if line.startswith("  EL2 CPU 0 ")]
    assert [line.split()[3] for line in lines] == ["writes", "writes", "writes", "reads"]


def test_the_facts_have_windows_and_accesses(run: Run) -> None:
    facts = json.loads(run("--json"))["mmio"]
    (window,) = facts["windows"]
    assert (window["start"], window["size"], window["model"]) == (0x1000_0000, 0x1000, "Timer")
    assert window["registers"][1] == {"name": "STATUS", "reads": 1, "writes": 0, "last": 1}
    accesses = facts["accesses"]
    assert [one["value"] for one in accesses] == [0, 1, 2, 1]
    assert all(one["place"].startswith("__kvm_nvhe_hyp_call+") and one["line"] > 0 for one in accesses)


def test_a_run_without_devices_says_nothing_about_them(c_module: Callable[..., Path], capsys) -> None:
    assert main(["run", str(c_module())]) == 0
    printed = capsys.readouterr().out
    assert "\nRegisters\n" not in printed
    assert "\nIOMMU\n" not in printed


def test_the_iommu_driver_has_its_section(c_module: Callable[..., Path], capsys) -> None:
    ko = str(c_module(el1=DRIVER_EL1, el2=DRIVER))
    assert main(["run", ko]) == 0
    printed = capsys.readouterr().out
    lines = printed[printed.index("\nIOMMU\n") :].splitlines()[2:5]
    assert lines[0].startswith("  driver: __kvm_nvhe_table+0x0/0xc8 [probe]")
    assert lines[1] == "    callbacks entered: init 1, alloc_domain 1"
    assert lines[2] == "    domain 0: 1 reference"
    main(["run", ko, "--json"])
    (driver,) = json.loads(capsys.readouterr().out)["iommu"]["drivers"]
    assert driver["callbacks"] == {"init": 1, "alloc_domain": 1}
    assert driver["domains"] == [{"id": 0, "references": 1}]


def test_a_model_that_cannot_be_used_is_a_usage_error(c_module: Callable[..., Path], capsys) -> None:
    assert main(["run", str(c_module()), "--mmio", "0x10000000:4k=nothing"]) == 2
    assert "no model 'nothing'" in capsys.readouterr().err


SERIAL = """
static unsigned long regs;
static void out(char c) { *(volatile u32 *)regs = c; }
int hyp_init(const struct pkvm_module_ops *ops)
{
	int ret = ops->create_private_mapping(0x09000000, 0x1000, PAGE_HYP_DEVICE, &regs) ?: ops->register_serial_driver(out);

	if (!ret) {
		ops->puts("the driver is here");
		out('\\x01');
	}
	return ret;
}
void hyp_call(pkvm_handler_regs_t *ctx) { }
"""


def test_what_a_serial_driver_sent_is_shown(c_module: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    ko = str(c_module(el2=SERIAL))
    assert main(["run", ko]) == 0
    printed = capsys.readouterr().out
    assert printed[printed.index("\nUART\n") :].splitlines()[2:5] == ["  the driver is here", "  \\x01", ""]
    assert main(["run", ko, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["uart"] == "the driver is here\n\r\x01"


def test_there_is_no_word_of_a_uart_that_was_not_used(run: Run) -> None:
    assert "UART" not in run()
    assert json.loads(run("--json"))["uart"] == ""
