"""PSCI through the hypervisor's relay: what the host gets, what a module's notifier sees, what a CPU is when it comes back."""

from __future__ import annotations

from typing import Any

import pytest

import pkvm_emu
from pkvm_emu.arch.psci import AffinityState, PsciFunction, PsciReturn, psci_id
from pkvm_emu.errors import ModuleError
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.kernel.smp import Smp, errno_of
from pkvm_emu.machine.power import Entry, PoweredOff, PowerState
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System

GENERATIONS = pytest.mark.parametrize("generation", ["14", "15", "16"])
SMALL = MachineProfile(ram_size=64 << 20, cpus=3)
POWER_DOWN = 1 << 16
HCR_VM, HCR_TACR = 1, 1 << 21
MASK64 = (1 << 64) - 1
SUSPEND, SYSTEM_SUSPEND, ENTRY = 0, 1, 2
CPU_ON = psci_id(PsciFunction.CPU_ON, smc64=True)
CPU_SUSPEND = psci_id(PsciFunction.CPU_SUSPEND, smc64=True)
AFFINITY_INFO = psci_id(PsciFunction.AFFINITY_INFO, smc64=True)
FEATURES = psci_id(PsciFunction.FEATURES)

#: hyp_call(1, n): entry n of the notifier's log: event, regs, regs[0], HCR_EL2. (2, set, clear): update_hcr_el2. (3): counts.
#: (4): panic in the notifier from now on.
EL2 = """
static const struct pkvm_module_ops *o;
static u64 log[64][4], logged, panics, smcs;
static void notifier(enum pkvm_psci_notification event, pkvm_handler_regs_t *regs)
{
	u64 hcr;

	asm volatile("mrs %0, hcr_el2" : "=r"(hcr));
	if (panics)
		asm volatile("brk #0x800");
	if (logged < 64) {
		log[logged][0] = event;
		log[logged][1] = (u64)regs;
		log[logged][2] = *(u64 *)regs;
		log[logged][3] = hcr;
		logged++;
	}
}
static bool smc_handler(pkvm_handler_regs_t *regs) { smcs++; return false; }
int hyp_init(const struct pkvm_module_ops *ops)
{
	int ret = ops->register_psci_notifier(notifier);

	o = ops;
	return ret ? ret : ops->register_host_smc_handler(smc_handler);
}
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs, *entry;

	x[0] = 0;
	switch (x[1]) {
	case 1:
		entry = log[x[2] & 63];
		x[1] = entry[0]; x[2] = entry[1]; x[3] = entry[2]; x[4] = entry[3];
		break;
	case 2: o->update_hcr_el2(x[2], x[3]); break;
	case 3: x[1] = logged; x[2] = smcs; logged = 0; break;
	case 4: panics = 1; break;
	}
}
"""


@pytest.fixture
def boot(c_module) -> Any:
    def booted(generation: str = "16", profile: MachineProfile = SMALL, deprivilege: bool = True) -> System:
        return pkvm_emu.boot(
            modules=[c_module(el2=EL2, generation=generation)], profile=profile, deprivilege=deprivilege
        )

    return booted


def seen(system: System) -> list[tuple[int, int, int]]:
    """What the notifier saw since the last time: event, CPU (by its host context), x0 of the host."""
    number = next(iter(system.modules["probe"].hypercalls.values()))
    count = system.hvc(number, 3).x1
    contexts = {system.hyp.cpu_memory(cpu.index).context_va: cpu.index for cpu in system.machine.cpus}
    entries = [system.kernel.hvc(0xC600_0000 | number, 1, index) for index in range(count)]
    return [(entry[1] & 0xFFFF_FFFF, contexts[entry[2]], entry[3]) for entry in entries]


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def psci(system: System, function: int, *args: int) -> int:
    """x0 of a PSCI call, signed; x1 to x3 have to be 0."""
    answer = system.smc(function, *args)
    assert answer[1:] == (0, 0, 0)
    return signed(answer.x0)


# The notifier


@GENERATIONS
@pytest.mark.parametrize("deprivilege", [True, False])
def test_off_and_on_again_is_one_cpu_entry_and_nothing_for_the_off(boot, generation: str, deprivilege: bool) -> None:
    system = boot(generation, deprivilege=deprivilege)
    assert seen(system) == []
    assert system.kernel.cpu_down(1) == 0
    assert seen(system) == []
    assert system.kernel.cpu_up(1) == 0
    assert seen(system) == [(ENTRY, 1, 0)]


