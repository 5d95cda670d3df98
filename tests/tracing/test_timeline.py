"""The recording: what is in it, that it is well-formed as a trace, and that it follows snapshots."""

from __future__ import annotations

import json

import pytest
from trace_format import violations

from pkvm_emu.errors import UsageError
from pkvm_emu.hyp.ownership_map import kind_from_words, stretches
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System, boot
from pkvm_emu.tracing.timeline import Level, Slice, slices, trace_events
from pkvm_emu.tracing.timeline.blocks import coverage
from pkvm_emu.tracing.timeline.pages import counts_over_time

SMALL = MachineProfile(ram_size=64 << 20)
PAGE = 0x4240_0000
#: By x1: share a page, panic, recurse, or count; x2 is what to do it with.
EL2 = """
static const struct pkvm_module_ops *ops;
static volatile u64 sink;
static noinline u64 down(u64 n)
{
	u64 below = n ? down(n - 1) : 0;

	sink = n;
	return below + n;
}
static noinline void never(void) { sink = 99; }
static bool smc(pkvm_handler_regs_t *regs) { return ((u64 *)regs)[0] == 0xc2000001 ? (((u64 *)regs)[0] = 7, 1) : 0; }
int hyp_init(const struct pkvm_module_ops *given)
{
	ops = given;
	return ops->register_host_smc_handler(smc);
}
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	x[0] = 0;
	switch (x[1]) {
	case 1: x[1] = ops->host_donate_hyp(x[2], 1, 0); break;
	case 2: ((void (*)(u64))x[2])(0); break;
	case 3: x[1] = down(x[2]); break;
	case 4: never(); break;
	case 5: for (u64 i = 0; i < x[2]; i++) sink += i; x[1] = 0; break;
	case 6: ops->memset((void *)x[2], 1, 64); break;
	}
}
"""


@pytest.fixture(scope="module")
def module(c_module):
    return c_module(el2=EL2, name="recorded")


@pytest.fixture
def recorded(module):
    return boot(16, [module], profile=SMALL, timeline=True)


def found(system: System, level: Level, name: str) -> list[Slice]:
    return [item for item in system.timeline.slices() if item.begin.level is level and item.begin.name == name]


def events_of(system: System):
    return list(trace_events(system.timeline))


def around(system: System, item: Slice) -> list[str]:
    """The names around a slice, innermost first."""
    everything, names = system.timeline.slices(), []
    while item.parent >= 0:
        item = everything[item.parent]
        names.append(item.begin.name)
    return names


# What is recorded


def test_a_hypercall_is_in_both_rows_with_arguments_and_result(recorded) -> None:
    recorded.call("hyp_call", 3, 2)
    (host,), (hyp,) = (found(recorded, level, "hyp_call")[:1] for level in (Level.EL1, Level.EL2))
    assert host.start_ns < hyp.start_ns < hyp.end_ns < host.end_ns
    assert dict(hyp.begin.arguments) == {"id": 0xC600_0080, "x1": 3, "x2": 2}
    assert dict(hyp.results)["x1"] == 3
    assert host.begin.flow == -hyp.begin.flow > 0


def test_functions_nest_with_their_results(recorded) -> None:
    recorded.call("hyp_call", 3, 3)
    calls = found(recorded, Level.EL2, "down")
    assert [around(recorded, call) for call in calls] == [
        ["down"] * depth + ["hyp_call", "hyp_call"] for depth in range(4)
    ]
    assert [dict(call.results)["x0"] for call in calls] == [6, 3, 1, 0]


def test_an_op_is_inside_the_function_that_calls_it(recorded) -> None:
    recorded.call("hyp_call", 1, PAGE >> 12)
    (op,) = (item for item in found(recorded, Level.EL2, "host_donate_hyp") if item.begin.category == "op")
    assert around(recorded, op) == ["hyp_call", "hyp_call"]
    assert dict(op.begin.arguments)["pfn"] == PAGE >> 12
    assert dict(op.results) == {"result": 0}
    assert recorded.symbols.describe(op.begin.pc, 2).startswith("__kvm_nvhe_hyp_call")
    recorded.call("hyp_call", 1, PAGE >> 12)
    assert dict(found(recorded, Level.EL2, "host_donate_hyp")[-1].results) == {"result": -1}


def test_a_change_of_ownership_is_an_instant_with_owners_before_and_after(recorded) -> None:
    recorded.call("hyp_call", 1, PAGE >> 12)
    (change,) = (item for item in recorded.timeline.slices() if dict(item.begin.arguments).get("page") == PAGE)
    assert change.is_instant
    assert change.begin.category == "page"
    given = dict(change.begin.arguments)
    assert (given["pages"], given["before"], given["after"]) == (1, "OWNED by HOST", "OWNED by HYP")
    assert around(recorded, change) == ["host_donate_hyp", "hyp_call", "hyp_call"]


