"""Several CPUs of a booted system: hotplug, calls at the same time, locks at EL2, per-CPU state, and all of it taken back."""

from __future__ import annotations

from typing import Any

import pytest

import pkvm_emu
from pkvm_emu.errors import ModuleError, UsageError
from pkvm_emu.hyp import layout as hyp_layout
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.kernel.smp import Smp
from pkvm_emu.machine.core import CpuParked, Stuck
from pkvm_emu.machine.power import PowerState
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System

GENERATIONS = pytest.mark.parametrize("generation", ["14", "15", "16"])
SMALL = MachineProfile(ram_size=64 << 20, cpus=3)
SEEDS = range(4)

EL1 = """
#include <linux/smp.h>
/* What num_online_cpus() reads. */
extern int __num_online_cpus;
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_add(pkvm_handler_regs_t *regs);
void __kvm_nvhe_exclusive(pkvm_handler_regs_t *regs);
void __kvm_nvhe_ticket(pkvm_handler_regs_t *regs);
void __kvm_nvhe_both(pkvm_handler_regs_t *regs);
void __kvm_nvhe_fixmap(pkvm_handler_regs_t *regs);
void __kvm_nvhe_block(pkvm_handler_regs_t *regs);
void __kvm_nvhe_number(pkvm_handler_regs_t *regs);
void __kvm_nvhe_crash(pkvm_handler_regs_t *regs);
static unsigned long token;
static int say(const char *val, const struct kernel_param *kp)
{
	pr_info("this is CPU %d of %u online\\n", smp_processor_id(), __num_online_cpus);
	WARN_ON(val[0] == 'w');
	return 0;
}
static const struct kernel_param_ops say_ops = { .set = say };
module_param_cb(say, &say_ops, NULL, 0200);
static int counts[8];
static void here(void *info) { ((int *)info)[smp_processor_id()]++; }
static int ipi(const char *val, const struct kernel_param *kp)
{
	int one, none;

	on_each_cpu(here, counts, 1);
	one = smp_call_function_single(2, here, counts, 1);
	none = smp_call_function_single(7, here, counts, 1);
	pr_info("calls %d %d %d, %d %d\\n", counts[0], counts[1], counts[2], one, none);
	return 0;
}
static const struct kernel_param_ops ipi_ops = { .set = ipi };
module_param_cb(ipi, &ipi_ops, NULL, 0200);
static int __init probe_init(void)
{
	int ret = pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);
	if (ret)
		return ret;
	pkvm_register_el2_mod_call(__kvm_nvhe_add, token);
	pkvm_register_el2_mod_call(__kvm_nvhe_exclusive, token);
	pkvm_register_el2_mod_call(__kvm_nvhe_ticket, token);
	pkvm_register_el2_mod_call(__kvm_nvhe_both, token);
	pkvm_register_el2_mod_call(__kvm_nvhe_fixmap, token);
	pkvm_register_el2_mod_call(__kvm_nvhe_block, token);
	pkvm_register_el2_mod_call(__kvm_nvhe_number, token);
	pkvm_register_el2_mod_call(__kvm_nvhe_crash, token);
	return 0;
}
module_init(probe_init);
"""
EL2 = """
static const struct pkvm_module_ops *o;
/* Not static, so that they have names in messages. */
u32 lock_a, lock_b, tickets;
static volatile u64 counter;

static void take(u32 *lock)
{
	u32 value, fail;

	asm volatile("1: ldaxr %w0, [%2]\\n cbnz %w0, 1b\\n stxr %w1, %w3, [%2]\\n cbnz %w1, 1b"
		: "=&r"(value), "=&r"(fail) : "r"(lock), "r"(1) : "memory");
}
static void give(u32 *lock) { asm volatile("stlr wzr, [%0]" : : "r"(lock) : "memory"); }
static void take_ticket(u32 *lock)
{
	u32 mine, tmp;

	asm volatile(".arch_extension lse\\n mov %w1, #0x10000\\n ldadda %w1, %w0, [%2]\\n eor %w1, %w0, %w0, ror #16\\n"
		" cbz %w1, 2f\\n sevl\\n1: wfe\\n ldaxrh %w1, [%2]\\n eor %w1, %w1, %w0, lsr #16\\n cbnz %w1, 1b\\n2:"
		: "=&r"(mine), "=&r"(tmp) : "r"(lock) : "memory");
}
static void give_ticket(u32 *lock)
{
	u32 tmp;

	asm volatile("ldrh %w0, [%1]\\n add %w0, %w0, #1\\n stlrh %w0, [%1]" : "=&r"(tmp) : "r"(lock) : "memory");
}
int hyp_init(const struct pkvm_module_ops *ops) { o = ops; return 0; }
/* Unprotected: x1 times. */
void add(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs, n = x[1];

	while (n--)
		counter = counter + 1;
	x[0] = 0;
	x[1] = counter;
}
void exclusive(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs, n = x[1];

	while (n--) { take(&lock_a); counter = counter + 1; give(&lock_a); }
	x[0] = 0;
	x[1] = counter;
}
void ticket(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs, n = x[1];

	while (n--) { take_ticket(&tickets); counter = counter + 1; give_ticket(&tickets); }
	x[0] = 0;
	x[1] = counter;
}
/* Both locks, x1 times: A before B where x2 is 0. */
void both(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs, n = x[1];
	u32 *one = x[2] ? &lock_b : &lock_a, *two = x[2] ? &lock_a : &lock_b;

	while (n--) { take(one); take(two); counter = counter + 1; give(two); give(one); }
	x[0] = 0;
	x[1] = counter;
}
/* Write x2 to the page at x1 and read it back again and again, through this CPU's slot. */
void fixmap(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs, bad = 0, i;

	for (i = 0; i < 20; i++) {
		volatile u64 *page = o->fixmap_map(x[1]);

		*page = x[2] + i;
		bad += *page != x[2] + i;
		x[3] = (u64)page;
		o->fixmap_unmap();
	}
	x[0] = 0;
	x[1] = bad;
}
void block(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs, i __attribute__((unused));
#if PKVM_EMU_ANDROID >= 16
	volatile u64 *page = o->fixblock_map(x[1]);

	for (i = 0; i < 50; i++)
		page[0] = page[0] + 1;
	x[1] = page[0];
	if (!x[2])
		o->fixblock_unmap();
#endif
	x[0] = 0;
}
void number(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;

	x[0] = 0;
#if PKVM_EMU_ANDROID >= 15
	x[1] = o->hyp_smp_processor_id();
#endif
	asm volatile("mrs %0, mpidr_el1" : "=r"(x[2]));
	x[3] = (u64)__builtin_frame_address(0);
}
void crash(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;

	x[0] = 0;
	if (x[1])
		x[1] = *(volatile u64 *)0x10;
}
"""


