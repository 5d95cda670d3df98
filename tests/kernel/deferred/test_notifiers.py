"""Notifier chains, reboot, panic and hotplug callbacks as modules use them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from calls import Calls, loaded, undone

from pkvm_emu.errors import PkvmEmuError, UsageError
from pkvm_emu.kernel.smp import Smp
from pkvm_emu.kernel.unload import unload_module
from pkvm_emu.machine.power import PoweredOff
from pkvm_emu.machine.profile import MachineProfile

SOURCE = r"""
#include <linux/cpuhotplug.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/panic_notifier.h>
#include <linux/reboot.h>
#include <linux/smp.h>
#include <linux/syscore_ops.h>

char order[64];
static int used;
static void note(char c) { order[used++] = c; }

struct named { struct notifier_block nb; char letter; int answer; };
static int on_event(struct notifier_block *nb, unsigned long action, void *data)
{
	struct named *n = container_of(nb, struct named, nb);

	note(n->letter);
	return n->answer;
}
#define NAMED(name, c, prio, ret) \
	static struct named name = { .nb = { .notifier_call = on_event, .priority = prio }, .letter = c, .answer = ret }
NAMED(low, 'l', -5, NOTIFY_OK);
NAMED(first, 'f', 0, NOTIFY_DONE);
NAMED(second, 's', 0, NOTIFY_OK);
NAMED(high, 'h', 100, NOTIFY_OK);
NAMED(stopper, 'x', 50, NOTIFY_STOP);
NAMED(bad, 'b', 60, NOTIFY_BAD);

static ATOMIC_NOTIFIER_HEAD(atomics);
static BLOCKING_NOTIFIER_HEAD(blockings);
static RAW_NOTIFIER_HEAD(raws);
#define CHAIN(kind, head) \
	int kind##_chain_add(int all) \
	{ \
		kind##_notifier_chain_register(&head, &low.nb); \
		kind##_notifier_chain_register(&head, &first.nb); \
		kind##_notifier_chain_register(&head, &high.nb); \
		kind##_notifier_chain_register(&head, &second.nb); \
		return all ? kind##_notifier_chain_register(&head, &stopper.nb) : 0; \
	} \
	int kind##_chain_call(void) { return kind##_notifier_call_chain(&head, 1, NULL); } \
	int kind##_chain_again(void) { return kind##_notifier_chain_register(&head, &first.nb); } \
	int kind##_chain_drop(void) { return kind##_notifier_chain_unregister(&head, &high.nb); }
CHAIN(atomic, atomics)
CHAIN(blocking, blockings)
CHAIN(raw, raws)
int add_bad(void) { return raw_notifier_chain_register(&raws, &bad.nb); }
int errno_of_call(void) { return notifier_to_errno(raw_chain_call()); }

/* the end of the system */
unsigned long reboot_event;
char reboot_command[16];
static int on_reboot(struct notifier_block *nb, unsigned long action, void *data)
{
	const char *text = data;
	int i;

	note('r');
	reboot_event = action;
	for (i = 0; text && text[i] && i < 15; i++)
		reboot_command[i] = text[i];
	return NOTIFY_DONE;
}
static struct notifier_block reboot_nb = { .notifier_call = on_reboot };
static int on_restart(struct notifier_block *nb, unsigned long action, void *data) { note('R'); return NOTIFY_DONE; }
static struct notifier_block restart_nb = { .notifier_call = on_restart, .priority = 128 };
static int on_panic(struct notifier_block *nb, unsigned long action, void *data) { note('p'); note(*(char *)data); return 0; }
static struct notifier_block panic_nb = { .notifier_call = on_panic };
static int sys_off(struct sys_off_data *data) { note((char)(long)data->cb_data); return NOTIFY_DONE; }
static void core_shutdown(void) { note('c'); }
static struct syscore_ops ops = { .shutdown = core_shutdown };
int hook_the_end(void)
{
	register_syscore_ops(&ops);
	register_sys_off_handler(SYS_OFF_MODE_POWER_OFF, SYS_OFF_PRIO_DEFAULT, sys_off, (void *)'o');
	register_sys_off_handler(SYS_OFF_MODE_POWER_OFF, SYS_OFF_PRIO_HIGH, sys_off, (void *)'O');
	register_sys_off_handler(SYS_OFF_MODE_RESTART_PREPARE, SYS_OFF_PRIO_DEFAULT, sys_off, (void *)'q');
	atomic_notifier_chain_register(&panic_notifier_list, &panic_nb);
	return register_reboot_notifier(&reboot_nb) ?: register_restart_handler(&restart_nb);
}
int unhook(void) { return unregister_reboot_notifier(&reboot_nb); }
int restart(void) { kernel_restart("recovery"); return 0; }
void panic(const char *fmt, ...);
int die(void) { panic("%s is over", "everything"); return 0; }