def test_an_smc_goes_on_to_el3_unless_a_module_answers_it(recorded) -> None:
    recorded.smc(0x8400_0000)
    recorded.smc(0xC200_0001)
    (firmware,) = found(recorded, Level.EL3, "PSCI_VERSION")
    assert dict(firmware.results)["x0"] == 0x1_0001
    assert [len(found(recorded, level, "PSCI_VERSION")) for level in (Level.EL1, Level.EL2)] == [1, 2]
    (answered,) = found(recorded, Level.EL2, "sip 0x1")
    assert dict(answered.results)["x0"] == 7
    assert not found(recorded, Level.EL3, "sip 0x1")
    assert around(recorded, found(recorded, Level.EL2, "smc")[-1]) == ["sip 0x1"]


def test_an_abort_of_the_host_has_its_address_and_what_the_host_gets(recorded) -> None:
    recorded.call("hyp_call", 1, PAGE >> 12)
    recorded.host.read(PAGE)
    (abort,) = (item for item in found(recorded, Level.EL2, "data abort (read)") if item.begin.arguments[0][1] == PAGE)
    assert abort.begin.category == "abort"
    (injected,) = found(recorded, Level.EL1, "data abort (read) (injected)")
    assert injected.start_ns > abort.end_ns


def test_what_the_module_does_at_el1_is_there_with_strings(recorded) -> None:
    (init,) = (item for item in recorded.timeline.slices() if item.begin.category == "call")
    assert init.begin.name == "init_module [recorded]"
    (load,) = found(recorded, Level.EL1, "__pkvm_load_el2_module")
    assert around(recorded, load) == ["init_module [recorded]"]
    assert dict(load.results) == {"result": 0}


def test_every_kernel_function_ends(c_module) -> None:
    el1 = """
#include <linux/string.h>
#include <linux/slab.h>
static int __init only_init(void)
{
	char *page = kmalloc(64, GFP_KERNEL);
	memset(page, 1, 64);
	kfree(page);
	return 0;
}
module_init(only_init);
"""
    system = boot(16, profile=SMALL, timeline=True)
    system.load(c_module(el1, None, name="only_el1"))
    symbols = [item for item in system.timeline.slices() if item.begin.category == "symbol"]
    assert [item.begin.name for item in symbols][-1] == "kfree"
    assert {(item.depth, item.is_closed) for item in symbols} == {(1, True)}


def test_events_of_the_hypervisor_come_with_their_fields(built) -> None:
    cmdline = "hyp_event=vault_open,__hyp_printk,host_hcall"
    system = boot(16, [built()], cmdline, SMALL, timeline=True)
    system.call("pkvm_events_hyp_open", 0x20)
    (opened,) = found(system, Level.EL2, "vault_open")
    assert dict(opened.begin.arguments) == {
        "slot": 0, "key": 0x20, "text": "slot=0 key=0x20", "module": "pkvm_events",
    }  # fmt: skip
    (printed,) = found(system, Level.EL2, "__hyp_printk")
    assert dict(printed.begin.arguments)["text"] == "vault: slot 0 opened with 0x20"
    assert found(system, Level.EL2, "host_hcall")
    assert violations(events_of(system)) == []


def test_a_guest_runs_in_a_row_of_its_own(recorded) -> None:
    vm = recorded.create_vm()
    vm.donate(PAGE, 0x8000_0000)
    assert vm.write(0x8000_0000, 5).value == 5
    assert vm.share(0x8000_0000) == 1
    guest = [item for item in recorded.timeline.slices() if item.begin.level is Level.GUEST]
    names = {item.begin.name for item in guest}
    assert f"VM {vm.handle:#x}" in names
    assert any(item.begin.category == "hvc" for item in guest)
    assert all(item.is_closed for item in guest)
    assert violations(events_of(recorded)) == []


def test_cpus_that_run_at_once_have_rows_of_their_own(module) -> None:
    system = boot(16, [module], profile=MachineProfile(ram_size=64 << 20, cpus=2), timeline=True)
    system.run_on({0: ("hyp_call", 3, 20), 1: ("hyp_call", 3, 20)}, seed=3, longest_turn=8)
    calls = found(system, Level.EL2, "down")
    by_cpu = [[call for call in calls if call.begin.cpu == cpu] for cpu in (0, 1)]
    assert [len(of_cpu) for of_cpu in by_cpu] == [21, 21]
    assert by_cpu[0][0].end_ns > by_cpu[1][0].start_ns
    assert by_cpu[1][0].end_ns > by_cpu[0][0].start_ns
    assert by_cpu[0][0].instructions == by_cpu[1][0].instructions
    assert violations(events_of(system)) == []