@pytest.fixture
def boot(c_module) -> Any:
    def booted(generation: str = "16", profile: MachineProfile = SMALL) -> System:
        return pkvm_emu.boot(modules=[c_module(el1=EL1, el2=EL2, generation=generation)], profile=profile)

    return booted


def say(system: System, word: str = "x", name: str = "say") -> None:
    parameter = next(p for p in system.kernel.parameters.of(system.modules["probe"]) if p.name == name)
    assert system.kernel.parameters.set(parameter, word) == 0


# At the same time


@GENERATIONS
def test_hypercalls_of_two_cpus_interleave_and_the_seed_decides_how(boot, generation: str) -> None:
    system = boot(generation)
    snapshot = system.snapshot()
    outcomes = []
    for seed in (*SEEDS, *SEEDS):
        system.restore(snapshot)
        results = system.run_on({0: ("add", 60), 1: ("add", 60)}, seed=seed, longest_turn=16)
        assert all(result.x0 == 0 for result in results.values())
        outcomes.append((results, system.call("add", 0).x1, system.machine.digest()))
    assert outcomes[: len(SEEDS)] == outcomes[len(SEEDS) :]
    totals = {total for _, total, _ in outcomes}
    assert all(60 <= total < 120 for total in totals), "an update without a lock loses increments"
    assert len(totals) > 1


@GENERATIONS
@pytest.mark.parametrize("lock", ["exclusive", "ticket"])
def test_a_lock_at_el2_keeps_the_updates_of_three_cpus(boot, generation: str, lock: str) -> None:
    system = boot(generation)
    results = system.run_on(dict.fromkeys(range(3), (lock, 40)), seed=2, longest_turn=8)
    assert sorted(results) == [0, 1, 2]
    assert max(result.x1 for result in results.values()) == 120
    assert system.call("add", 0).x1 == 120
    assert system.machine.current.index == 0


def test_locks_in_opposite_order_are_a_deadlock_that_names_both_cpus_and_both_locks(boot) -> None:
    system = boot()
    snapshot = system.snapshot()
    with pytest.raises(Stuck) as caught:
        system.run_on({0: ("both", 400, 0), 1: ("both", 400, 1)}, seed=1, longest_turn=16)
    message = str(caught.value)
    assert message.startswith("deadlock: CPU 0 waits for __kvm_nvhe_lock_b")
    assert "; CPU 1 waits for __kvm_nvhe_lock_a" in message
    assert message.count("__kvm_nvhe_both") == 4
    system.restore(snapshot)
    again = system.run_on({0: ("both", 400, 0), 1: ("both", 400, 0)}, seed=1, longest_turn=16)
    assert max(result.x1 for result in again.values()) == 800


