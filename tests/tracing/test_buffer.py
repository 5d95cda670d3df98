"""The trace buffer: pages, overflow, time stamps, readers, several CPUs."""

from __future__ import annotations

from errno import EINVAL, ENODEV
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_support import ENTRY_BYTES, PAGE_BYTES, Start, Traced, text_of

from pkvm_emu.hyp import trace_layout as tl
from pkvm_emu.hyp.errors import HypMisuse
from pkvm_emu.hyp.page_state import OWNED, SHARED_OWNED
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.kernel.tracing.buffer import clock_parameters
from pkvm_emu.machine.snapshot import Snapshot

PER_PAGE = PAGE_BYTES // ENTRY_BYTES
A_SECOND = 62_500_000


def lost_in(line: str) -> int:
    """How many events a line says were lost."""
    return int(line.split()[2]) if "LOST" in line else 0


def test_an_entry_has_the_documented_layout(start) -> None:
    traced = start()
    traced.enable("vault_open")
    traced.on()
    ram, ring = traced.system.machine.ram, traced.ring()
    traced.open(0x1122334455667788)
    page = ring.unread()[-1]
    header = tl.EventHeader.parse(ram.read(page + tl.PAGE_DATA, 8))
    assert (header.type_len, header.delta, header.word) == (0, 0, 2 + 4 + 8 + 4)
    entry = (12).to_bytes(2, "little") + bytes(4) + (0x1122334455667788).to_bytes(8, "little")
    assert ram.read(page + 24, 14) == entry
    assert ram.read_u64(page + 8) == 8 + 14
    meta = traced.trace.cpus[0].meta
    assert [ram.read_u32(meta), ram.read_u32(meta + 12)] == [4096, 3]
    assert [ram.read_u64(meta + offset) for offset in (40, 48)] == [1, 0]


def test_pages_are_shared_with_the_hypervisor_while_a_buffer_is_loaded(start) -> None:
    traced = start()
    traced.on()
    pages = list(traced.trace.pages)
    ownership = traced.system.hyp.ownership
    assert len(pages) == 1 + 3
    assert {ownership.host_state(page) for page in pages} == {SHARED_OWNED}
    unshare = traced.system.generation.hypercalls["host_unshare_hyp"]
    assert str(traced.system.hvc(unshare, pages[0] >> 12)).split()[1] == "x1=-EBUSY"
    traced.off()
    assert traced.read("buffer_size_kb") == "7 (unloaded)\n"
    assert not ownership.check_consistency()
    assert {ownership.host_state(page) for page in pages} == {OWNED}


def test_the_oldest_events_go_when_the_buffer_is_full(start) -> None:
    traced = start("pkvm_driver")
    traced.enable("selftest")
    traced.on()
    total = 5 * PER_PAGE + 7
    traced.fill(total)
    traced.off()
    lines = list(traced.system.trace_pipe)
    # Two pages are in the ring: the one that is written, and one before it.
    kept = PER_PAGE + 7
    assert lines[0] == f"CPU:0 [LOST {total - kept} EVENTS]"
    assert [text_of(line) for line in lines[1:]] == ["selftest  "] * kept


def test_lost_events_are_told_once_for_each_page_that_is_read(start) -> None:
    traced = start("pkvm_driver")
    traced.enable("selftest")
    traced.on()
    traced.fill(3 * PER_PAGE)
    first = [line for line in traced.system.trace_pipe if "LOST" in line]
    traced.fill(4 * PER_PAGE)
    second = [line for line in traced.system.trace_pipe if "LOST" in line]
    assert first == [f"CPU:0 [LOST {PER_PAGE} EVENTS]"]
    assert len(second) == 1
    assert not [line for line in traced.system.trace_pipe if "LOST" in line]


def test_a_bigger_buffer_counts_when_it_is_loaded_next(start) -> None:
    traced = start("pkvm_driver")
    traced.enable("selftest")
    traced.on()
    traced.write("buffer_size_kb", "64\n")
    traced.fill(4 * PER_PAGE)
    assert traced.read("buffer_size_kb") == "64 (loaded)\n"
    assert "LOST" in next(iter(traced.system.trace_pipe))
    traced.off()
    assert traced.read("buffer_size_kb") == "64 (unloaded)\n"
    traced.on()
    traced.fill(8 * PER_PAGE)
    texts = traced.texts()
    assert texts == ["selftest  "] * (8 * PER_PAGE)


def test_one_kilobyte_is_a_ring_of_one_page(start) -> None:
    traced = start("pkvm_driver")
    traced.write("buffer_size_kb", "1\n")
    traced.enable("selftest")
    traced.on()
    for count in (3, PER_PAGE, 2 * PER_PAGE + 5, 1):
        traced.fill(count)
        lines = list(traced.system.trace_pipe)
        lost = sum(map(lost_in, lines))
        assert lost + len([line for line in lines if "LOST" not in line]) == count