# Costs and coverage


def test_a_cost_is_the_number_of_instructions(recorded) -> None:
    costs = []
    for rounds in (10, 110, 210):
        recorded.call("hyp_call", 5, rounds)
        costs.append(found(recorded, Level.EL2, "hyp_call")[-1].instructions)
    assert costs[1] - costs[0] == costs[2] - costs[1]
    assert (costs[1] - costs[0]) % 100 == 0
    before = recorded.machine.core.watchdog.executed
    recorded.machine.core.instruction_budget = 1_000_000
    recorded.call("hyp_call", 5, 210)
    trap, function = found(recorded, Level.EL2, "hyp_call")[-2:]
    everything = recorded.machine.core.watchdog.executed - before
    assert costs[2] == function.instructions < trap.instructions < everything < trap.instructions + 40


def test_an_op_that_is_firmware_costs_what_it_executes(recorded) -> None:
    recorded.call("hyp_call", 6, recorded.modules["recorded"].el2_symbol("ops") or 0)
    (op,) = found(recorded, Level.EL2, "memset")
    assert op.instructions > 8
    assert dict(op.begin.arguments)["count"] == 64


def test_without_counting_there_are_no_costs_and_no_coverage(module) -> None:
    system = boot(16, [module], profile=SMALL)
    system.record_timeline(instructions=False)
    system.call("hyp_call", 5, 10)
    assert not system.timeline.counts_instructions
    assert {item.instructions for item in system.timeline.slices()} == {0}
    assert not system.timeline.blocks
    assert "instructions at EL2" not in json.dumps(events_of(system))


def test_coverage_tells_what_ran(recorded) -> None:
    by_name = {function.name: function for function in coverage(recorded.timeline)}
    assert by_name["hyp_init"].executed > 8
    assert by_name["never"].executed == by_name["down"].executed == 0
    recorded.call("hyp_call", 4)
    by_name = {function.name: function for function in coverage(recorded.timeline)}
    assert by_name["never"].executed == by_name["never"].total
    assert 0 < by_name["hyp_call"].executed < by_name["hyp_call"].total
    lines = by_name["hyp_call"].lines
    assert any(line.executed == 0 for line in lines)
    assert 0 < sum(line.total for line in lines) <= by_name["hyp_call"].total


# The file


@pytest.mark.parametrize("generation", ["14", "15", "16"])
def test_the_file_is_a_well_formed_trace(pkvm_driver, tmp_path, generation: str) -> None:
    system = boot(generation, [pkvm_driver(generation)], profile=SMALL, timeline=True)
    system.call("pkvm_driver_hyp_hvc", 1, 2)
    system.smc(0xC200_0010, 3)
    system.timeline.save(tmp_path / "out.json")
    trace = json.loads((tmp_path / "out.json").read_text())
    assert trace["displayTimeUnit"] == "ns"
    assert violations(trace["traceEvents"]) == []
    threads = {e["args"]["name"] for e in trace["traceEvents"] if e.get("name") == "thread_name"}
    assert threads == {"CPU 0 EL1", "CPU 0 EL2", "CPU 0 EL3", "kernel log"}


def test_times_are_those_of_the_log_and_the_trace(built, tmp_path) -> None:
    system = boot(16, [built()], "hyp_event=vault_open", SMALL, timeline=True)
    system.call("pkvm_events_hyp_open", 0x20)
    (opened,) = found(system, Level.EL2, "vault_open")
    (traced,) = system.trace_pipe.events()
    # The event's time was read two steps of the counter earlier: by the op that made room for it.
    assert 0 <= opened.start_ns - traced.time_ns <= 3 * 1024


def test_several_machines_are_processes_of_one_file(module, recorded, tmp_path) -> None:
    other = boot(16, [module], profile=SMALL, timeline=True)
    recorded.timeline.save(tmp_path / "out.json", other.timeline)
    events = json.loads((tmp_path / "out.json").read_text())["traceEvents"]
    assert violations(events) == []
    assert {event["pid"] for event in events} == {1, 2}


def test_a_wrong_trace_is_noticed(recorded) -> None:
    good = events_of(recorded)
    assert violations(good) == []
    ends = [at for at, event in enumerate(good) if event["ph"] == "E"]
    arrow = next(at for at, event in enumerate(good) if event["ph"] == "f")
    assert violations(good[: ends[-1]] + good[ends[-1] + 1 :])
    assert violations(good[:arrow] + good[arrow + 1 :])
    assert violations([*good, {**good[-1], "ts": 0.0}])
    assert violations([*good[:-1], {**good[-1], "args": {"x": 1 << 60}}])