/* sleep, and modules that come and go */
int register_pm_notifier(struct notifier_block *nb);
int register_module_notifier(struct notifier_block *nb);
unsigned long pm_answer;
static int on_pm(struct notifier_block *nb, unsigned long action, void *data) { note('0' + (char)action); return (int)pm_answer; }
static struct notifier_block pm_nb = { .notifier_call = on_pm };
static int core_suspend(void) { note('S'); return 0; }
static void core_resume(void) { note('W'); }
static struct syscore_ops sleep_ops = { .suspend = core_suspend, .resume = core_resume };
int hook_sleep(void) { register_syscore_ops(&sleep_ops); return register_pm_notifier(&pm_nb); }
static int on_module(struct notifier_block *nb, unsigned long action, void *data)
{
	note('0' + (char)action);
	note(((struct module *)data)->name[0]);
	return NOTIFY_DONE;
}
static struct notifier_block module_nb = { .notifier_call = on_module };
int hook_modules(void) { return register_module_notifier(&module_nb); }

/* CPUs that come and go */
int ups, downs, refuse = -1, last_cpu = -1;
static int cpu_up(unsigned int cpu) { ups++; last_cpu = smp_processor_id(); return (int)cpu == refuse ? -ENODEV : 0; }
static int cpu_down(unsigned int cpu) { downs++; last_cpu = smp_processor_id(); return (int)cpu == refuse ? -EBUSY : 0; }
static int state;
int add_state(void) { state = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "test:online", cpu_up, cpu_down); return state; }
int add_quiet_state(void) { return cpuhp_setup_state_nocalls(CPUHP_AP_ONLINE_DYN, "test:quiet", cpu_up, cpu_down); }
int remove_state(void) { cpuhp_remove_state(state); return 0; }

