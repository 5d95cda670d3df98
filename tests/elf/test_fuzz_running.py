"""Modules whose code does the worst: the run ends with one line that says what and where, and never hangs."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest

import pkvm_emu
from pkvm_emu.errors import EmulatorError, PkvmEmuError
from pkvm_emu.machine.profile import MachineProfile

SMALL = MachineProfile(ram_size=64 << 20)
SECONDS = 20
BUDGET = 2_000_000

#: What runs is chosen by a parameter, so that one module does for all cases of a level.
EL1_CASES = {
    "jump to NULL": "((void (*)(void))0)();",
    "jump to an odd address": "((void (*)(void))((u64)probe_init + 2))();",
    "jump to data": "((void (*)(void))room)();",
    "jump to user space": "((void (*)(void))0x400000)();",
    "jump to a non-canonical address": "((void (*)(void))0x0123456789abcdef)();",
    "jump to the end of the address space": "((void (*)(void))0xfffffffffffffffc)();",
    "endless recursion": "recurse(1);",
    "endless loop": 'for (;;) asm volatile("" ::: "memory");',
    "wait for nothing": 'asm volatile("wfi; wfi; wfi");for (;;) asm volatile("wfi");',
    "write over its own code": "*(volatile u32 *)probe_init = 0;",
    "write over constants": "*(volatile char *)text = 1;",
    "write over the vectors": 'u64 v; asm("mrs %0, vbar_el1" : "=r"(v)); *(volatile u64 *)v = 0;',
    "stack pointer 0": 'asm volatile("mov sp, %0; str xzr, [sp, #-16]!" :: "r"(0ul));',
    "stack pointer misaligned": 'asm volatile("mov x9, sp; sub x9, x9, #8; mov sp, x9; str xzr, [sp]" ::: "x9");',
    "return address lost": 'asm volatile("mov x30, #0x1234; ret");',
    "frame overwritten": "memset(__builtin_frame_address(0), 0x41, 256);",
    "undefined instruction": 'asm volatile(".inst 0");',
    "vectors elsewhere": 'asm volatile("msr vbar_el1, %0; isb; .inst 0" :: "r"(0x1000ul));',
    "translation off": 'asm volatile("mrs x9, sctlr_el1; bic x9, x9, #1; msr sctlr_el1, x9; isb; ldr x9, [x9]" ::: "x9");',
    "translation table 0": 'asm volatile("msr ttbr1_el1, xzr; isb; tlbi vmalle1; dsb sy; isb; ldr x9, [%0]" :: "r"(room) : "x9");',
    "task pointer 0": 'asm volatile("msr sp_el0, xzr"); pr_info("%s\\n", text); recurse(3);',
    "exception level entered by hand": 'asm volatile("msr spsr_el1, %0; msr elr_el1, %1; eret" :: "r"(0x3c9ul), "r"(0x10ul));',
    "page of the hypervisor": "*(volatile u64 *)hyp_page();",
}
EL2_CASES = {
    "jump to NULL": "((void (*)(void))0)();",
    "jump to an odd address": "((void (*)(void))((u64)hyp_call + 2))();",
    "jump to data": "((void (*)(void))room)();",
    "jump to an EL1 address": "((void (*)(void))0xffffffc080000000)();",
    "endless recursion": "recurse(1);",
    "endless loop": 'for (;;) asm volatile("" ::: "memory");',
    "wait for nothing": 'for (;;) asm volatile("wfi");',
    "write over its own code": "*(volatile u32 *)hyp_call = 0;",
    "stack pointer 0": 'asm volatile("mov sp, %0; str xzr, [sp, #-16]!" :: "r"(0ul));',
    "stack pointer in the guard": 'asm volatile("mov x9, sp; and x9, x9, #~0x1fff; mov sp, x9; str xzr, [sp, #-16]!" ::: "x9");',
    "return address lost": 'asm volatile("mov x30, #0x1234; ret");',
    "frame overwritten": "for (int i = 0; i < 64; i++) ((volatile u64 *)__builtin_frame_address(0))[i] = 0x4141414141414141;",
    "stack wiped upwards": "for (volatile u64 *p = __builtin_frame_address(0); ; p++) *p = 0;",
    "undefined instruction": 'asm volatile(".inst 0");',
    "vectors elsewhere": 'asm volatile("msr vbar_el2, %0; isb; .inst 0" :: "r"(0x1000ul));',
    "translation off": 'asm volatile("mrs x9, sctlr_el2; bic x9, x9, #1; msr sctlr_el2, x9; isb; ldr x9, [x9]" ::: "x9");',
    "translation table 0": 'asm volatile("msr ttbr0_el2, xzr; isb; tlbi alle2; dsb sy; isb; ldr x9, [%0]" :: "r"(room) : "x9");',
    "context pointer 0": 'asm volatile("msr tpidr_el2, xzr");',
    "configuration 0": 'asm volatile("msr hcr_el2, xzr; isb");',
    "exception return into nothing": 'asm volatile("msr elr_el2, %0; msr spsr_el2, %1; eret" :: "r"(0x1230ul), "r"(0x3c5ul));',
    "exception return to a bad state": 'asm volatile("msr elr_el2, %0; msr spsr_el2, %1; eret" :: "r"(0x1230ul), "r"(0x3cful));',
    "hypercall at EL2": 'asm volatile("hvc #0");',
    "service at EL2": 'asm volatile("hvc #0x8001; hvc #0xffff");',
    "debug exception": 'asm volatile("brk #0x1; hlt #1");',
    "memory without RAM": "unsigned long va; o->create_private_mapping(0x4000000000, 4096, 6, &va); *(volatile u64 *)va = 1;",
    "table of ops overwritten": "*(volatile u64 *)o = 0;",
}

EL1 = """
#include <linux/moduleparam.h>
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_hyp_call(pkvm_handler_regs_t *regs);
static unsigned long token;
static int number, number2;
module_param(number, int, 0);
extern int __kvm_nvhe_chosen;
static u64 room[64];
static const char text[] = "text";
static int __init probe_init(void);
static u64 hyp_page(void) { return (u64)&__kvm_nvhe_chosen; }
static noinline int recurse(int n) { volatile char frame[48]; frame[n & 31] = n; return recurse(n + 1) + frame[3]; }
static int __init probe_init(void)
{
	int ret;

	__kvm_nvhe_chosen = number2;
	ret = pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);
	if (ret)
		return ret;
	switch (number) {
%s
	}
	return 0;
}
module_init(probe_init);
module_param(number2, int, 0);
"""
EL2 = """
static const struct pkvm_module_ops *o;
int chosen = 1;
static u64 room[64];
void hyp_call(pkvm_handler_regs_t *regs) { room[0]++; }
static noinline int recurse(int n) { volatile char f[48]; f[n & 31] = n; return recurse(n + 1) + f[3]; }
int hyp_init(const struct pkvm_module_ops *ops)
{
	o = ops;
	switch (chosen) {
%s
	}
	return 0;
}
"""


def _cases(bodies: dict[str, str]) -> str:
    return "\n".join(f"\tcase {number}: {{ {body} break; }}" for number, body in enumerate(bodies.values(), 1000))


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    def hang(_signal: int, _frame: Any) -> None:
        raise AssertionError(f"the run did not end within {SECONDS} s")

    old = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)


@pytest.fixture(scope="module", params=["14", "16"])
def machine(request, c_module) -> tuple[pkvm_emu.System, Any, Any]:
    module = c_module(EL1 % _cases(EL1_CASES), EL2 % _cases(EL2_CASES), generation=request.param)
    system = pkvm_emu.boot(request.param, profile=SMALL, deprivilege=False)
    system.machine.core.instruction_budget = BUDGET
    return system, module, system.snapshot()


def _run(machine: tuple[pkvm_emu.System, Any, Any], parameter: str, value: int) -> str:
    """The line with which loading the module ended, or what it came to."""
    system, module, fresh = machine
    system.restore(fresh)
    found: PkvmEmuError | None = None
    try:
        system.load(module, [(parameter, str(value))])
        system.kernel.deprivilege()
    except PkvmEmuError as error:
        found = error
    if found is None:
        return "it came to an end"
    assert not isinstance(found, EmulatorError), found
    text = str(found)
    assert text.isprintable()
    assert len(text) < 1000
    return text


#: These harm nobody who is still running, or are undone on the way back.
HARMLESS = {"page of the hypervisor", "hypercall at EL2", "wait for nothing"}


@pytest.mark.parametrize("case", EL1_CASES)
def test_code_that_runs_wild_at_el1_ends_with_a_line(machine, case: str) -> None:
    text = _run(machine, "number", 1000 + list(EL1_CASES).index(case))
    assert case in HARMLESS or text != "it came to an end"


@pytest.mark.parametrize(
    ("parameter", "cases", "case", "words"),
    [
        ("number", EL1_CASES, "write over its own code", "write to read-only memory.*init_module"),
        ("number", EL1_CASES, "endless loop", "budget of .* instructions is spent at init_module.*el1.c"),
        ("number", EL1_CASES, "endless recursion", "paging request.*recurse"),
        ("number2", EL2_CASES, "endless recursion", "EL2 stack overflow: __kvm_nvhe_recurse"),
        ("number2", EL2_CASES, "stack wiped upwards", "hyp_init.*which EL2 does not map"),
        ("number2", EL2_CASES, "write over its own code", "hyp_init.*el2.c.*without that permission"),
        ("number2", EL2_CASES, "memory without RAM", "hyp_init.*(without RAM|physical)"),
    ],
)
def test_the_line_says_what_and_where(machine, parameter: str, cases: dict[str, str], case: str, words: str) -> None:
    assert re.search(words, _run(machine, parameter, 1000 + list(cases).index(case)))


@pytest.mark.parametrize("case", EL2_CASES)
def test_code_that_runs_wild_at_el2_ends_with_a_line(machine, case: str) -> None:
    text = _run(machine, "number2", 1000 + list(EL2_CASES).index(case))
    assert case in HARMLESS or text != "it came to an end"


def test_the_module_does_no_harm_unasked(machine) -> None:
    assert _run(machine, "number", 0) == "it came to an end"


def test_a_restored_system_is_none_the_worse_for_it(machine) -> None:
    system, _, fresh = machine
    for level, cases in (("number", EL1_CASES), ("number2", EL2_CASES)):
        for number in range(1000, 1000 + len(cases), 5):
            _run(machine, level, number)
    assert _run(machine, "number", 0) == "it came to an end"
    system.restore(fresh)
