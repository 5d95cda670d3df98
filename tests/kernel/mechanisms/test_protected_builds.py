"""Builds with protections of the return address and of branch targets, and filters of SMCs."""

from __future__ import annotations

import pytest

import pkvm_emu
from pkvm_emu.errors import PkvmEmuError
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.machine.profile import MachineProfile

from .conftest import GENERATIONS, SMALL
from .test_linking import ADDER, LOADER, boot

each_generation = pytest.mark.parametrize("generation", GENERATIONS)
WITH_BTI = MachineProfile(ram_size=64 << 20, bti=True)
FULL = "-mbranch-protection=pac-ret+leaf+bti"

DEEP_EL1 = """
static noinline int deep(int n) { return n ? deep(n - 1) + 1 : 0; }
""" + LOADER.replace("int ret =", 'pr_info("depth %d\\n", deep(20 + (token & 1)));\n\tint ret =')
DEEP_EL2 = "static noinline u64 deep(u64 n) { return n ? deep(n - 1) + 1 : 0; }\n" + ADDER.replace(
    "x[1] += x[2];", "x[1] = deep(x[1]);"
)


@each_generation
def test_a_build_with_the_shadow_call_stack_returns_through_x18(build, generation: str) -> None:
    module = build(DEEP_EL1, DEEP_EL2, generation, el1_flags="-fsanitize=shadow-call-stack -ffixed-x18")
    text = module.read_bytes()
    assert b"\x5e\x86\x00\xf8" in text, "str x30, [x18], #8"
    system = boot(module)
    assert "depth 20" in system.dmesg
    assert system.call("hyp_call", 30).x1 == 30


def test_a_return_address_that_was_overwritten_does_not_count_with_a_shadow_call_stack(build) -> None:
    """The frame's copy is wrecked, and the function returns all the same."""
    el1 = """
static noinline void smash(void)
{
	void **frame = __builtin_frame_address(0);

	frame[1] = (void *)0x1234;
	asm volatile("" ::: "memory", "x30");
}
""" + LOADER.replace("int ret =", 'smash();\n\tpr_info("still here\\n");\n\tint ret =')
    flags = "-fsanitize=shadow-call-stack -ffixed-x18 -mbranch-protection=none"
    assert "still here" in boot(build(el1, ADDER, el1_flags=flags)).dmesg
    with pytest.raises(PkvmEmuError, match="1234"):
        pkvm_emu.boot(modules=[build(el1, ADDER, el1_flags="-mbranch-protection=none")], profile=SMALL)


@each_generation
def test_a_build_with_bti_and_pac_at_both_levels_runs_on_a_cpu_with_both(build, generation: str) -> None:
    module = build(DEEP_EL1, DEEP_EL2, generation, el1_flags=FULL, el2_flags=FULL)
    for profile in (WITH_BTI, SMALL):
        system = pkvm_emu.boot(modules=[module], profile=profile)
        assert system.boot_report.outcomes[0].status == "loaded"
        assert system.call("hyp_call", 9).x1 == 9


def test_an_indirect_branch_beside_a_landing_pad_is_caught_at_el2(build) -> None:
    el2 = DEEP_EL2.replace(
        "x[0] = 0;", 'if (x[1] == 99) asm volatile("adr x9, 1f; b 2f; 1: nop; 2: blr x9" ::: "x9", "x30"); x[0] = 0;'
    )
    module = build(LOADER, el2, el2_flags=FULL)
    system = pkvm_emu.boot(modules=[module], profile=WITH_BTI)
    assert system.call("hyp_call", 3).x1 == 3
    with pytest.raises(HypPanic, match=r"BTI|branch target"):
        system.call("hyp_call", 99)


def test_a_return_address_that_was_not_signed_here_is_caught_by_pac(build) -> None:
    el2 = DEEP_EL2.replace("x[0] = 0;", "if (x[1] == 99) ((u64 *)__builtin_frame_address(0))[1] ^= 0x1000; x[0] = 0;")
    system = boot(build(LOADER, el2))
    assert system.call("hyp_call", 3).x1 == 3
    with pytest.raises(HypPanic):
        system.call("hyp_call", 99)


# SMCs

FILTER = """
static u64 seen;
static bool filter(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;

	if (x[0] == 0xC2000001) {
		x[0] = 0; x[1] = ++seen;
		return true;
	}
	if (x[0] == 0xC2000002)
		x[1] = 0x77;
	return false;
}
int hyp_init(const struct pkvm_module_ops *ops) { return ops->register_host_smc_handler(filter); }
void hyp_call(pkvm_handler_regs_t *regs) { ((u64 *)regs)[0] = 0; }
"""


@each_generation
def test_a_filter_answers_smcs_or_lets_them_go_on_changed(build, generation: str) -> None:
    system = pkvm_emu.boot(modules=[build(LOADER, FILTER, generation)], profile=SMALL, el3="full")
    system.hyp.el3.serve(lambda x: (5, x[1] + 1) if x[0] == 0xC200_0002 else None)
    assert [system.smc(0xC200_0001)[:2] for _ in range(2)] == [(0, 1), (0, 2)]
    assert system.smc(0xC200_0002, 1)[:2] == (5, 0x78)
    assert system.smc(0x8000_0000).x0 == 0x1_0002
    assert system.smc(0xC200_0003).x0 == (1 << 64) - 1
    assert list(system.hyp.el3.unanswered) == [0xC200_0003]
