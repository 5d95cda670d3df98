"""A module that loads its EL2 half later, from a parameter that is written: before deprivilege it works, and once only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pkvm_emu.kernel.fs.node import FsError
from pkvm_emu.system import boot

EL1 = """
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_hyp_call(pkvm_handler_regs_t *regs);
static unsigned long token;
static int load_set(const char *val, const struct kernel_param *kp)
{
	int ret = pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);
	if (ret)
		return ret;
	ret = pkvm_register_el2_mod_call(__kvm_nvhe_hyp_call, token);
	return ret < 0 ? ret : 0;
}
static const struct kernel_param_ops load_ops = { .set = load_set };
module_param_cb(load, &load_ops, NULL, 0200);
static int __init probe_init(void) { return 0; }
module_init(probe_init);
"""
EL2 = """
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs) { u64 *x = (u64 *)regs; x[0] = 0; x[1] += 1; }
"""
PARAMETER = "/sys/module/late/parameters/load"
GENERATIONS = pytest.mark.parametrize("generation", ["14", "15", "16"])


@GENERATIONS
def test_before_deprivilege_it_loads_and_the_pages_are_not_the_hosts_to_give_again(
    c_module: Callable[..., Path], generation: str
) -> None:
    system = boot(modules=[c_module(EL1, EL2, name="late", generation=generation)], deprivilege=False)
    system.fs.write(PARAMETER, "1")
    assert system.modules["late"].token
    assert system.call("hyp_call", 4).x1 == 5
    with pytest.raises(FsError, match="EPERM"):
        system.fs.write(PARAMETER, "1")
    assert system.call("hyp_call", 5).x1 == 6


@GENERATIONS
def test_after_deprivilege_it_is_too_late(c_module: Callable[..., Path], generation: str) -> None:
    system = boot(modules=[c_module(EL1, EL2, name="late", generation=generation)])
    with pytest.raises(FsError, match="EOPNOTSUPP"):
        system.fs.write(PARAMETER, "1")
    assert not system.modules["late"].token
