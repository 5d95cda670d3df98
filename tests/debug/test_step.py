"""``pkvm-emu step``: what its commands do and print, in process and as a command."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pkvm_emu.debug.debugger import Debugger
from pkvm_emu.debug.flow import Act, Flow
from pkvm_emu.debug.step.screen import Output
from pkvm_emu.debug.step.view import View
from pkvm_emu.debug.stops import StopKind
from pkvm_emu.system import System

MODULE = (
    "stepping",
    """static const struct pkvm_module_ops *ops;
u64 counter;
int hyp_init(const struct pkvm_module_ops *given) { ops = given; return 0; }
static noinline u64 inner(u64 value)
{
	counter += value;
	return counter;
}
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;

	if (x[1] == 3)
		*(volatile u64 *)8 = 1;
	x[1] = inner(x[2]);
	x[1] += ops->hyp_pa(&counter) ? 0 : 1;
	x[0] = 0;
}
""",
)
#: Lines of the file, which begins with three includes.
INNER_BODY, CALL_INNER, CALL_OP = 9, 18, 19
ADD, FAULT = 0, 3
Typed = Callable[..., str]


@pytest.fixture
def typed(newest: System) -> Iterator[Typed]:
    """What the view prints for commands typed at the first instruction of calls (by default of one)."""
    made: list[Debugger] = []

    def run(*lines: str, calls: tuple[tuple[int, int], ...] = ((ADD, 5),), colour: bool = False) -> str:
        acts = [Act(f"call {pair}", lambda pair=pair: f"{newest.call('hyp_call', *pair)}") for pair in calls]  # type: ignore[misc]
        debugger = Debugger(newest, Flow(acts))
        made.append(debugger)
        debugger.keep_history()
        debugger.control.library_state = None
        file = io.StringIO()
        output = Output(file, colour)

        def commands() -> Iterator[str]:
            for line in lines:
                output.text(f"> {line}")
                yield line

        view = View(debugger, output, commands())
        debugger.control.on_stop = view.at_stop
        debugger.control.interrupt("begin")
        debugger.flow.run(lambda: view.at_end(debugger.control.make_stop(StopKind.END)))
        return file.getvalue()

    yield run
    for debugger in made:
        debugger.control.detach()


def after(text: str, command: str) -> str:
    """What a command printed."""
    return text.partition(f"> {command}\n")[2].partition("\n> ")[0].rstrip("\n")


def index(text: str) -> int:
    """The point of the history that a stop shows."""
    found = re.search(r"@(\d+)$", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1])


def test_a_step_shows_place_level_flags_code_and_changed_registers(typed: Typed) -> None:
    text = after(typed("b inner", "c", "si"), "si")
    assert re.search(
        r"^EL2 __kvm_nvhe_inner\+0x[0-9a-f]+/0x[0-9a-f]+ \[stepping\] \(.*el2\.c:\d+\)  EL2h \w{4} DAIF.*@\d+$",
        text,
        re.M,
    )
    assert re.search(r"^  => 0x4000\w+  \w+", text, re.M)
    assert re.search(r"^  \w+ 0x[0-9a-f]+ -> 0x[0-9a-f]+", text, re.M)


def test_lines_are_stepped_into_and_over(typed: Typed) -> None:
    text = typed(f"tb el2.c:{CALL_INNER}", "c", "s", "rs", "n")
    assert f"el2.c:{INNER_BODY - 2})" in after(text, "s") or f"el2.c:{INNER_BODY})" in after(text, "s")
    assert f"el2.c:{CALL_INNER})" in after(text, "rs")
    assert re.search(rf"hyp_call\+.*el2\.c:({CALL_INNER}|{CALL_OP})\)", after(text, "n"))


def test_finish_leaves_functions_and_then_el2(typed: Typed) -> None:
    text = typed("b inner", "c", "finish", "bt", "up 10000", "f 3", "finish")
    assert "hyp_call+" in after(text, "finish")
    assert "frames are 0 to" in after(text, "up 10000")
    last = text.rpartition("> finish\n")[2]
    assert re.search(r"^EL1 host_hvc", last, re.M)


def test_a_backtrace_goes_through_the_exception(typed: Typed) -> None:
    text = after(typed("b inner", "c", "bt"), "bt")
    names = re.findall(r"^#\d+ +EL(\d) (?:__kvm_nvhe_)?(\w+)", text, re.M)
    assert names[:2] == [("2", "inner"), ("2", "hyp_call")]
    assert ("2", "host_exit") in names
    assert names[-1][0] == "1"
    assert names[-1][1] == "host_hvc"


def test_going_back_and_forth_ends_at_the_same_point(typed: Typed) -> None:
    text = typed("b inner", "c", "si 7", "rsi 7", "rfinish", "si", "rn", "goto 3", "goto +4", "goto -2", "rc")
    assert index(after(text, "rsi 7")) == index(after(text, "c"))
    assert index(after(text, "rfinish")) == index(after(text, "c")) - 1
    assert [index(after(text, f"goto {where}")) for where in ("3", "+4", "-2")] == [3, 7, 5]
    assert "the history begins here" in after(text, "rc")
    assert index(after(text, "rc")) == 0


def test_a_watchpoint_stops_forwards_and_backwards_at_the_write(typed: Typed) -> None:
    text = typed("watch counter", "c", "d", "si 20", "watch counter", "rc", "p *counter", calls=((ADD, 5), (ADD, 6)))
    assert index(after(text, "c")) == index(after(text, "rc"))
    assert "1: watch counter" in after(text, "c")
    assert after(text, "p *counter").startswith("0x0 = 0")


def test_a_call_of_python_is_shown_and_is_one_step(typed: Typed) -> None:
    text = typed("b *pkvm_ops_hyp_pa", "c", "si", "si", "si")
    before = text.count("Python, one step")
    assert before >= 1
    assert re.search(r"^  ops->hyp_pa\(0x4000\w+\): Python, one step$", text, re.M)
    assert re.search(r"^  ops->hyp_pa\(0x4000\w+\)$", text, re.M)


def test_an_hvc_shows_its_frame(typed: Typed) -> None:
    text = typed("b host_hvc", "c", "si 200", "goto 0", "si", "si", "si")
    assert re.search(r"^  hvc 0xc6000\w+ hyp_call\(0x0, 0x5, 0x0, 0x0, 0x0, 0x0\)$", text, re.M)


def test_values_memory_and_registers_are_printed(typed: Typed) -> None:
    text = typed(
        "b inner", "c", "p $x0 + 2 * 3", "p/x -1", "p/d $x0 - 6", "p/t 5", "x/2gx $sp", "x/2i $pc", "x/4bx &counter", "x/s counter",
        "i r x0 sp", "i el2", "i b", "i cpus", "i history", "i symbol inner", "p (1 << 4 | 3) & ~2", "l",
    )  # fmt: skip
    assert after(text, "p $x0 + 2 * 3") == "0xb = 11"
    assert after(text, "p/x -1") == "0xffffffffffffffff"
    assert after(text, "p/d $x0 - 6") == "-1"
    assert after(text, "p/t 5") == "0b101"
    assert re.fullmatch(r"0x4000\w+: [0-9a-f]{16} [0-9a-f]{16}", after(text, "x/2gx $sp"))
    assert after(text, "x/2i $pc").count("\n") == 1
    assert after(text, "x/4bx &counter").endswith(": 00 00 00 00")
    assert re.search(r"^x0 +0x5", after(text, "i r x0 sp"))
    assert "HCR_EL2" in after(text, "i el2")
    assert after(text, "i b").startswith("1   break inner: EL2 __kvm_nvhe_inner+")
    assert after(text, "i cpus").startswith("CPU 0: EL2 ")
    assert "the history begins at 0" in after(text, "i history")
    assert after(text, "i symbol inner").startswith("EL2 __kvm_nvhe_inner")
    assert after(text, "p (1 << 4 | 3) & ~2").startswith("0x11 = 17")
    assert re.search(r"hyp/el2\.c:\d+: the file is not there; --source-map", after(text, "l"))


def test_what_is_written_is_there_and_executed_with(typed: Typed) -> None:
    text = typed(
        "b inner", "c", "set $x0 = 40", "set *counter = 2", "finish", "p $x0", "i r tpidr_el1", "set $tpidr_el1 = 16"
    )
    assert after(text, "set $x0 = 40") == "x0 = 0x28"
    assert after(text, "p $x0").startswith("0x2a = 42")
    assert after(text, "set $tpidr_el1 = 16") == "TPIDR_EL1 = 0x10"


def test_commands_of_the_debug_server_work_too(typed: Typed) -> None:
    text = typed("b inner", "c", "finish", "who counter", "owner counter", "hvc", "pt counter 2", "monitor el", "el")
    assert re.search(r"0x0 -> 0x5\n  at instruction \d+: EL2 __kvm_nvhe_inner", after(text, "who counter"))
    assert "owner HYP" in after(text, "owner counter")
    assert "hyp_call [stepping]" in after(text, "hvc")
    assert "EL2 stage 1" in after(text, "pt counter 2")
    assert after(text, "monitor el") == after(text, "el")


def test_the_end_can_be_gone_back_from_and_more_can_be_called(typed: Typed) -> None:
    text = typed("c", "c", "rsi", "b inner", "rc", "c", "call hyp_call:0,7", "c", "p $x0")
    assert "the run has ended" in text
    assert "nothing is left to run" in text
    assert "inner" in after(text, "rc")
    assert "is made after" in after(text, "call hyp_call:0,7")
    assert after(text, "p $x0").startswith("0x7 = 7")


def test_a_fault_stops_and_is_gone_back_from(typed: Typed) -> None:
    text = typed("c", "rs", "bt", calls=((FAULT, 0),))
    assert index(after(text, "rs")) < index(after(text, "c"))
    assert "data abort" in text or "EL2" in text


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("nonsense", "no command 'nonsense'"),
        ("/", "no command '/'"),
        ("p nobody", "no symbol 'nobody' is loaded"),
        ("p $x31", "no register $x31"),
        ("p 1 +", "something is missing"),
        ("p (1", "parenthesis"),
        ("p 1 / 0", "division by zero"),
        ("p 1 $x0", "not expected"),
        ("p {1}", "what is"),
        ("p *8", "no memory at 0x8"),
        ("p " + "(" * 5000 + "1" + ")" * 5000, "nested too deeply"),
        ("p " + "-" * 5000 + "1", "nested too deeply"),
        ("x/0gx $sp", "0 units"),
        ("x/99999999gx $sp", "units: 1 to"),
        ("x 8", "no memory at 0x8"),
        ("si 0", "is no count"),
        ("si many", "is no count"),
        ("d 9", "no breakpoint 9"),
        ("watch", "usage: watch"),
        ("watch 8", "cannot be watched"),
        ("set $x0", "usage: set"),
        ("set $nothing = 1", "no register $nothing"),
        ("set *8 = 1", "no memory at 0x8"),
        ("i nothing", "info r"),
        ("help nothing", "no command 'nothing'"),
        ("up x", "is no count"),
        ("who", "usage: monitor who"),
        ("goto", "missing"),
    ],
)
def test_a_wrong_line_is_answered_by_one_line(typed: Typed, line: str, answer: str) -> None:
    text = after(typed(line, "p 1"), line)
    assert answer in text
    assert "\n" not in text


def test_every_command_has_help(typed: Typed) -> None:
    text = typed("help", "help si", "help who", "", "# a remark")
    for name in ("rsi", "finish", "watch", "who [pt|s2|owner] ADDRESS", "dmesg"):
        assert name in after(text, "help")
    assert after(text, "help si").startswith("si, stepi [N]\n  one instruction")
    assert "last write" in after(text, "help who")


def test_enter_repeats_the_last_command(typed: Typed) -> None:
    text = typed("si", "", "")
    assert re.findall(r"@(\d+)$", text, re.M) == ["0", "1", "2", "3"]


def test_colours_are_for_terminals(typed: Typed) -> None:
    assert "\x1b[" not in typed("si", "bt")


def test_colours_mark_what_changed(typed: Typed) -> None:
    text = typed("si 2", colour=True)
    assert "\x1b[1;33m" in text
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert "=> 0x" in plain


def run_step(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PKVM_EMU_TRACEBACK": "1"}
    command = [sys.executable, "-m", "pkvm_emu", "step", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, input=given)


def test_commands_are_given_as_options_or_as_a_script(pkvm_driver: Callable[[str], Path]) -> None:
    module = str(pkvm_driver("16"))
    options = run_step(module, "--stop-at", "pkvm_driver_hyp_hvc", "--command", "si 3", "--command", "bt")
    script = run_step(module, "--stop-at", "pkvm_driver_hyp_hvc", given="si 3\nbt\n")
    assert options.returncode == 0, options.stderr
    assert options.stdout == script.stdout
    assert "(step) si 3\n" in options.stdout
    assert re.search(r"^#0 +EL2 __kvm_nvhe_pkvm_driver_hyp_hvc\+", options.stdout, re.M)
    assert "\x1b" not in options.stdout


def test_a_run_to_the_end_has_the_status_of_the_module(pkvm_driver: Callable[[str], Path]) -> None:
    done = run_step(str(pkvm_driver("14")), "--call", "pkvm_driver_hyp_hvc:1,2", given="c\n")
    assert done.returncode == 0, done.stderr
    assert "the run has ended" in done.stdout
    assert "pkvm_driver_hyp_hvc:1,2 = SMCCC_RET_SUCCESS" in done.stdout


def test_a_place_that_is_never_reached_is_an_error(pkvm_driver: Callable[[str], Path]) -> None:
    done = run_step(str(pkvm_driver("16")), "--stop-at", "nobody", given="")
    assert done.returncode == 2
    assert "--stop-at nobody was never reached" in done.stderr
