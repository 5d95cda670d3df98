"""``hyp_event=``, ``hyp_trace_printk``, and the trace in a panic."""

from __future__ import annotations

import pytest
from trace_support import text_of

from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.kernel.tracing.early import BEGIN_MARK, END_MARK
from pkvm_emu.kernel.tracing.print_fmt import format_values


def printed(system) -> list[str]:
    """The trace lines in the kernel log, without CPU and time."""
    lines = [line.partition("] ")[2] for line in system.dmesg.splitlines()]
    return [text_of(line) for line in lines if line.startswith("[0")]


@pytest.mark.parametrize("generation", ["15", "16"])
def test_events_of_the_command_line_are_on_from_the_load_of_their_module(start, generation: str) -> None:
    traced = start(generation=generation, cmdline="hyp_event=vault_close,hyp_exit")
    assert traced.read("tracing_on") == "1\n"
    assert traced.read("events/vault_close/enable") == "1\n"
    assert traced.read("events/vault_open/enable") == "0\n"
    traced.texts()
    traced.open()
    assert traced.texts() == ["vault_close slot=0 left=7", "hyp_exit  "]


def test_a_name_that_nobody_has_is_kept_in_silence(start) -> None:
    traced = start(cmdline="hyp_event=,nothing,,vault_open,")
    assert "nothing" not in traced.system.dmesg.split("\n", 2)[2]
    traced.open()
    assert traced.texts() == ["vault_open slot=0 key=0x5"]


def test_nothing_on_the_command_line_starts_nothing(start) -> None:
    traced = start(cmdline="hyp_event=nothing")
    assert traced.read("tracing_on") == "0\n"
    assert traced.read("buffer_size_kb") == "7 (unloaded)\n"


@pytest.fixture
def two_modules(built, c_module):
    """A module with events that are not of ``pkvm_events``, and ``pkvm_events``."""
    return [built("pkvm_driver"), built()]


def test_events_of_all_modules_are_found(plain, two_modules) -> None:
    traced = plain("16", two_modules, "hyp_event=pkvm_driver_event,vault_open")
    assert traced.read("events/pkvm_driver_event/enable") == "1\n"
    assert traced.read("events/vault_open/enable") == "1\n"


def test_the_kernels_own_limit_is_the_first_module(plain, two_modules) -> None:
    traced = plain("16", two_modules, "hyp_event=pkvm_driver_event,vault_open pkvm_emu.hyp_event=kernel")
    assert traced.read("events/pkvm_driver_event/enable") == "1\n"
    assert traced.read("events/vault_open/enable") == "0\n"
    traced.enable("vault_open")
    traced.open()
    assert traced.texts()[-1] == "vault_open slot=0 key=0x5"


def test_the_kernel_of_android15_finds_only_events_of_the_core(start) -> None:
    traced = start(generation="15", cmdline="hyp_event=vault_open,hyp_enter pkvm_emu.hyp_event=kernel")
    assert "] Couldn't find hyp event vault_open\n" in traced.system.dmesg
    assert traced.read("events/vault_open/enable") == "0\n"
    assert traced.read("events/hyp_enter/enable") == "1\n"


@pytest.mark.parametrize(
    ("word", "follows"),
    [
        ("hyp_trace_printk=1", True),
        ("hyp_trace_printk", True),
        ("hyp_trace_printk=0", False),
        ("hyp_trace_printk=off", False),
    ],
)
def test_the_kernel_log_follows_the_trace(start, word: str, follows: bool) -> None:
    traced = start(cmdline=f"hyp_event=vault_open,__hyp_printk {word}")
    traced.open(0x77)
    expected = ["vault_open slot=0 key=0x77", "__hyp_printk vault: slot 0 opened with 0x77"]
    assert printed(traced.system) == (expected if follows else [])
    assert traced.texts() == ([] if follows else expected)


def test_a_panic_shows_the_events_that_nobody_has_seen(c_module, built, plain) -> None:
    dying = c_module(
        el2="""
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs) { *(volatile u64 *)8 = 1; }
""",
        name="dying",
    )
    traced = plain("16", [built(), dying], "hyp_event=vault_open,hyp_enter hyp_trace_printk=1")
    traced.open(0x11)
    with pytest.raises(HypPanic):
        traced.system.call("hyp_call")
    lines = [line.partition("] ")[2] for line in traced.system.dmesg.splitlines()]
    first, last = lines.index(BEGIN_MARK), lines.index(END_MARK)
    assert [text_of(line) for line in lines[first + 1 : last]] == ["hyp_enter  "]
    assert any("Kernel panic" in line for line in lines[last:])
    # What was printed before is not printed again.
    assert len([line for line in lines if "vault_open slot=0 key=0x11" in line]) == 1


def test_without_the_option_a_panic_shows_no_events(c_module, plain) -> None:
    dying = c_module(
        el2="""
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs) { *(volatile u64 *)8 = 1; }
""",
        name="dying",
    )
    traced = plain("16", [dying], "hyp_event=hyp_enter")
    with pytest.raises(HypPanic):
        traced.system.call("hyp_call")
    assert BEGIN_MARK not in traced.system.dmesg


def test_a_module_event_in_a_panic_is_read_from_its_print_format(built, c_module, plain) -> None:
    dying = c_module(
        el2="""
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs) { *(volatile u64 *)8 = 1; }
""",
        name="dying",
    )
    traced = plain("16", [built(), dying], "hyp_event=vault_close hyp_trace_printk=1")
    # Two CPUs' worth of turns without a look at the trace between them: the events are still in the buffer.
    traced.system.machine.core.after_run = lambda: None
    traced.open()
    with pytest.raises(HypPanic):
        traced.system.call("hyp_call")
    lines = [line.partition("] ")[2] for line in traced.system.dmesg.splitlines()]
    between = lines[lines.index(BEGIN_MARK) + 1 : lines.index(END_MARK)]
    assert [text_of(line) for line in between] == ["vault_close slot=0 left=7"]


@pytest.mark.parametrize(
    ("print_fmt", "text"),
    [
        ('"a=%u", REC->a', b"<a=%u|1>"),
        ('"a" "b=%d\\n", (unsigned long long)(REC->b)', b"<ab=%d\n|2>"),
        ('"%p", (void *)REC->a', b"<%p|1>"),
        ('" ", ', b"< |>"),
        ('"%s", name(REC->a)', b"a=0x1 b=0x2"),
        ('"%d", REC->a + 1', b"a=0x1 b=0x2"),
        ('"%d", REC->c', b"a=0x1 b=0x2"),
        ('"%d %d", REC->b, REC->a', b"<%d %d|2,1>"),
    ],
)
def test_print_formats_of_plain_fields_are_understood(print_fmt: str, text: bytes) -> None:
    def render(fmt: bytes, values: list[int]) -> bytes:
        return b"<" + fmt + b"|" + ",".join(map(str, values)).encode() + b">"

    assert format_values(print_fmt, {"a": 1, "b": 2}, render) == text