def test_a_buffer_that_does_not_fit_is_refused(start) -> None:
    traced = start()
    traced.write("buffer_size_kb", f"{1 << 21}\n")
    with pytest.raises(Exception, match="ENOMEM"):
        traced.on()
    assert traced.read("tracing_on") == "0\n"
    assert traced.read("buffer_size_kb") == f"{1 << 21} (unloaded)\n"


def test_writing_trace_empties_the_buffer_while_tracing_goes_on(start) -> None:
    traced = start("pkvm_driver")
    traced.enable("selftest")
    traced.on()
    traced.fill(100)
    traced.write("trace", "\n")
    assert traced.texts() == []
    traced.fill(2)
    assert traced.texts() == ["selftest  "] * 2


def test_android15_unloads_the_buffer_when_trace_is_written(start) -> None:
    traced = start(generation="15")
    traced.enable("vault_open")
    traced.on()
    traced.open()
    with pytest.raises(Exception, match="EBUSY"):
        traced.write("trace", "\n")
    traced.off()
    assert traced.trace.is_loaded
    traced.write("trace", "\n")
    assert not traced.trace.is_loaded
    assert not traced.system.hyp.ownership.check_consistency()


def test_reading_while_events_come_loses_and_doubles_nothing(start) -> None:
    traced = start("pkvm_driver")
    traced.enable("selftest", "host_hcall")
    traced.on()
    handle = traced.system.fs.open(traced.path("trace_pipe"))
    seen: list[str] = []
    for round_ in range(12):
        traced.fill(round_ * 25)
        chunk = handle.read(1000 + round_)
        assert isinstance(chunk, bytes)
        seen.append(chunk.decode())
    while isinstance(chunk := handle.read(), bytes):
        seen.append(chunk.decode())
    handle.close()
    lines = "".join(seen).splitlines()
    lost = sum(map(lost_in, lines))
    hypercalls = traced.system.generation.hypercalls
    made = [text_of(line) for line in lines]
    filled = sum(round_ * 25 for round_ in range(12))
    # One hypercall an event, and those that fetched a page; enabling host_hcall itself.
    fetched = made.count(f"host_hcall id={hypercalls['swap_reader_tracing']} invalid=0")
    assert made.count("selftest  ") <= filled
    assert lost > 0
    assert fetched > 0
    assert len([text for text in made if "LOST" not in text]) + lost == 2 * filled + fetched + 1
    times = [line.split(": ")[0].split("\t")[1] for line in lines if "LOST" not in line]
    assert times == sorted(times)


def test_time_stamps_are_the_boot_clock(start) -> None:
    traced = start()
    traced.enable("vault_open")
    traced.on()
    stamps = []
    for pause in (0, 3, 200, 5):
        traced.system.machine.core.ticks += pause * A_SECOND
        before = traced.system.kernel.uptime_ns()
        traced.open()
        (event,) = traced.system.trace_pipe.events()
        assert before <= event.time_ns <= traced.system.kernel.uptime_ns()
        stamps.append(event.time_ns)
    assert stamps[2] - stamps[1] >= 200 * 1_000_000_000


def test_long_pauses_inside_a_page_take_a_time_extend(start) -> None:
    traced = start()
    traced.enable("vault_open")
    traced.on()
    for _ in range(3):
        traced.open()
        traced.system.machine.core.ticks += 2 * A_SECOND
    page = traced.ring().unread()[-1]
    ram = traced.system.machine.ram
    second = tl.EventHeader.parse(ram.read(page + tl.PAGE_DATA + 22, 8))
    assert second.type_len == tl.TYPE_TIME_EXTEND
    assert second.full_delta > 2_000_000_000
    times = [event.time_ns for event in traced.system.trace_pipe.events()]
    assert [b - a > 2_000_000_000 for a, b in pairwise(times)] == [True, True]


def test_cpus_are_merged_in_the_order_of_time(start) -> None:
    traced = start(cpus=3)
    traced.enable("vault_open")
    traced.on()
    order = [2, 0, 1, 1, 0, 2, 2, 0]
    for cpu in order:
        with traced.system.machine.on_cpu(cpu):
            traced.open()
    lines = list(traced.system.trace_pipe)
    assert [int(line[1:4]) for line in lines] == order
    assert [text_of(line) for line in lines] == [f"vault_open slot={n} key=0x5" for n in range(len(order))]