@GENERATIONS
def test_suspend_is_told_before_it_with_the_call_and_after_it_with_the_context_id(boot, generation: str) -> None:
    system = boot(generation)
    system.cpu(2).suspend(context_id=0x1234)
    assert system.cpu(2).state is PowerState.SUSPENDED
    assert seen(system) == [(SUSPEND, 2, CPU_SUSPEND)]
    system.cpu(2).resume()
    assert seen(system) == [(ENTRY, 2, 0x1234)]
    # A standby comes back behind the call, as no entry.
    with system.on_cpu(2):
        assert psci(system, CPU_SUSPEND, 0, 0, 0) == 0
    assert seen(system) == [(SUSPEND, 2, CPU_SUSPEND)]


def test_the_system_sleeps_only_on_its_last_cpu(boot) -> None:
    system = boot()
    smp = system.kernel.part(Smp)
    assert smp.suspend_system() == PsciReturn.DENIED
    assert seen(system) == [(SYSTEM_SUSPEND, 0, psci_id(PsciFunction.SYSTEM_SUSPEND, smc64=True))]
    assert (system.kernel.cpu_down(1), system.kernel.cpu_down(2)) == (0, 0)
    assert smp.suspend_system(context_id=77) is None
    with pytest.raises(ModuleError, match="CPU 0 is suspended and does not run until it is resumed"):
        system.hvc(1)
    smp.resume(0)
    assert seen(system) == [(SYSTEM_SUSPEND, 0, psci_id(PsciFunction.SYSTEM_SUSPEND, smc64=True)), (ENTRY, 0, 77)]
    assert (system.kernel.cpu_up(1), system.kernel.cpu_up(2)) == (0, 0)


def test_psci_calls_do_not_reach_the_smc_handlers_of_modules(boot) -> None:
    system = boot()
    system.kernel.cpu_down(1)
    system.kernel.cpu_up(1)
    system.smc(0x8400_001F)
    number = system.modules["probe"].hypercalls["hyp_call"]
    assert system.hvc(number, 3).x2 == 0
    system.smc(0x8300_0001)
    assert system.hvc(number, 3).x2 == 1


@pytest.mark.parametrize("generation", ["15", "16"])
def test_a_notifier_of_another_type_is_a_kcfi_failure_on_the_cpu_that_enters(c_module, generation: str) -> None:
    wrong = """
static int wrong(int x) { return x; }
int hyp_init(const struct pkvm_module_ops *ops) { return ops->register_psci_notifier((void *)wrong); }
void hyp_call(pkvm_handler_regs_t *regs) { *(u64 *)regs = 0; }
"""
    module = c_module(el2=wrong, generation=generation)
    system = pkvm_emu.boot(modules=[module], profile=SMALL)
    system.kernel.cpu_down(1)
    with pytest.raises(HypPanic, match=r"kCFI failure at EL2 on CPU 1: .*calls __kvm_nvhe_wrong.*of another type"):
        system.kernel.cpu_up(1)


# Answers


def test_cpu_on_refuses_who_is_unknown_and_who_is_on(boot) -> None:
    system = boot()
    entry = system.kernel.part(Smp).entry_pa
    assert psci(system, CPU_ON, 9, entry, 0) == PsciReturn.INVALID_PARAMS
    # An affinity with bits outside of the fields is no CPU; MPIDR_EL1 as it is read has one.
    assert psci(system, CPU_ON, system.machine.cpus[1].mpidr, entry, 0) == PsciReturn.INVALID_PARAMS
    assert psci(system, CPU_ON, 1, entry, 0) == PsciReturn.ALREADY_ON
    assert psci(system, CPU_ON, 0, entry, 0) == PsciReturn.ALREADY_ON
    assert system.hyp.psci.starting == {}
    system.kernel.cpu_down(1)
    assert psci(system, AFFINITY_INFO, 1, 0) == AffinityState.OFF
    assert psci(system, CPU_ON, 1, entry, 5) == PsciReturn.SUCCESS
    assert psci(system, AFFINITY_INFO, 1, 0) == AffinityState.ON
    assert psci(system, AFFINITY_INFO, 7, 0) == PsciReturn.INVALID_PARAMS
    assert system.cpu(1).online


