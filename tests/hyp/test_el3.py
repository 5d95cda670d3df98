"""The firmware at EL3: what its profiles answer, who is named for what they do not."""

from __future__ import annotations

import json

import pytest

import pkvm_emu
from pkvm_emu.arch import smccc
from pkvm_emu.arch.psci import PsciFunction, psci_id
from pkvm_emu.cli.main import main
from pkvm_emu.errors import UsageError
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System

SMALL = MachineProfile(ram_size=64 << 20)
GENERATIONS = pytest.mark.parametrize("generation", ["14", "15", "16"])
M1 = (1 << 64) - 1
SIP = 0xC200_0834

#: hyp_call(x1): an SMC of EL2's own with id x1 and argument x2.
EL2 = """
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	struct arm_smccc_res res;

	arm_smccc_1_1_smc(x[1], x[2], &res);
	x[0] = 0; x[1] = res.a0; x[2] = res.a1;
}
"""
#: The init function calls __arm_smccc_smc itself.
EL1 = """
#include <linux/arm-smccc.h>
void __arm_smccc_smc(u64, u64, u64, u64, u64, u64, u64, u64, struct arm_smccc_res *, void *);
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_hyp_call(pkvm_handler_regs_t *regs);
static unsigned long token;
static int __init probe_init(void)
{
	struct arm_smccc_res res;
	int ret = pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);

	__arm_smccc_smc(0x82000777, 1, 2, 0, 0, 0, 0, 0, &res, 0);
	pr_info("firmware said %ld\\n", (long)res.a0);
	return ret ? ret : pkvm_register_el2_mod_call(__kvm_nvhe_hyp_call, token) < 0;
}
module_init(probe_init);
"""


def boot(generation: str = "16", el3: str = "full", **more) -> System:
    return pkvm_emu.boot(generation, profile=SMALL, el3=el3, **more)


@GENERATIONS
def test_the_bare_firmware_knows_psci_and_nothing_else(generation: str) -> None:
    system = boot(generation, "bare")
    assert system.smc(psci_id(PsciFunction.VERSION)).x0 == 0x1_0001
    for function in (smccc.SMCCC_VERSION, smccc.STANDARD_TRNG_VERSION, 0xC400_0020, SIP):
        assert system.smc(function).x0 == M1
    assert system.smc(psci_id(PsciFunction.FEATURES), smccc.SMCCC_VERSION).x0 == M1


@GENERATIONS
def test_the_full_firmware_is_found_the_way_kernels_look_for_it(generation: str) -> None:
    system = boot(generation)
    assert system.smc(psci_id(PsciFunction.FEATURES), smccc.SMCCC_VERSION).x0 == 0
    assert system.smc(smccc.SMCCC_VERSION).x0 == 0x1_0002
    assert not system.hyp.el3.unanswered


@pytest.mark.parametrize(
    ("function", "argument", "x0"),
    [
        (smccc.SMCCC_ARCH_FEATURES, smccc.SMCCC_ARCH_SOC_ID, 0),
        (smccc.SMCCC_ARCH_FEATURES, smccc.SMCCC_ARCH_WORKAROUND_1, 1),
        (smccc.SMCCC_ARCH_FEATURES, smccc.SMCCC_ARCH_WORKAROUND_2, M1 - 1),
        (smccc.SMCCC_ARCH_FEATURES, 0x8000_4000, M1),
        (smccc.SMCCC_ARCH_SOC_ID, 1, 0),
        (smccc.SMCCC_ARCH_SOC_ID, 2, M1 - 2),
        (smccc.SMCCC_ARCH_WORKAROUND_1, 5, smccc.SMCCC_ARCH_WORKAROUND_1),
        (smccc.STANDARD_TRNG_VERSION, 0, 0x1_0000),
        (smccc.STANDARD_TRNG_FEATURES, smccc.STANDARD_TRNG_RND64, 0),
        (smccc.STANDARD_TRNG_FEATURES, 0x8400_0054, M1),
        (smccc.STANDARD_TRNG_RND64, 0, M1 - 2),
        (smccc.STANDARD_TRNG_RND64, 193, M1 - 2),
        (smccc.STANDARD_TRNG_RND32, 97, M1 - 2),
    ],
)
def test_the_full_firmware_answers(function: int, argument: int, x0: int) -> None:
    assert boot().smc(function, argument).x0 == x0


