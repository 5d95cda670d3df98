"""EL1 exceptions: WARN goes on, BUG and bad accesses end the run, exception tables repair."""

from __future__ import annotations

import re

import pytest

import pkvm_emu
from pkvm_emu.kernel.faults import KernelOops
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System

SMALL = MachineProfile(ram_size=64 << 20)
INIT = """
static volatile unsigned long zero;
%s
static int __init probe_init(void) { %s return 0; }
module_init(probe_init);
"""


@pytest.fixture
def boot(c_module):
    """Boots a module whose init function has the given body."""

    def run(body: str, before: str = "", generation: str = "16") -> System:
        return pkvm_emu.boot(generation, [c_module(INIT % (before, body), None, generation=generation)], "", SMALL)

    return run


def oops(boot, body: str, before: str = "") -> KernelOops:
    with pytest.raises(KernelOops) as error:
        boot(body, before)
    return error.value


@pytest.mark.parametrize("generation", ["14", "15", "16"])
def test_a_warn_is_logged_with_its_place_and_the_code_goes_on(boot, generation: str) -> None:
    system = boot('WARN_ON(zero == 0); pr_info("after\\n");', generation=generation)
    text = system.dmesg
    assert re.search(r"WARNING: CPU: 0 PID: 1 at \S*el1\.c:\d+ ", text)
    assert "[probe]" in text
    assert "------------[ cut here ]------------" in text
    assert text.rstrip().count("probe: after") == 1
    assert "W" in system.kernel.tainted
    assert system.modules["probe"].status == "live"


def test_a_warn_that_does_not_hold_says_nothing(boot) -> None:
    system = boot("WARN_ON(zero != 0);")
    assert "WARNING" not in system.dmesg
    assert "W" not in system.kernel.tainted


def test_a_bug_names_file_and_line(boot) -> None:
    error = oops(boot, "BUG_ON(zero == 0);")
    assert re.match(r"kernel BUG at \S*el1\.c:\d+!, at ", str(error))
    assert error.esr == 0xF200_0800


@pytest.mark.parametrize(
    ("body", "text", "far"),
    [
        ("*(volatile int *)(zero + 8) = 1;", "NULL pointer dereference", 8),
        ("(void)*(volatile int *)(zero + 0xffffffc0deadb000);", "paging request", 0xFFFF_FFC0_DEAD_B000),
        ("*(volatile int *)(unsigned long)probe_text = 1;", "write to read-only memory", None),
        ("((void (*)(void))(unsigned long)data)();", "execute from non-executable memory", None),
    ],
    ids=["NULL", "unmapped", "read-only", "no execute"],
)
def test_a_bad_access_is_an_oops_that_says_what_it_was(boot, body: str, text: str, far: int | None) -> None:
    before = (
        'static unsigned int data[4] = { 0xd65f03c0 };\nstatic noinline void probe_text(void) { asm volatile(""); }\n'
    )
    error = oops(boot, f"data[1] = zero; probe_text(); {body}", before)
    assert f"Unable to handle kernel {text} at virtual address {error.far:016x}" in str(error)
    if far is not None:
        assert error.far == far
    assert error.exit_code == 1


def test_an_undefined_instruction_is_an_oops(boot) -> None:
    error = oops(boot, 'asm volatile(".inst 0");')
    assert str(error).startswith("Internal error: Oops - ")
    assert error.esr >> 26 == 0


def test_the_oops_is_in_the_log_too(boot, c_module) -> None:
    body = "*(volatile int *)(zero + 8) = 1;"
    system = pkvm_emu.boot("16", [], "", SMALL)
    with pytest.raises(KernelOops):
        system.load(c_module(INIT % ("", body), None))
    assert "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008" in system.dmesg
    assert re.search(r"pc : \S*init\S* \[probe\]", system.dmesg)
    assert system.modules["probe"].status == "stopped"


def test_an_exception_table_repairs_a_bad_load(boot) -> None:
    # Type 2 (EX_TYPE_UACCESS_ERR_ZERO on 6.12): data holds the numbers of the registers for -EFAULT and for 0.
    before = """
static noinline long try_load(unsigned long address)
{
	register long error asm("x3") = 0;
	register unsigned long value asm("x4") = 99;
	asm volatile("1: ldr x4, [%2]\\n2:\\n"
		".pushsection __ex_table, \\"a\\"\\n.balign 4\\n"
		".long 1b - .\\n.long 2b - .\\n.short 2\\n.short (3 | 4 << 5)\\n.popsection"
		: "+r"(error), "+r"(value) : "r"(address));
	return error * 1000 + (long)value;
}
static unsigned long good = 7;
"""
    system = boot('pr_info("good %ld bad %ld\\n", try_load((unsigned long)&good), try_load(zero + 8));', before)
    assert "probe: good 7 bad -14000" in system.dmesg


def test_a_call_through_a_pointer_of_another_type_fails_the_kcfi_check(boot) -> None:
    before = "static noinline int takes_long(long a) { return a != 0; }\nstatic void *volatile pointer = takes_long;\n"
    error = oops(boot, "((void (*)(void))pointer)();", before)
    assert str(error).startswith("CFI failure at ")
    assert "takes_long" in str(error)
    assert "expected type: 0x" in str(error)


def test_an_access_from_python_reports_the_fault_and_goes_on() -> None:
    system = pkvm_emu.boot("16", profile=SMALL)
    value, fault = system.kernel.access("host_load64", 0xFFFF_FFC0_DEAD_B000)
    assert fault is not None
    assert (value, fault[0] >> 26, fault[1]) == (2**64 - 14, 0x25, 0xFFFF_FFC0_DEAD_B000)
    assert system.kernel.access("host_load64", system.kernel.memory.linear_va(system.machine.ram.base))[1] is None
    assert not system.kernel.in_host_access