def test_a_cpu_on_the_way_is_pending_at_el3_and_already_on_for_the_relay(boot) -> None:
    system = boot()
    system.kernel.cpu_down(2)
    hyp, power = system.hyp, system.machine.power
    power.turn_on(2, Entry(hyp.data_pa("cpu_entry"), hyp.cpu_memory(2).context_pa))
    hyp.psci.starting[2] = (system.kernel.part(Smp).entry_pa, 0)
    answer = hyp.el3.psci.answer
    assert answer(CPU_ON, (CPU_ON, 2, hyp.data_pa("cpu_entry"), 0)) == PsciReturn.ON_PENDING
    assert answer(AFFINITY_INFO, (AFFINITY_INFO, 2, 0)) == AffinityState.ON_PENDING
    hyp.host_context[1] = 2
    assert hyp.psci.relay(CPU_ON, hyp.host_context) == 0
    assert signed(hyp.host_context[0]) == PsciReturn.ALREADY_ON


@pytest.mark.parametrize(
    "function",
    [
        psci_id(PsciFunction.CPU_ON),
        psci_id(PsciFunction.CPU_SUSPEND),
        psci_id(PsciFunction.AFFINITY_INFO),
        psci_id(PsciFunction.SYSTEM_SUSPEND),
        psci_id(PsciFunction.MEM_PROTECT),
        psci_id(PsciFunction.CPU_OFF, smc64=True),
        0x8400_001F,
        0xC400_001F,
    ],
    ids=hex,
)
def test_what_the_relay_does_not_know_ends_at_el2(boot, function: int) -> None:
    system = boot()
    before = dict(system.machine.power.states)
    assert psci(system, function, 1, 2, 3) == PsciReturn.NOT_SUPPORTED
    assert system.machine.power.states == before
    assert list(system.hyp.el3.unanswered) == []


def test_version_and_features_are_those_of_el3(boot) -> None:
    system = boot()
    assert psci(system, psci_id(PsciFunction.VERSION)) == 0x1_0001
    for known in (CPU_ON, CPU_SUSPEND, psci_id(PsciFunction.CPU_OFF), psci_id(PsciFunction.MEM_PROTECT)):
        assert psci(system, FEATURES, known) == 0, hex(known)
    for unknown in (psci_id(PsciFunction.CPU_FREEZE), 0x8400_001F, 0x8300_0000):
        assert psci(system, FEATURES, unknown) == PsciReturn.NOT_SUPPORTED, hex(unknown)
    assert psci(system, psci_id(PsciFunction.MIGRATE_INFO_TYPE)) == 2


@pytest.mark.parametrize(
    ("function", "args", "kind"),
    [
        (psci_id(PsciFunction.SYSTEM_OFF), (), "off"),
        (psci_id(PsciFunction.SYSTEM_RESET), (), "reset"),
        (psci_id(PsciFunction.SYSTEM_RESET2, smc64=True), (0, 0), "reset"),
    ],
    ids=["off", "reset", "reset2"],
)
def test_the_machine_ends_and_a_snapshot_brings_it_back(boot, function: int, args: tuple[int, ...], kind: str) -> None:
    system = boot()
    snapshot, digest = system.snapshot(), system.machine.digest()
    with system.on_cpu(1), pytest.raises(PoweredOff, match=r"PSCI SYSTEM_\w+ on CPU 1 ") as caught:
        system.smc(function, *args)
    assert caught.value.kind == kind
    with pytest.raises(PoweredOff, match="does not run since PSCI"):
        system.hvc(1)
    system.restore(snapshot)
    assert system.machine.digest() == digest
    assert system.hvc(1).x0 == MASK64


def test_a_warm_reset_of_protected_memory_is_a_cold_one(boot) -> None:
    system = boot()
    reset2 = psci_id(PsciFunction.SYSTEM_RESET2, smc64=True)
    assert psci(system, reset2, 5, 0) == PsciReturn.INVALID_PARAMS
    snapshot = system.snapshot()
    with pytest.raises(PoweredOff, match="SYSTEM_RESET2"):
        system.smc(reset2, 0, 0)
    system.restore(snapshot)
    system.create_vm(protected=True)
    with pytest.raises(PoweredOff, match=r"SYSTEM_RESET on"):
        system.smc(reset2, 0, 0)


def test_el3_remembers_mem_protect(boot) -> None:
    el3 = boot().hyp.el3
    call = psci_id(PsciFunction.MEM_PROTECT)
    assert [el3.answer((call, wanted, 0, 0)) for wanted in (1, 0, 0)] == [(0,), (1,), (0,)]


def test_psci_results_become_errnos_as_in_the_kernel() -> None:
    assert [errno_of(code & MASK64) for code in (0, -1, -2, -3, -4, -9)] == [0, -95, -22, -1, -22, -22]


# What a CPU is when it comes back