def test_random_bits_fill_x3_first_and_are_the_same_in_every_run() -> None:
    system = boot()
    before = system.snapshot()
    few = system.smc(smccc.STANDARD_TRNG_RND64, 70)
    assert (few.x0, few.x1) == (0, 0)
    assert few.x2 < 1 << 6
    assert few.x3 >> 32
    narrow = system.smc(smccc.STANDARD_TRNG_RND32, 96)
    assert narrow.x0 == 0
    assert max(narrow.x1, narrow.x2, narrow.x3) < 1 << 32
    assert system.smc(smccc.STANDARD_TRNG_RND64, 70) != few
    system.restore(before)
    assert system.smc(smccc.STANDARD_TRNG_RND64, 70) == few
    assert boot().smc(smccc.STANDARD_TRNG_RND64, 70) == few


def test_a_call_in_smc32_form_has_32_bit_arguments() -> None:
    system = boot()
    assert system.smc(smccc.SMCCC_ARCH_FEATURES, 0xABCD << 32 | smccc.SMCCC_ARCH_SOC_ID).x0 == 0


def test_the_hint_that_there_is_no_sve_state_does_not_change_the_call() -> None:
    assert boot().smc(smccc.SMCCC_VERSION | smccc.SVE_HINT).x0 == 0x1_0002


def test_what_a_call_does_not_return_stays_as_it_was() -> None:
    registers = boot().hyp.el3.answer((SIP, *range(1, 18)))
    assert registers == (M1,)


def test_handlers_of_the_user_are_asked_before_the_firmware() -> None:
    system = boot()
    system.hyp.el3.serve(lambda x: (7, 8) if x[0] == smccc.SMCCC_VERSION else None)
    assert system.smc(smccc.SMCCC_VERSION)[:2] == (7, 8)
    assert system.smc(smccc.STANDARD_TRNG_VERSION).x0 == 0x1_0000


def test_the_bare_firmware_has_neither_sdei_nor_an_spmc() -> None:
    el3 = boot(el3="bare").hyp.el3
    with pytest.raises(UsageError, match=r"no SDEI.*--el3 full"):
        _ = el3.sdei
    with pytest.raises(UsageError, match=r"no SPMC.*--el3 full"):
        _ = el3.spmc


def test_an_unknown_profile_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'loud'.*bare, full"):
        boot(el3="loud")


# What nobody answers


def test_unanswered_calls_are_counted_and_name_the_code_that_made_the_first(c_module) -> None:
    system = boot(modules=[c_module(EL1, EL2, name="caller")])
    for argument in (5, 6, 7):
        assert system.call("hyp_call", SIP, argument).x1 == M1
    system.smc(0xC300_0001)
    init, own, python = system.hyp.el3.unanswered.values()
    assert (init.function, init.arguments[:2]) == (0x8200_0777, (1, 2))
    assert "el1.c:" in init.caller
    assert init.caller.startswith("init_module+")
    assert (own.function, own.times, own.arguments[0], own.name) == (SIP, 3, 5, "sip 0x834")
    assert "hyp_call" in own.caller
    assert "el2.c:" in own.caller
    assert (python.name, python.caller) == ("oem 0x1", "Python")
    assert str(own).endswith("3 times")


def test_a_snapshot_takes_the_record_back() -> None:
    system = boot()
    before = system.snapshot()
    system.smc(SIP)
    system.restore(before)
    assert not system.hyp.el3.unanswered


def test_the_report_lists_unanswered_calls_in_text_and_json(c_module, capsys) -> None:
    module = str(c_module(EL1, EL2, name="caller"))
    assert main(["run", module, "--call", f"hyp_call:{SIP},9", "--ram", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("  SMCs that reached EL3 and were not answered there:")
    assert lines[at + 1].startswith("    0x82000777 sip 0x777 (SMC32)(0x1, 0x2) from ")
    assert lines[at + 2].startswith("    0xc2000834 sip 0x834(0x9) from __kvm_nvhe_hyp_call+")
    assert main(["run", module, "--ram", "64", "--el3", "full", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["el3"] == "full"
    assert [(smc["name"], smc["count"]) for smc in facts["unanswered_smcs"]] == [("sip 0x777 (SMC32)", 1)]