def test_the_same_run_gives_the_same_file(module, tmp_path) -> None:
    texts = []
    for name in ("a", "b"):
        system = boot(16, [module], profile=SMALL, timeline=True)
        system.call("hyp_call", 3, 5)
        system.timeline.save(tmp_path / name)
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1]


# The end, and snapshots


def test_what_a_panic_cut_short_ends_with_the_run(recorded) -> None:
    with pytest.raises(HypPanic):
        recorded.call("hyp_call", 2, 0x1234)
    assert violations(events_of(recorded)) == []
    assert found(recorded, Level.EL2, "hyp_call")
    assert any(item.begin.category == "exception" for item in recorded.timeline.slices())


def test_a_restore_takes_the_recording_back(recorded) -> None:
    snapshot = recorded.snapshot()
    before, blocks = list(recorded.timeline), dict(recorded.timeline.blocks)
    assert before[-1].name == "snapshot"
    recorded.call("hyp_call", 3, 1)
    first = list(recorded.timeline)[len(before) :]
    recorded.restore(snapshot)
    assert list(recorded.timeline)[:-1] == before
    assert list(recorded.timeline)[-1].name == "restored"
    assert dict(recorded.timeline.blocks) == blocks
    recorded.call("hyp_call", 3, 1)
    again = list(recorded.timeline)[len(before) + 1 :]
    assert [(record.name, record.instructions) for record in again] == [(r.name, r.instructions) for r in first]
    assert violations(events_of(recorded)) == []


def test_recording_does_not_change_what_is_recorded(module) -> None:
    digests = []
    for timeline in (False, True):
        system = boot(16, [module], profile=SMALL, timeline=timeline)
        system.call("hyp_call", 1, PAGE >> 12)
        digests.append(system.machine.digest())
    assert digests[0] == digests[1]


def test_nothing_listens_unless_asked(module) -> None:
    system = boot(16, [module], profile=SMALL)
    core = system.machine.core
    assert core.on_service is core.on_result is core.on_exception is core.on_run is None
    with pytest.raises(UsageError, match="timeline=True"):
        _ = system.timeline
    assert system.record_timeline() is system.record_timeline() is system.timeline


def test_a_file_that_cannot_be_written_is_told(recorded, tmp_path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        recorded.timeline.save(tmp_path / "none" / "out.json")


def test_page_counts_follow_the_transitions(recorded) -> None:
    recorded.call("hyp_call", 1, PAGE >> 12)
    moments = list(counts_over_time(recorded.timeline))
    assert [time for time, _ in moments] == sorted({time for time, _ in moments})
    last = {kind.name: pages for kind, pages in moments[-1][1].items() if pages}
    before = {kind.name: pages for kind, pages in moments[-2][1].items() if pages}
    assert last["HYP"] == before["HYP"] + 1


def test_transitions_before_the_recording_are_read_from_their_words(module) -> None:
    system = boot(16, [module], profile=SMALL)
    system.hyp.ownership.host_share_hyp(PAGE >> 12)
    system.hyp.ownership.host_unshare_hyp(PAGE >> 12)
    system.record_timeline()
    kinds = [change.kind.name for change in system.timeline.page_changes if change.event.pfn == PAGE >> 12]
    assert kinds == ["SHARED", "HOST"]


def test_words_and_tables_agree_about_what_pages_are(recorded) -> None:
    recorded.call("hyp_call", 1, PAGE >> 12)
    vm = recorded.create_vm()
    vm.donate(PAGE + 0x1000, 0x8000_0000)
    vm.share(0x8000_0000)
    vm.host_share(PAGE + 0x2000, 0x8000_1000)
    recorded.hyp.ownership.host_share_hyp((PAGE >> 12) + 3)
    told = {change.event.pfn: change for change in recorded.timeline.page_changes}
    assert len({change.kind for change in told.values()}) > 4
    for change in told.values():
        assert kind_from_words(change.event.after) in (change.kind, None)
        shown = stretches(recorded.hyp.ownership, change.event.pfn << 12, (change.event.pfn + 1) << 12)
        assert [stretch.kind for stretch in shown] == [change.kind]


def test_a_module_that_fails_is_recorded_up_to_its_end(c_module) -> None:
    el2 = (
        "int hyp_init(const struct pkvm_module_ops *ops) { return -22; }\nvoid hyp_call(pkvm_handler_regs_t *regs) {}\n"
    )
    system = boot(15, [c_module(el2=el2, name="broken", generation="15")], profile=SMALL, timeline=True)
    assert dict(found(system, Level.EL2, "init_module")[0].results)["x1"] == -22
    assert violations(events_of(system)) == []


def test_slices_of_nothing_are_none() -> None:
    assert slices([]) == []