def test_cpus_that_run_in_turns_write_each_into_its_own_buffer(start) -> None:
    traced = start(cpus=2)
    traced.enable("vault_open", "vault_close", "hyp_exit")
    traced.on()
    traced.system.trace_pipe.read()
    calls = {0: ("pkvm_events_hyp_open", 0xA), 1: ("pkvm_events_hyp_open", 0xB)}
    traced.system.run_on(calls, seed=3, longest_turn=4)
    events = traced.system.trace_pipe.events()
    for cpu, key in ((0, 0xA), (1, 0xB)):
        mine = [event for event in events if event.cpu == cpu]
        # Reading fetches pages by hypercalls of CPU 0, whose ends come behind.
        assert [event.name for event in mine[:3]] == ["vault_open", "vault_close", "hyp_exit"]
        assert mine[0].fields["key"] == key
    times = [event.time_ns for event in events]
    assert times == sorted(times)


@pytest.mark.parametrize("generation", ["14", "15", "16"])
def test_loading_and_unloading_leaves_no_page_behind(plain, generation: str) -> None:
    traced = plain(generation, ram_mib=64)

    def cycle() -> None:
        traced.on()
        traced.off()
        traced.write("trace", "\n")
        assert not traced.trace.is_loaded

    cycle()
    pages = traced.system.kernel.pages
    before = [pages.alloc_pages(0) for _ in range(3)]
    for pa in before:
        pages.free_pages(pa, 0)
    for _ in range(20):
        cycle()
    assert sorted(pages.alloc_pages(0) for _ in range(3)) == sorted(before)


def test_a_cpu_can_be_read_and_emptied_alone(start) -> None:
    traced = start(cpus=2)
    traced.enable("vault_open")
    traced.on()
    for cpu in (0, 1):
        with traced.system.machine.on_cpu(cpu):
            traced.open()
    assert traced.read("per_cpu/cpu1/trace_pipe").startswith("[001]\t")
    assert [event.cpu for event in traced.system.trace_pipe.events()] == [0]
    for cpu in (0, 1):
        with traced.system.machine.on_cpu(cpu):
            traced.open()
    traced.write("per_cpu/cpu0/trace", "\n")
    assert [event.cpu for event in traced.system.trace_pipe.events()] == [1]


@pytest.mark.parametrize("generation", ["14", "15", "16"])
def test_everything_goes_back_with_a_snapshot(plain, generation: str) -> None:
    traced = plain(generation, ram_mib=64)
    traced.enable("host_hcall")
    traced.on()
    traced.system.hvc(200)
    system = traced.system
    before, snapshot = system.machine.digest(), system.snapshot()
    traced.system.hvc(201)
    first = traced.texts()
    traced.enable("hyp_enter")
    traced.write("buffer_size_kb", "20\n")
    traced.off()
    system.restore(snapshot)
    assert system.machine.digest() == before
    traced.system.hvc(201)
    assert traced.texts() == first
    assert "host_hcall id=201 invalid=1" in first


def test_the_same_run_gives_the_same_trace(start) -> None:
    def run() -> str:
        traced = start()
        traced.enable("hyp_enter", "vault_open", "host_hcall")
        traced.on()
        traced.open()
        return traced.system.trace_pipe.read()

    assert run() == run()


# What a hostile or broken party does


def test_loading_checks_what_it_is_given(plain) -> None:
    traced = plain("16")
    system = traced.system
    load = system.generation.hypercalls["load_tracing"]
    pa = system.kernel.pages.alloc_pages(0, zero=True)
    va = system.kernel.memory.linear_va(pa)

    def answer(*args: int) -> str:
        return str(system.hvc(load, *args)).split()[1]

    assert answer(va, 0) == answer(va + 8, 4096) == answer(va, 100) == "x1=-EINVAL"
    # More CPUs than there are, and pages that are not shared.
    system.machine.ram.write(pa, tl.DESCRIPTORS["a16"].pack(tl.Descriptor((tl.CpuPages(9, va, (va, va)),))))
    assert answer(va, 4096) == "x1=-EINVAL"
    for junk in (b"\0" * 4 + b"\xff" * 64, b"\0" * 4 + b"\xff\xff\xff\x7f" + bytes(64), b"\1" * 4088):
        system.machine.ram.write(pa, (100).to_bytes(4, "little") + junk)
        assert answer(va, 4096) == "x1=-EINVAL"
    other = system.kernel.memory.linear_va(system.kernel.pages.alloc_pages(1, zero=True))
    row = tl.CpuPages(0, other, (other + 4096, other))
    system.machine.ram.write(pa, tl.DESCRIPTORS["a16"].pack(tl.Descriptor((row,))))
    first = system.hvc(load, va, 4096)
    assert str(first).split()[1] == "x1=-ENOMEM"
    assert first.x3 > 0
    assert not system.hyp.ownership.check_consistency()


def test_a_host_that_writes_into_the_pages_does_not_stop_the_reader(start) -> None:
    traced = start()
    traced.enable("vault_open")
    traced.on()
    for _ in range(5):
        traced.open()
    page = traced.ring().unread()[-1]
    traced.system.machine.ram.write(page + tl.PAGE_DATA + 22, b"\xff" * 30)
    assert traced.texts()[0] == "vault_open slot=0 key=0x5"
    traced.write("trace", "\n")
    traced.open()
    assert traced.texts() == ["vault_open slot=5 key=0x5"]


