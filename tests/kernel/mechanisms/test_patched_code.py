"""Code that the kernel patches when it loads a module: alternatives at both levels, static keys, checks of types."""

from __future__ import annotations

import pytest

import pkvm_emu
from pkvm_emu.errors import PkvmEmuError
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.kernel.faults import KernelOops
from pkvm_emu.machine.profile import MachineProfile

from .conftest import SMALL
from .test_linking import ADDER, LOADER, boot

#: An alternative of any instructions: original, replacement (both of equal length), capability.
ALTERNATIVE = """
#define ALTERNATIVE(original, replacement, capability) \\
	"661:	" original "\\n662:\\n" \\
	".pushsection .altinstructions, \\"a\\"\\n" \\
	".long 661b - .\\n.long 663f - .\\n.short " capability "\\n.byte 662b - 661b\\n.byte 664f - 663f\\n.popsection\\n" \\
	".subsection 1\\n663:	" replacement "\\n664:\\n.previous\\n"
"""
#: Capability numbers by generation: (KVM_PROTECTED_MODE, LSE).
PROTECTED = {"14": 40, "15": 51, "16": 55}
LSE = {"15": 33, "16": 37}


def number_of(generation: str, name: str) -> int:
    found = pkvm_emu.boot(generation, profile=SMALL).generation.capabilities[name]
    assert found is not None
    return found


@pytest.mark.parametrize("generation", PROTECTED)
def test_the_protected_mode_test_in_init_code_decides_about_the_load(build, generation: str) -> None:
    """Without patching the module takes the other way and never loads its EL2 half."""
    el1 = f"""{ALTERNATIVE}
static int __init probe_init(void)
{{
	u64 is_protected;
	int ret;

	asm volatile(ALTERNATIVE("mov %0, #0", "mov %0, #1", "{PROTECTED[generation]}") : "=r"(is_protected));
	if (!is_protected)
		return -95;
	ret = pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);
	return ret ? ret : pkvm_register_el2_mod_call(__kvm_nvhe_hyp_call, token) < 0;
}}
module_init(probe_init);
"""
    module = build(el1, ADDER, generation)
    assert boot(module).call("hyp_call", 1, 2).x1 == 3
    bare = pkvm_emu.boot(modules=[module], cmdline="kvm-arm.mode=nvhe", profile=SMALL)
    assert "hyp_call" not in [name for loaded in bare.modules.values() for name in loaded.hypercalls]


@pytest.mark.parametrize("generation", LSE)
@pytest.mark.parametrize("lse", [True, False])
def test_atomics_of_el2_code_are_the_cpus_own_where_it_has_them(build, generation: str, lse: bool) -> None:
    el2 = f"""{ALTERNATIVE}
static u64 counter = 40;
int hyp_init(const struct pkvm_module_ops *ops) {{ return 0; }}
void hyp_call(pkvm_handler_regs_t *regs)
{{
	u64 *x = (u64 *)regs, which, status, value;

	asm volatile(".arch_extension lse\\n" ALTERNATIVE(
		"1: ldxr %0, [%3]\\nadd %0, %0, %4\\nstxr %w1, %0, [%3]\\ncbnz %w1, 1b\\nmov %2, #1",
		"ldadd %4, %0, [%3]\\nadd %0, %0, %4\\nmov %2, #2\\nnop\\nnop", "{LSE[generation]}")
		: "=&r"(value), "=&r"(status), "=&r"(which) : "r"(&counter), "r"(x[1]) : "memory");
	x[0] = 0; x[1] = value; x[2] = which; x[3] = counter;
}}
"""
    profile = MachineProfile(ram_size=64 << 20, lse=lse)
    system = pkvm_emu.boot(modules=[build(LOADER, el2, generation)], profile=profile)
    assert system.call("hyp_call", 2)[1:] == (42, 2 if lse else 1, 42)


def test_static_keys_of_5_15_are_branches_where_the_capability_is_there(build) -> None:
    """``cpu_hwcap_keys[KVM_PROTECTED_MODE]`` is true, the one behind it is not."""
    number = number_of("android14-5.15", "KVM_PROTECTED_MODE")
    el1 = f"""
extern char cpu_hwcap_keys[], arm64_const_caps_ready[];
#define KEY(symbol, offset, likely) ({{ __label__ yes, out; bool is; \\
	asm goto("1: nop\\n.pushsection __jump_table, \\"aw\\"\\n.align 3\\n.long 1b - ., %l[yes] - .\\n" \\
		".quad " symbol " + " #offset " + " #likely " - .\\n.popsection" : : : : yes); \\
	is = false; goto out; yes: is = true; out: is; }})
static int __init probe_init(void)
{{
	int ret;

	pr_info("keys %d %d %d\\n", KEY("arm64_const_caps_ready", 0, 0), KEY("cpu_hwcap_keys", {16 * number}, 0),
		KEY("cpu_hwcap_keys", {16 * (number + 1)}, 0));
	ret = pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);
	return ret ? ret : pkvm_register_el2_mod_call(__kvm_nvhe_hyp_call, token) < 0;
}}
module_init(probe_init);
"""
    system = boot(build(el1, ADDER, "android14-5.15"))
    assert "keys 1 1 0" in system.dmesg


# kCFI


@pytest.mark.parametrize("generation", ["15", "16"])
def test_a_handler_of_another_type_is_caught_when_the_hypervisor_calls_it(build, generation: str) -> None:
    el2 = ADDER.replace("return 0;", "return ops->register_host_smc_handler((void *)wrong);", 1)
    el2 = "u64 wrong(u64 a, u64 b, u64 c) { return a + b + c; }\n" + el2
    system = boot(build(LOADER, el2, generation))
    with pytest.raises(HypPanic, match=r"kCFI failure at EL2: .*__kvm_nvhe_wrong"):
        system.smc(0xC200_0001)


@pytest.mark.parametrize("generation", ["15", "16"])
def test_an_op_called_by_a_pointer_of_another_type_is_caught_in_the_module(build, generation: str) -> None:
    el2 = ADDER.replace("return 0;", "o = ops; return 0;", 1).replace(
        "x[0] = 0;", "if (x[1] == 7) ((u64 (*)(u64, u64, char))o->puts)(1, 2, 3); x[0] = 0;"
    )
    system = boot(build(LOADER, "static const struct pkvm_module_ops *o;\n" + el2, generation))
    assert system.call("hyp_call", 1, 2).x1 == 3
    with pytest.raises(HypPanic, match=r"kCFI failure at EL2: __kvm_nvhe_hyp_call.*"):
        system.call("hyp_call", 7)


@pytest.mark.parametrize("generation", ["15", "16"])
def test_a_callback_of_another_type_is_caught_at_el1(build, generation: str) -> None:
    el1 = "static noinline int twice(int n) { return 2 * n; }\nstatic void *volatile held = twice;\n" + LOADER.replace(
        "int ret =", "((void (*)(char *))held)(0);\n\tint ret ="
    )
    with pytest.raises((KernelOops, PkvmEmuError), match=r"CFI"):
        pkvm_emu.boot(modules=[build(el1, ADDER, generation)], profile=SMALL)