static int __init notifiers_init(void) { return 0; }
module_init(notifiers_init);
"""


@pytest.fixture(scope="module", params=["14", "16"])
def shared(request: pytest.FixtureRequest, c_module: Callable[..., Path]) -> Calls:
    return loaded(
        c_module(SOURCE, None, name="chains", generation=request.param), "chains", profile=MachineProfile(cpus=2)
    )


@pytest.fixture
def chains(shared: Calls) -> Iterator[Calls]:
    yield from undone(shared)


@pytest.mark.parametrize("kind", ["atomic", "blocking", "raw"])
def test_chains_go_by_priority_and_then_by_registration(chains: Calls, kind: str) -> None:
    assert getattr(chains, f"{kind}_chain_add")(0) == 0
    assert getattr(chains, f"{kind}_chain_call")() == 1
    assert chains.text("order") == "hfsl"
    assert getattr(chains, f"{kind}_chain_drop")() == 0
    assert getattr(chains, f"{kind}_chain_drop")() == -2
    getattr(chains, f"{kind}_chain_call")()
    assert chains.text("order") == "hfslfsl"


@pytest.mark.parametrize("kind", ["atomic", "blocking", "raw"])
def test_a_callback_that_says_stop_ends_the_chain(chains: Calls, kind: str) -> None:
    getattr(chains, f"{kind}_chain_add")(1)
    assert getattr(chains, f"{kind}_chain_call")() == 0x8001
    assert chains.text("order") == "hx"


def test_a_block_that_is_there_already_warns_and_an_error_comes_back(chains: Calls) -> None:
    chains.raw_chain_add(0)
    assert chains.raw_chain_again() == -17
    assert "notifier callback on_event+0x0" in chains.log
    chains.add_bad()
    assert chains.errno_of_call() == -1


def test_rebooting_calls_notifiers_then_handlers_then_psci(chains: Calls) -> None:
    assert chains.hook_the_end() == 0
    with pytest.raises(PoweredOff, match="SYSTEM_RESET"):
        chains.system.reboot(command="recovery")
    assert chains.text("order") == "rqcR"
    assert chains.text("reboot_command") == "recovery"
    assert chains["reboot_event"] == 1
    assert "reboot: Restarting system with command 'recovery'" in chains.log


def test_switching_off_calls_the_sys_off_handlers_by_priority(chains: Calls) -> None:
    chains.hook_the_end()
    with pytest.raises(PoweredOff, match="SYSTEM_OFF"):
        chains.system.reboot("poweroff")
    assert chains.text("order") == "rcOo"
    assert chains["reboot_event"] == 3
    assert "reboot: Power down" in chains.log


def test_a_module_reboots_the_system_and_an_unregistered_notifier_hears_nothing(chains: Calls) -> None:
    chains.hook_the_end()
    assert chains.unhook() == 0
    assert chains.unhook() == -2
    with pytest.raises(PoweredOff):
        chains.restart()
    assert chains.text("order") == "qcR"


def test_halting_and_unknown_ways(chains: Calls) -> None:
    with pytest.raises(UsageError, match="no way to end a system is called 'explode'"):
        chains.system.reboot("explode")
    with pytest.raises(PoweredOff):
        chains.system.reboot("halt")
    assert "reboot: System halted" in chains.log


def test_a_panic_tells_its_notifiers_the_message(chains: Calls) -> None:
    chains.hook_the_end()
    with pytest.raises(PkvmEmuError, match="everything is over"):
        chains.die()
    assert chains.text("order") == "pe"


def test_sleeping_and_waking_tell_notifiers_and_syscore_operations(chains: Calls) -> None:
    smp = chains.system.kernel.part(Smp)
    chains.hook_sleep()
    chains.system.cpu(1).online = False
    assert smp.suspend_system() is None
    assert chains.text("order") == "3S"
    smp.resume(0)
    assert chains.text("order") == "3SW4"


def test_a_pm_notifier_keeps_the_system_awake(chains: Calls) -> None:
    chains.hook_sleep()
    chains.system.kernel.memory.write(chains.address("pm_answer"), (0x8002).to_bytes(8, "little"))
    assert chains.system.kernel.part(Smp).suspend_system() == -1
    assert chains.text("order") == "34"


def test_modules_that_come_and_go_are_announced(chains: Calls, c_module: Callable[..., Path]) -> None:
    other = (
        "static int __init i(void) { return 0; }\nmodule_init(i);\nstatic void __exit e(void) { }\nmodule_exit(e);\n"
    )
    generation = chains.system.generation.name
    chains.hook_modules()
    loaded_module = chains.system.load(c_module(other, None, name="zebra", generation=generation))
    assert chains.text("order") == "1z0z"
    unload_module(chains.system.kernel, loaded_module)
    assert chains.text("order") == "1z0z2z"


def test_a_hotplug_state_is_called_on_the_cpu_that_comes_or_goes(chains: Calls) -> None:
    assert chains.add_state() > 0
    assert (chains["ups"], chains["downs"]) == (2, 0)
    assert chains.system.kernel.cpu_down(1) == 0
    assert (chains["downs"], chains["last_cpu"]) == (1, 1)
    assert chains.system.kernel.cpu_up(1) == 0
    assert (chains["ups"], chains["last_cpu"]) == (3, 1)
    chains.remove_state()
    assert chains["downs"] == 3


def test_a_hotplug_state_that_refuses_keeps_the_cpu_and_undoes_itself(chains: Calls) -> None:
    memory = chains.system.kernel.memory
    assert chains.add_quiet_state() > 0
    assert chains["ups"] == 0
    memory.write(chains.address("refuse"), (1).to_bytes(4, "little"))
    assert chains.system.kernel.cpu_down(1) == -16
    assert chains.system.cpu(1).online
    assert chains.add_state() == -19
    assert (chains["ups"], chains["downs"]) == (2, 2)