def test_entries_that_no_page_holds_are_a_misuse(c_module, plain) -> None:
    module = c_module(
        el2="""
static const struct pkvm_module_ops *o;
int hyp_init(const struct pkvm_module_ops *ops) { o = ops; return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	x[0] = 0;
	if (x[1])
		x[1] = (u64)o->tracing_reserve_entry(x[1]);
	else
		o->tracing_commit_entry();
}
""",
        name="entries",
    )
    traced = plain("16", modules=[module])
    assert traced.system.call("hyp_call", 5000).x1 == 0
    traced.on()
    with pytest.raises(HypMisuse, match="4072 bytes"):
        traced.system.call("hyp_call", 5000)


def test_a_commit_without_a_buffer_is_a_panic(c_module, plain) -> None:
    module = c_module(
        el2="""
static const struct pkvm_module_ops *o;
int hyp_init(const struct pkvm_module_ops *ops) { o = ops; return 0; }
void hyp_call(pkvm_handler_regs_t *regs) { o->tracing_commit_entry(); }
""",
        name="commit",
    )
    with pytest.raises(HypPanic, match="no trace buffer is loaded"):
        plain("16", modules=[module]).system.call("hyp_call")


@pytest.mark.parametrize("hz", [1_000_000, 19_200_000, 24_000_000, 62_500_000, 1_000_000_000])
def test_the_clock_is_exact_to_a_microsecond_for_ten_minutes(hz: int) -> None:
    mult, shift = clock_parameters(hz)
    clock = tl.Clock(mult, shift, 0, 0)
    assert mult * 600 * hz < 1 << 64
    assert abs(clock.nanoseconds(600 * hz) - 600_000_000_000) < 1000


@pytest.fixture(scope="module")
def kept(plain: Start) -> tuple[Traced, Snapshot]:
    """A system in which ``selftest`` is traced, and its snapshot."""
    traced = plain("16")
    traced.enable("selftest")
    traced.on()
    return traced, traced.system.snapshot()


@settings(max_examples=12, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["fill", "read", "empty"]), st.integers(1, 500)), max_size=8))
def test_what_was_read_and_what_was_lost_is_what_was_made(
    kept: tuple[Traced, Snapshot], steps: list[tuple[str, int]]
) -> None:
    traced, snapshot = kept
    traced.system.restore(snapshot)
    made = read = lost = 0
    for action, count in [*steps, ("read", 0)]:
        if action == "fill":
            traced.fill(count)
            made += count
        elif action == "empty":
            traced.write("trace", "\n")
            made = read = lost = 0
        else:
            events = traced.system.trace_pipe.events()
            read += len(events)
            lost += sum(event.lost for event in events)
            assert [event.time_ns for event in events] == sorted(event.time_ns for event in events)
            assert read + lost == made


def test_android14_tells_the_host_in_footers_what_there_is(plain) -> None:
    traced = plain("14")
    number = traced.system.generation.hypercalls["rb_update_footers"]

    def footers() -> dict[str, list[int]]:
        pages = [traced.ring()._page(number) for number in range(traced.ring().pages)]
        words = [traced.system.machine.ram.read(page + 4064, 32) for page in pages]
        return {
            "writer": [int.from_bytes(word[:4], "little") for word in words],
            "reader": [int.from_bytes(word[4:8], "little") for word in words],
            "entries": [int.from_bytes(word[8:16], "little") for word in words],
            "overrun": [int.from_bytes(word[24:], "little") for word in words],
        }

    assert traced.system.hvc(number, 0).x1 == -ENODEV & (1 << 64) - 1
    assert traced.system.hvc(number, 1).x1 == -EINVAL & (1 << 64) - 1
    traced.enable("host_hcall")
    traced.on()
    assert (footers()["writer"], footers()["reader"]) == ([0, 4, 0], [2, 1, 0])
    before = traced.trace.cpus[0].pending
    for _ in range(900):
        traced.system.hvc(0x3FFF)
    assert footers()["entries"] == [0, 0, 0]
    assert traced.system.hvc(number, 0).x1 == 0
    shown = footers()
    # The hypercall itself comes into the trace when it is over.
    assert shown["entries"][0] == before + 900
    assert shown["overrun"][0] > 0
    assert sorted(shown["writer"]) == [0, 0, 4]
    assert shown["reader"].count(1) == shown["reader"].count(2) == 1
    per_page = 4048 // (8 + 2 + 5)
    assert shown["entries"][0] - shown["overrun"][0] <= 2 * per_page
    traced.off()
    assert traced.system.trace_pipe.read().startswith("CPU:0 [LOST ")
    assert footers()["reader"].count(2) == 1
