"""The ways in which module code ends a hypervisor, each told from the others."""

from __future__ import annotations

import pytest

from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System, boot

EL2 = """
static const struct pkvm_module_ops *o;
typedef u64 (*wrong_t)(char *, char *);
static int deep(int n) { volatile u64 room[4]; room[0] = n; return n ? deep(n - 1) + room[0] : 0; }
static bool wrong_handler(u64 a) { return a; }
static void again(%(regs)s *regs) { *(volatile u64 *)0x20 = 1; }
int hyp_init(const struct pkvm_module_ops *ops) { o = ops; return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;

	x[0] = 0;
	switch (x[1]) {
	case 0: x[1] = deep(1000); break;
	case 1: asm volatile(".inst 0x00000000"); break;
	case 2: x[1] = (*(wrong_t *)&o->host_share_hyp)(0, 0); break;
	case 3: x[1] = o->register_host_smc_handler((void *)wrong_handler); break;
	case 4: ((void (*)(void))x[2])(); break;
	case 5: o->register_hyp_panic_notifier((void *)again); *(volatile u64 *)0x10 = 1; break;
	}
}
"""
OVERFLOW, UNDEFINED, WRONG_OP_TYPE, WRONG_HANDLER, JUMP, PANIC_IN_NOTIFIER = range(6)


@pytest.fixture
def probe(c_module):
    def run(generation: str = "16", profile: MachineProfile | None = None) -> System:
        regs = "struct kvm_cpu_context" if generation == "14" else "struct user_pt_regs"
        return boot(generation, [c_module(el2=EL2 % {"regs": regs}, generation=generation)], profile=profile)

    return run


def panic_of(system: System, *args: int) -> HypPanic:
    with pytest.raises(HypPanic) as caught:
        system.hvc(128, *args)
    assert f"pkvm_emu: {caught.value}" in system.dmesg
    return caught.value


@pytest.mark.parametrize("generation", ["14", "15", "16"])
@pytest.mark.parametrize("hvhe", [True, False])
def test_endless_recursion_is_a_stack_overflow(probe, generation: str, hvhe: bool) -> None:
    panic = panic_of(probe(generation, MachineProfile(hvhe=hvhe)), OVERFLOW)
    assert panic.state.stack_overflow
    assert str(panic).startswith("EL2 stack overflow: __kvm_nvhe_deep")


@pytest.mark.parametrize("generation", ["14", "15", "16"])
def test_an_undefined_instruction(probe, generation: str) -> None:
    panic = panic_of(probe(generation), UNDEFINED)
    assert panic.state.exception_class == 0
    assert "undefined instruction at __kvm_nvhe_hyp_call" in str(panic)


@pytest.mark.parametrize("generation", ["15", "16"])
def test_an_op_that_is_called_with_another_type(probe, generation: str) -> None:
    panic = panic_of(probe(generation), WRONG_OP_TYPE)
    assert panic.state.is_cfi_failure
    assert "__kvm_nvhe_hyp_call" in str(panic)
    assert "calls ops->host_share_hyp as a function of another type" in str(panic)


def test_android14_does_not_check_types_at_el2(probe) -> None:
    assert probe("14").hvc(128, WRONG_OP_TYPE).is_success


@pytest.mark.parametrize("generation", ["15", "16"])
def test_a_handler_of_another_type_is_found_when_it_is_called(probe, generation: str) -> None:
    system = probe(generation)
    assert system.hvc(128, WRONG_HANDLER)[:2] == (0, 0)
    with pytest.raises(HypPanic, match=r"kCFI failure at EL2: .* calls __kvm_nvhe_wrong_handler") as caught:
        system.smc(0x8200_0001)
    assert caught.value.state.is_cfi_failure


def test_a_jump_into_data_is_told_from_a_bad_access(probe) -> None:
    system = probe("14")
    panic = panic_of(system, JUMP, 0x10)
    assert panic.state.exception_class == 0x21
    assert "which is not executable at EL2" in str(panic)


def test_the_first_of_two_panics_is_reported(probe) -> None:
    panic = panic_of(probe(), PANIC_IN_NOTIFIER)
    assert panic.state.far == 0x10


def test_after_a_restore_the_machine_panics_anew(probe) -> None:
    system = probe()
    snapshot = system.snapshot()
    digest = system.machine.digest()
    for _ in range(2):
        panic_of(system, UNDEFINED)
        system.restore(snapshot)
        assert system.machine.digest() == digest