@GENERATIONS
@pytest.mark.parametrize("profile", ["", "nohvhe", "nopauth"])
def test_a_cpu_comes_back_with_its_el2_registers_and_its_stage2(boot, generation: str, profile: str) -> None:
    machine = MachineProfile.parse(profile)
    system = boot(generation, MachineProfile(hvhe=machine.hvhe, pauth=machine.pauth, ram_size=64 << 20, cpus=2))
    names = (
        "HCR_EL2",
        "VTTBR_EL2",
        "VTCR_EL2",
        "TTBR0_EL2",
        "TCR_EL2",
        "SCTLR_EL2",
        "MAIR_EL2",
        "CPTR_EL2",
        "TPIDR_EL2",
    )
    names += ("VMPIDR_EL2", "SCTLR_EL1", "TTBR0_EL1", "TTBR1_EL1", "TCR_EL1", "MAIR_EL1", "TPIDR_EL1", "SP_EL0")
    engine = system.machine.engine

    def registers() -> tuple[int, ...]:
        with system.on_cpu(1):
            values = [engine.read("sp_el2"), engine.read("vbar_el2"), engine.read("vbar_el1"), engine.read("x18")]
            return (*values, *[engine.read_sysreg(name) for name in names])

    before = registers()
    assert before[4] & HCR_VM
    ways = (
        (system.kernel.cpu_down, system.kernel.cpu_up),
        (lambda index: system.cpu(index).suspend(), lambda index: system.cpu(index).resume()),
    )
    for leave, back in ways:
        leave(1)
        back(1)
        assert registers() == before
        with system.on_cpu(1):
            assert system.hvc(next(iter(system.modules["probe"].hypercalls.values())), 3).x0 == 0
            assert system.host.read(system.hyp.data_pa("hcall_table")).fault.kind == "injected"


@GENERATIONS
def test_hcr_is_per_cpu_and_survives_off_and_on(boot, generation: str) -> None:
    system = boot(generation)
    number = system.modules["probe"].hypercalls["hyp_call"]
    with system.on_cpu(1):
        system.hvc(number, 2, HCR_TACR, 0)
    hcr = [system.hyp.hcr[index] for index in range(3)]
    assert [bool(value & HCR_TACR) for value in hcr] == [False, True, False]
    for index in (1, 2):
        system.kernel.cpu_down(index)
        system.kernel.cpu_up(index)
        with system.on_cpu(index):
            assert system.machine.engine.read_sysreg("HCR_EL2") == hcr[index]
    # The notifier saw it already: EL2 is set up before it runs.
    count = system.hvc(number, 3).x1
    log = [system.kernel.hvc(0xC600_0000 | number, 1, index)[4] for index in range(count)]
    assert log == [hcr[1], hcr[2]]


def test_hfgwtr_is_kept_for_each_cpu(boot) -> None:
    profile = MachineProfile(ram_size=64 << 20, cpus=2, fgt=True)
    system = boot(profile=profile)
    assert system.hyp.hfgwtr == {0: 3 << 54, 1: 3 << 54}
    system.hyp.hfgwtr[1] = 1 << 55
    system.kernel.cpu_down(1)
    system.kernel.cpu_up(1)
    assert system.hyp.hfgwtr == {0: 3 << 54, 1: 1 << 55}


def test_a_cpu_that_was_off_at_deprivilege_comes_back_without_stage2(boot) -> None:
    # Only CPUs that are online then are finalised; the boot brings all of them up before.
    system = boot(deprivilege=False)
    system.cpu(1).online = False
    system.kernel.deprivilege()
    system.cpu(1).online = True
    assert [bool(system.hyp.hcr[index] & HCR_VM) for index in range(3)] == [True, False, True]


# Panics


def test_a_panic_in_the_notifier_of_a_secondary_cpu_names_the_cpu(boot) -> None:
    system = boot()
    number = system.modules["probe"].hypercalls["hyp_call"]
    system.hvc(number, 4)
    system.kernel.cpu_down(2)
    with pytest.raises(
        HypPanic, match=r"hypervisor BUG on CPU 2: BUG\(\) or WARN\(\) at __kvm_nvhe_notifier"
    ) as caught:
        system.kernel.cpu_up(2)
    assert caught.value.state.cpu == 2
    assert "kvm [21]: nVHE hyp BUG at" in system.dmesg


def test_with_one_cpu_a_panic_does_not_mention_it(boot) -> None:
    system = boot(profile=MachineProfile(ram_size=64 << 20))
    number = system.modules["probe"].hypercalls["hyp_call"]
    system.hvc(number, 4)
    with pytest.raises(HypPanic, match=r"^hypervisor BUG: "):
        system.cpu(0).suspend()
