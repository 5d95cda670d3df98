"""The EL2 call trace of a panic, and what a failing EL2 init does with and without the option to go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pkvm_emu
from pkvm_emu.hyp.panic import HypPanic

EL2 = """
#include <asm/kvm_pkvm_module.h>
#include <linux/arm-smccc.h>
static const struct pkvm_module_ops *ops;
static noinline u64 innermost(u64 depth)
{
        if (depth == 7)
                BUG();
        return depth + 1;
}
static noinline u64 middle(u64 depth) { return innermost(depth + 1) * 3; }
void crash_hvc(struct user_pt_regs *regs)
{
        ops->putx64(1);
        regs->regs[1] = middle(regs->regs[1]) + 1;
        regs->regs[0] = SMCCC_RET_SUCCESS;
}
int crash_init(const struct pkvm_module_ops *table) { ops = table; return 0; }
"""
EL1 = """
#include <linux/init.h>
#include <linux/module.h>
#include <asm/kvm_pkvm_module.h>
int __kvm_nvhe_crash_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_crash_hvc(struct user_pt_regs *regs);
static int __init crash_load(void)
{
        unsigned long token;
        int ret = pkvm_load_el2_module(__kvm_nvhe_crash_init, &token);

        return ret ? ret : pkvm_register_el2_mod_call(__kvm_nvhe_crash_hvc, token) < 0;
}
module_init(crash_load);
MODULE_LICENSE("GPL");
"""
FAILING = "#include <asm/kvm_pkvm_module.h>\nint crash_init(const struct pkvm_module_ops *t) { return -12; }\n"
FAILING += "void crash_hvc(struct user_pt_regs *regs) { regs->regs[0] = 0; }\n"

Build = Callable[..., Path]


@pytest.mark.parametrize("pauth", [True, False])
def test_the_trace_names_each_caller_with_its_line_down_to_the_host_entry(c_module: Build, pauth: bool) -> None:
    profile = pkvm_emu.MachineProfile(pauth=pauth)
    system = pkvm_emu.boot(modules=[c_module(EL1, EL2, name="crash")], profile=profile)
    assert system.call("crash_hvc", 1).x1 == 10
    with pytest.raises(HypPanic) as panic:
        system.call("crash_hvc", 6)
    names = [system.symbols.describe(address, 2) for address in panic.value.state.frames]
    functions = [name.partition("+")[0] for name in names]
    assert functions[:2] == ["__kvm_nvhe_innermost", "__kvm_nvhe_middle"] or functions[0] == "__kvm_nvhe_middle"
    assert "__kvm_nvhe_crash_hvc" in functions
    assert functions[-1] == "host_exit"
    assert all("el2.c:" in name for name in names if name.startswith("__kvm_nvhe_"))
    assert "EL2 call trace:" in system.dmesg


def test_a_failing_el2_init_panics_as_on_a_device_and_says_how_to_go_on(c_module: Build) -> None:
    with pytest.raises(HypPanic, match="unmap_module_page"):
        pkvm_emu.boot(modules=[c_module(EL1, FAILING, name="crash")])


def test_with_the_option_a_failing_el2_init_fails_the_load_and_the_boot_goes_on(c_module: Build) -> None:
    module = c_module(EL1, FAILING, name="crash")
    system = pkvm_emu.boot(modules=[module], continue_on_init_failure=True)
    assert [(outcome.status, outcome.errno) for outcome in system.boot_report.outcomes] == [("failed", -12)]
    assert system.kernel.deprivileged
    assert not system.is_secure
    assert system.pages.check() == []