def test_a_lock_that_is_held_for_ever_names_the_cpu_that_waits(boot) -> None:
    system = boot()
    lock = system.modules["probe"].el2_symbol("lock_a")
    system.hyp.write(lock, (1).to_bytes(4, "little"))
    with pytest.raises(Stuck, match=r"a CPU waits for ever: CPU 2 waits for __kvm_nvhe_lock_a"):
        system.run_on({2: ("exclusive", 1), 1: ("number",)})


def test_the_page_slots_of_cpus_are_their_own(boot) -> None:
    system = boot()
    pages = [system.kernel.pages.alloc() for _ in range(3)]
    results = system.run_on({cpu: ("fixmap", pages[cpu], 1000 * cpu) for cpu in range(3)}, seed=4, longest_turn=5)
    assert [results[cpu].x1 for cpu in range(3)] == [0, 0, 0]
    assert [results[cpu].x3 for cpu in range(3)] == [hyp_layout.FIXMAP_VA + 0x1000 * cpu for cpu in range(3)]
    assert [system.machine.ram.read_u64(pa) for pa in pages] == [1000 * cpu + 19 for cpu in range(3)]


def test_the_block_slot_makes_a_second_cpu_wait_its_turn(boot) -> None:
    system = boot()
    pa = system.machine.ram.base + (32 << 20)
    system.machine.ram.write_u64(pa, 0)
    results = system.run_on({0: ("block", pa), 1: ("block", pa)}, seed=5, longest_turn=6)
    assert sorted(result.x1 for result in results.values()) == [50, 100]
    assert system.call("block", pa, 1).x0 == 0
    with pytest.raises(Stuck, match=r"on CPU 1 waits for ever for the block slot, which CPU 0 holds"):
        system.run_on({1: ("block", pa)}, seed=5)


@pytest.mark.parametrize(
    ("calls", "match"),
    [
        ({5: ("add", 1)}, "there is no CPU 5: the machine has CPUs 0 to 2"),
        ({0: ("nothing", 1)}, "no hypercall 'nothing' is registered"),
        ({0: "add"}, r"CPU 0: give the hypercall and its arguments as a tuple"),
        ({0: ("add", *range(8))}, "CPU 0: a hypercall takes up to 7 integers"),
        ({0: ("add", "1")}, "CPU 0: a hypercall takes up to 7 integers"),
        ({1: ("add", 1)}, "CPU 1 is off and does not run"),
    ],
)
def test_calls_that_cannot_be_made_are_refused_before_anything_runs(boot, calls: Any, match: str) -> None:
    system = boot()
    system.cpu(1).online = False
    digest = system.machine.digest()
    with pytest.raises(UsageError, match=match):
        system.run_on(calls)
    assert system.machine.digest() == digest


# Which CPU


@GENERATIONS
def test_compiled_code_and_ops_know_their_cpu(boot, generation: str) -> None:
    system = boot(generation)
    stacks = set()
    for index in range(3):
        with system.on_cpu(index):
            say(system)
            result = system.call("number")
            if generation != "14":
                assert result.x1 == index
            assert result.x2 == 0x8000_0000 | index
            stacks.add(result.x3 & -hyp_layout.STACK_SIZE)
        assert f"this is CPU {index} of 3 online" in system.dmesg
    assert stacks == {system.hyp.cpu_memory(index).stack_base for index in range(3)}


@GENERATIONS
def test_a_kernel_function_runs_on_the_cpus_that_it_is_sent_to(boot, generation: str) -> None:
    system = boot(generation)
    say(system, name="ipi")
    assert "calls 1 1 2, 0 -6" in system.dmesg
    assert system.machine.current.index == 0
    system.cpu(2).online = False
    with system.on_cpu(1):
        say(system, name="ipi")
        assert system.machine.current.index == 1
    assert "calls 2 2 2, -6 -6" in system.dmesg


@GENERATIONS
def test_warnings_say_which_cpu_and_which_task(boot, generation: str) -> None:
    system = boot(generation)
    for index, pid in ((0, 1), (1, 20), (2, 21)):
        with system.on_cpu(index):
            say(system, "w")
        assert f"WARNING: CPU: {index} PID: {pid} at " in system.dmesg


def test_the_task_of_a_cpu_has_its_number_in_thread_info(boot) -> None:
    system = boot()
    memory = system.kernel.memory
    numbers = [int.from_bytes(memory.read(system.kernel.task_va(cpu) + 40, 4), "little") for cpu in range(3)]
    assert numbers == [0, 1, 2]


def test_a_panic_names_the_cpu(boot) -> None:
    system = boot()
    with pytest.raises(HypPanic, match=r"hypervisor panic on CPU 1: __kvm_nvhe_crash.* reads 0x10: a NULL pointer"):
        system.run_on({0: ("add", 2000), 1: ("crash", 1)})
    assert "kvm [20]: nVHE hyp panic at" in system.dmesg


