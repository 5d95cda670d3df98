"""Failure injection: single failures, and the sweep over all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pkvm_emu.errors import UsageError
from pkvm_emu.kernel.command_line import CommandLine
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System, boot, choose_generation, read_module, run_boot
from pkvm_emu.testing.injection import Injection, inject, injected
from pkvm_emu.testing.sweep import Sweep, sweep

#: x1 = 0: takes two pages and gives both back when the second cannot be had; 1: forgets the first; 2: uses a pointer unseen.
EL2 = """
static const struct pkvm_module_ops *o;
int hyp_init(const struct pkvm_module_ops *ops) { o = ops; return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	u64 careless = x[1], pfn = x[2];
	unsigned long va = 8;
	int ret, failed;
	x[0] = 0;
	ret = o->host_donate_hyp(pfn, 1, false);
	if (!ret) {
		ret = o->host_donate_hyp(pfn + 1, 1, false);
		if (ret && careless != 1)
			o->hyp_donate_host(pfn, 1);
	}
	if (!ret) {
		failed = o->create_private_mapping(pfn << 12, 4096, KVM_PGTABLE_PROT_R, &va);
		if (!failed || careless == 2)
			x[3] = *(volatile u64 *)va;
		o->hyp_donate_host(pfn, 1);
		o->hyp_donate_host(pfn + 1, 1);
	}
	x[1] = (u64)(long)ret;
}
"""
MODULE = ("injected", EL2)
PFN = 0x48000
EPERM = (1 << 64) - 1


@pytest.mark.parametrize(
    ("text", "injection"),
    [
        ("host_share_hyp=2:EPERM", Injection("host_share_hyp", 2, 1)),
        ("host_share_hyp=1:-EBUSY", Injection("host_share_hyp", 1, 16)),
        ("hyp_alloc=3", Injection("hyp_alloc", 3, 12)),
        ("hyp_alloc=*:NULL", Injection("hyp_alloc", 0, 12)),
    ],
)
def test_an_injection_is_an_op_a_call_and_an_errno(text: str, injection: Injection) -> None:
    assert Injection.parse(text) == injection


@pytest.mark.parametrize("text", ["", "x", "x=", "x=0", "x=-1", "x=1:EWHAT", "X Y=1", "x=1:EPERM:2"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--inject"):
        Injection.parse(text)


def test_the_call_fails_and_the_others_do_not(newest: System) -> None:
    system = newest
    with injected(system, [Injection.parse("host_donate_hyp=2:EPERM")]) as injector:
        assert system.call("hyp_call", 0, PFN).x1 == EPERM
        assert system.pages.at(PFN << 12).owner.name == "HOST"
        assert system.call("hyp_call", 0, PFN).x1 == 0
        assert injector.done == 1
    assert system.call("hyp_call", 0, PFN).x1 == 0


def test_what_is_counted_goes_back_with_a_snapshot(newest: System) -> None:
    with injected(newest, [Injection.parse("host_donate_hyp=1:EPERM")]) as injector:
        before = newest.snapshot()
        for _ in range(3):
            assert newest.call("hyp_call", 0, PFN).x1 == EPERM
            newest.restore(before)
        assert injector.done == 0


@pytest.mark.parametrize("text", ["puts=1", "hyp_free=1", "hyp_va=1", "nothing=1"])
def test_an_op_that_cannot_fail_or_is_not_there_is_refused(newest: System, text: str) -> None:
    with (
        pytest.raises(UsageError, match=r"no op of android16-6\.12 that can fail"),
        injected(newest, [Injection.parse(text)]),
    ):
        pass


def outcomes(c_module: Callable[..., Path], careless: int) -> list[tuple[str, str]]:
    file = read_module(c_module(el2=EL2, name="injected"))

    def make() -> System:
        return System(choose_generation(None, [file]), CommandLine(""), MachineProfile())

    def play(system: System) -> None:
        run_boot(system, [file])
        system.call("hyp_call", careless, PFN)

    return [(str(outcome.injection), outcome.verdict) for outcome in sweep(make, play)]


def test_the_sweep_tells_a_careful_module_from_one_that_forgets_and_one_that_crashes(
    c_module: Callable[..., Path],
) -> None:
    failures = ["host_donate_hyp=1:ENOMEM", "host_donate_hyp=2:ENOMEM", "create_private_mapping=1:ENOMEM"]
    returns = ["hyp_donate_host=1:ENOMEM", "hyp_donate_host=2:ENOMEM"]
    careful = outcomes(c_module, 0)
    assert [name for name, _ in careful] == failures + returns
    assert dict(careful)[failures[1]] == dict(careful)[failures[2]] == "survived"
    assert dict(outcomes(c_module, 1))[failures[1]] == "leak"
    assert dict(outcomes(c_module, 2))[failures[2]] == "crash"
    # Pages that cannot be given back stay, whoever asks.
    assert dict(careful)[returns[0]] == "leak"


def test_the_systems_of_a_sweep_are_as_booted_from_python(c_module: Callable[..., Path]) -> None:
    system = boot(modules=[c_module(el2=EL2, name="injected")])
    assert system.call("hyp_call", 0, PFN).x1 == 0


#: An EL1 half that allocates twice before it registers, and says what it got.
ALLOCATES = """
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
static unsigned long token;
static int __init probe_init(void)
{
	void *first = kmalloc(32, GFP_KERNEL), *second = kmalloc(32, GFP_KERNEL);
	pr_info("first %d second %d\\n", !!first, !!second);
	kfree(first);
	if (!second)
		return -ENOMEM;
	kfree(second);
	return pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);
}
module_init(probe_init);
"""
ADDS_NOTHING = "int hyp_init(const struct pkvm_module_ops *ops) { return 0; }\n"


@pytest.mark.parametrize("generation", ["14", "15", "16"])
def test_an_allocation_of_the_kernel_fails_whatever_its_macro_calls(c_module, generation: str) -> None:
    module = c_module("#include <linux/slab.h>\n" + ALLOCATES, ADDS_NOTHING, name="allocates", generation=generation)
    for number, said in (("1", "first 0 second 1"), ("2", "first 1 second 0"), ("3", "first 1 second 1")):
        system = boot(
            modules=[module], prepare=lambda made, n=number: inject(made, [Injection.parse(f"kernel:kmalloc={n}")])
        )
        assert said in system.dmesg
        assert system.is_secure == (number != "2")


def test_a_hypercall_of_the_hypervisor_fails(c_module) -> None:
    module = c_module("#include <linux/slab.h>\n" + ALLOCATES, ADDS_NOTHING, name="allocates", generation="16")
    made: list[System] = []

    def prepare(system: System) -> None:
        made.append(system)
        inject(system, [Injection.parse("hvc:alloc_module_va=1:ENOMEM")])

    boot(modules=[module], prepare=prepare)
    assert not made[0].is_secure
    assert [outcome.status for outcome in made[0].boot_report.outcomes] == ["failed"]


def test_failures_of_the_kernel_end_with_the_block(c_module) -> None:
    module = c_module("#include <linux/slab.h>\n" + ALLOCATES, ADDS_NOTHING, name="allocates", generation="16")
    system = boot(modules=[module])
    with injected(system, [Injection.parse("hvc:host_share_hyp=*:EPERM")]) as injector:
        number = system.generation.hypercalls["host_share_hyp"]
        assert system.hvc(0xC600_0000 + number, 0x48000).x1 == (1 << 64) - 1
        assert injector.done == 1
    assert system.hvc(0xC600_0000 + number, 0x48000).x1 == 0


@pytest.mark.parametrize("text", ["kernel:no_such_function=1", "hvc:no_such_call=1", "bus:x=1", "kernel:=1"])
def test_names_that_nothing_has_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--inject"):
        inject(boot(), [Injection.parse(text)])


def test_a_sweep_tells_each_outcome_when_it_is_there(c_module: Callable[..., Path]) -> None:
    file = read_module(c_module(el2=EL2, name="injected"))
    made: list[System] = []

    def make() -> System:
        made.append(System(choose_generation(None, [file]), CommandLine(""), MachineProfile()))
        return made[-1]

    sweeping = Sweep(make, lambda system: (run_boot(system, [file]), system.call("hyp_call", 0, PFN)))
    assert len(sweeping) > 1
    assert len(made) == 1
    for number, _outcome in enumerate(sweeping):
        assert len(made) == number + 2
