"""The run report's part on what modules left in the kernel for later: hooks, notifiers, handlers, threads, work and timers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pkvm_emu.system import System

_CHAIN_TITLES = {
    "reboot": "reboot notifier", "restart": "restart handler", "panic": "panic notifier", "die": "die notifier",
    "pm": "power-management notifier", "cpu_pm": "CPU power notifier", "module": "module notifier", "oom": "OOM notifier",
    "power_off": "power-off handler", "restart_prep": "restart-prepare handler", "power_off_prep": "power-off-prepare handler",
}  # fmt: skip


def _chains(system: System) -> Iterator[tuple[str, int]]:
    """The kernel's own chains that have blocks: kind and function."""
    addresses = system.kernel.symbols.addresses
    if not any(name.endswith(("_list", "_chain", "_chain_head")) for name in addresses):
        return
    from pkvm_emu.kernel.exports.notifiers import CHAINS, blocks, chain_head, is_known

    for name in CHAINS:
        if is_known(system.kernel, name):
            for block in blocks(system.kernel, chain_head(system.kernel, name)):
                yield name, system.kernel.memory.read_u64(block)


def deferred_facts(system: System) -> dict[str, Any]:
    """The same for programs: addresses are numbers, functions have their names."""
    kernel = system.kernel
    hooks, queues = kernel.part_made("Hooks"), kernel.part_made("Workqueues")
    events, states = kernel.part_made("PowerEvents"), kernel.part_made("HotplugStates")
    scheduler, threads = kernel.part_made("Scheduler"), kernel.part_made("Kthreads")
    return {
        "hooks": [
            {"hook": entry.hook, "probe": entry.name, "address": entry.probe.function, "priority": entry.probe.priority}
            for entry in (hooks.registered() if hooks is not None else ())
        ],
        "fired": dict(hooks.fired) if hooks is not None else {},
        "notifiers": [
            {"chain": chain, "address": function, "function": kernel.describe(function)}
            for chain, function in _chains(system)
        ],
        "sys_off_handlers": [
            {"mode": entry.mode, "priority": entry.priority, "function": kernel.describe(entry.callback)}
            for entry in (events.sys_off.values() if events is not None else ())
        ],
        "cpu_hotplug_states": [
            {
                "number": number,
                "name": state.name,
                "startup": _name(system, state.startup),
                "teardown": _name(system, state.teardown),
            }
            for number, state in (sorted(states.states.items()) if states is not None else ())
        ],
        "work_done": {
            kernel.describe(function): count for function, count in (queues.ran.items() if queues is not None else ())
        },
        "threads": [kernel.part_made("Tasks").by_va[va].label for va in (threads.flags if threads is not None else ())],
        "pending": scheduler.pending() if scheduler is not None else [],
    }


def _name(system: System, function: int) -> str | None:
    return system.kernel.describe(function) if function else None


def deferred_lines(system: System) -> Iterator[str]:
    """One line a registration, then what ran and what still waits."""
    facts = deferred_facts(system)
    for entry in facts["hooks"]:
        yield f"  hook {entry['hook']}: {entry['probe']}"
    for entry in facts["notifiers"]:
        yield f"  {_CHAIN_TITLES[entry['chain']]}: {entry['function']}"
    for entry in facts["sys_off_handlers"]:
        yield f"  sys-off handler: {entry['function']}"
    for entry in facts["cpu_hotplug_states"]:
        yield f"  CPU hotplug state {entry['name']}: {entry['startup'] or '-'}, {entry['teardown'] or '-'}"
    if facts["threads"]:
        yield f"  threads: {', '.join(facts['threads'])}"
    if facts["work_done"]:
        yield "  work done: " + ", ".join(f"{name} {count}" for name, count in facts["work_done"].items())
    if facts["fired"]:
        yield "  hooks fired: " + ", ".join(f"{name} {count}" for name, count in facts["fired"].items())
    for text in facts["pending"]:
        yield f"  pending: {text}"