# Hotplug


def test_online_is_what_sysfs_shows_and_changes(boot) -> None:
    system = boot()
    cpu = system.cpu(1)
    assert (cpu.online, cpu.state, repr(cpu)) == (True, PowerState.ON, "<CPU 1: on>")
    cpu.online = False
    cpu.online = False
    assert (cpu.online, cpu.state) == (False, PowerState.OFF)
    assert system.kernel.part(Smp).online == 0b101
    say(system)
    assert "this is CPU 0 of 2 online" in system.dmesg
    cpu.online = True
    cpu.online = True
    assert (cpu.online, cpu.state) == (True, PowerState.ON)
    lines = [line.split("] ", 1)[1] for line in system.dmesg.splitlines()]
    assert lines.count("psci: CPU1 killed (polled 0 ms)") == 1
    assert sum(line.startswith("CPU1: Booted secondary processor 0x0000000001 [0x") for line in lines) == 1


def test_the_boot_cpu_can_go_and_the_last_one_cannot(boot) -> None:
    system = boot()
    assert [system.kernel.cpu_down(index) for index in (0, 1)] == [0, 0]
    assert system.machine.current.index == 2
    assert system.call("add", 3).x1 == 3
    assert system.kernel.cpu_down(2) == -16
    with pytest.raises(UsageError, match="CPU 2 cannot go offline: -EBUSY"):
        system.cpu(2).online = False
    assert [system.kernel.cpu_up(index) for index in (0, 1)] == [0, 0]
    assert system.call("add", 3).x1 == 6
    assert (system.kernel.cpu_down(9), system.kernel.cpu_up(9)) == (-22, -22)
    with pytest.raises(UsageError, match="there is no CPU 9"):
        system.cpu(9)


def test_a_cpu_that_is_off_runs_nothing(boot) -> None:
    system = boot()
    system.cpu(1).online = False
    with (
        pytest.raises(UsageError, match="CPU 1 is off and does not run until another CPU switches it on"),
        system.on_cpu(1),
    ):
        pass
    system.cpu(2).suspend()
    with pytest.raises(UsageError, match="CPU 2 is suspended and does not run until it is resumed"), system.on_cpu(2):
        pass
    with pytest.raises(ModuleError, match="CPU 1 is not suspended"):
        system.cpu(1).resume()


def test_a_psci_off_by_hand_ends_the_call_and_the_system_goes_on(boot) -> None:
    system = boot()
    with system.on_cpu(2), pytest.raises(CpuParked, match="CPU 2 is off"):
        system.smc(0x8400_0002)
    assert system.machine.current.index == 0
    assert system.call("add", 1).x1 == 1
    assert system.smc(0xC400_0003, 2, system.kernel.part(Smp).entry_pa, 0).x0 == 0
    with system.on_cpu(2):
        assert system.call("add", 1).x1 == 2


# Snapshots


@GENERATIONS
def test_everything_about_cpus_goes_back(boot, generation: str) -> None:
    system = boot(generation)
    snapshots = []

    def keep() -> None:
        state = (dict(system.machine.power.states), system.kernel.part(Smp).online, dict(system.hyp.hcr))
        snapshots.append((system.snapshot(), system.machine.digest(), state, system.dmesg))

    keep()
    system.cpu(1).online = False
    keep()
    system.cpu(2).suspend(5)
    keep()
    system.cpu(1).online = True
    system.cpu(2).resume()
    system.run_on({1: ("exclusive", 3), 2: ("exclusive", 3)})
    keep()
    assert len({digest for _, digest, _, _ in snapshots}) == len(snapshots)
    for position in (0, 2, 1, 3, 2, 0, 3, 1):
        snapshot, digest, state, log = snapshots[position]
        system.restore(snapshot)
        assert system.machine.digest() == digest
        now = (dict(system.machine.power.states), system.kernel.part(Smp).online, dict(system.hyp.hcr))
        assert (now, system.dmesg) == (state, log)
    # From a restored state CPUs come and go as they did.
    system.restore(snapshots[2][0])
    system.cpu(1).online = True
    system.cpu(2).resume()
    results = system.run_on({1: ("exclusive", 3), 2: ("exclusive", 3)})
    assert system.machine.digest() == snapshots[3][1]
    assert max(result.x1 for result in results.values()) == 6


def test_a_deadlock_can_be_taken_back(boot) -> None:
    system = boot()
    snapshot, digest = system.snapshot(), system.machine.digest()
    messages = []
    for _ in range(2):
        with pytest.raises(Stuck) as caught:
            system.run_on({0: ("both", 400, 0), 1: ("both", 400, 1)}, seed=1, longest_turn=16)
        messages.append(str(caught.value))
        system.restore(snapshot)
        assert system.machine.digest() == digest
    assert messages[0] == messages[1]
