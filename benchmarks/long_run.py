"""What the benchmarks of the debugger run: ten million instructions at EL1 and EL2, with hypercalls and ops in between."""

from __future__ import annotations

from pathlib import Path

from common import module_of

from pkvm_emu.boot_flow import run_plan
from pkvm_emu.boot_plan import plan_boot
from pkvm_emu.debug.debugger import Debugger
from pkvm_emu.debug.flow import Act, Flow
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System, choose_generation, choose_profile, read_module

#: Calls and rounds of about ten million instructions: few hypercalls with much between them, and many.
FEW, MANY = (220, 3050), (15_000, 30)

_EL1 = """
#include <linux/init.h>
#include <linux/module.h>
#include <asm/kvm_pkvm_module.h>
int __kvm_nvhe_long_run_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_long_run_hvc(struct user_pt_regs *regs);
static unsigned long token;
static int number;
u64 long_run_table[512];
noinline u64 long_run_el1(u64 seed, u64 rounds)
{
	u64 i;
	for (i = 0; i < rounds; i++) {
		seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
		long_run_table[seed >> 55] ^= seed;
	}
	return seed;
}
u64 long_run(u64 calls, u64 rounds)
{
	u64 seed = 1, i;
	for (i = 0; i < calls; i++) {
		seed = long_run_el1(seed, rounds);
		seed ^= pkvm_el2_mod_call(number, seed, rounds);
	}
	return seed;
}
static int __init long_run_load(void)
{
	int ret = pkvm_load_el2_module(__kvm_nvhe_long_run_init, &token);
	if (ret)
		return ret;
	number = pkvm_register_el2_mod_call(__kvm_nvhe_long_run_hvc, token);
	return number < 0 ? number : 0;
}
module_init(long_run_load);
MODULE_LICENSE("GPL");
"""
_EL2 = """
#include <asm/kvm_pkvm_module.h>
static const struct pkvm_module_ops *hyp_ops;
u64 long_run_hyp_table[512];
u64 long_run_last;
int long_run_init(const struct pkvm_module_ops *ops) { hyp_ops = ops; return 0; }
static noinline u64 long_run_el2(u64 seed, u64 rounds)
{
	u64 i;
	for (i = 0; i < rounds; i++) {
		seed = seed * 2862933555777941757ULL + 3037000493ULL;
		long_run_hyp_table[seed >> 55] += seed;
	}
	return seed;
}
void long_run_hvc(struct user_pt_regs *regs)
{
	u64 seed = long_run_el2(regs->regs[1], regs->regs[2]);
	long_run_last = hyp_ops->hyp_pa(&long_run_last) ^ seed;
	regs->regs[0] = 0;
	regs->regs[1] = seed;
}
"""


def build() -> Path:
    """The module."""
    return module_of("long_run", _EL1, _EL2)


def debugger_of(path: Path, *sizes: tuple[int, int]) -> Debugger:
    """A debugger whose flow boots with the module and then runs the program once for each of ``sizes``."""
    file = read_module(path)
    generation = choose_generation(None, [file])
    plan = plan_boot(generation, [file], "")
    system = System(plan.generation, plan.command_line, choose_profile(MachineProfile(), [file]))

    def work(size: tuple[int, int]) -> str:
        va = system.modules["long_run"].symbol("long_run")
        assert va is not None
        return f"{system.kernel.call(va, *size):#x}"

    acts = [Act("boot", lambda: run_plan(system, plan))]
    acts += [Act(f"long_run{size}", lambda size=size: work(size)) for size in sizes]  # type: ignore[misc]
    debugger = Debugger(system, Flow(acts))
    debugger.control.library_state = None
    return debugger
