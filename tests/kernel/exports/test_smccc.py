"""SMCs and HVCs by the kernel's functions, and the version of the convention."""

from __future__ import annotations

import pytest

import pkvm_emu
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System

EL1 = """
#include <linux/arm-smccc.h>
struct quirk { int id; int pad; u64 state; };
typedef void smccc_t(u64, u64, u64, u64, u64, u64, u64, u64, struct arm_smccc_res *, struct quirk *);
extern smccc_t __arm_smccc_smc, __arm_smccc_hvc;
u32 arm_smccc_get_version(void);
int arm_smccc_1_1_get_conduit(void);
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
static unsigned long token;
static int __init probe_init(void)
{
	int ret = pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);
	struct arm_smccc_res res;
	struct quirk quirk = { 1 };

	pr_info("version %x conduit %d\\n", arm_smccc_get_version(), arm_smccc_1_1_get_conduit());
	__arm_smccc_smc(0xC2000001, 1, 2, 3, 4, 5, 6, 7, &res, NULL);
	pr_info("smc %ld %ld %ld %ld\\n", (long)res.a0, (long)res.a1, (long)res.a2, (long)res.a3);
	__arm_smccc_smc(0xC2000001, 1, 2, 3, 4, 5, 6, 7, &res, &quirk);
	pr_info("quirk %ld\\n", (long)quirk.state);
	__arm_smccc_hvc(0xC6007FFF, 1, 2, 3, 0, 0, 0, 0, &res, NULL);
	pr_info("hvc %ld\\n", (long)res.a0);
	return ret;
}
module_init(probe_init);
"""
EL2 = """
static bool answer(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;

	if (x[0] != 0xC2000001)
		return false;
	x[0] = 10 + x[7]; x[1] += 20; x[2] += 20; x[3] += 20; x[6] = 66;
	return true;
}
int hyp_init(const struct pkvm_module_ops *ops) { return ops->register_host_smc_handler(answer); }
"""


@pytest.fixture(params=["14", "15", "16"])
def load(request, c_module):
    def run(el3: str) -> System:
        module = c_module(EL1, EL2, generation=request.param)
        return pkvm_emu.boot(modules=[module], profile=MachineProfile(ram_size=64 << 20), el3=el3)

    return run


def test_an_smc_has_eight_arguments_and_four_results(load) -> None:
    assert "smc 17 21 22 23" in load("bare").dmesg


def test_the_quirk_of_a_firmware_keeps_x6(load) -> None:
    assert "quirk 66" in load("bare").dmesg


def test_an_hvc_that_nobody_answers_is_minus_one(load) -> None:
    assert "hvc -1" in load("bare").dmesg


@pytest.mark.parametrize(("el3", "facts"), [("bare", "version 10000 conduit 0"), ("full", "version 10002 conduit 1")])
def test_version_and_conduit_are_what_the_firmware_offers(load, el3: str, facts: str) -> None:
    system = load(el3)
    assert facts in system.dmesg
    assert not system.hyp.el3.unanswered
