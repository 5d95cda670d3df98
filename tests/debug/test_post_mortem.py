"""Backtraces after a hypervisor panic: from the panic through the exception to the code at fault, and on to the host's caller."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from harness import Harness, Server, run_gdb, run_lldb

from pkvm_emu.build.builder import build_module
from pkvm_emu.debug.flow import Act
from pkvm_emu.debug.frames import backtrace
from pkvm_emu.debug.session import Session
from pkvm_emu.debug.stops import Stop, StopKind
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.system import System

ROOT = Path(__file__).parents[2]
HANDLER = "pkvm_driver_hyp_hvc"
DISPATCH = ["handle_host_hcall", "handle_trap", "host_exit"]
HOST = ["_pkvm_emu_hvc", "pkvm_driver_init", "called_from_python"]
MODULE = (
    "faults",
    """
static noinline u64 load(u64 *from) { return *(volatile u64 *)from + 1; }
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs) { u64 *x = (u64 *)regs; x[1] = load((u64 *)x[1]) * 2; x[0] = 0; }
""",
)


@pytest.fixture(params=["14", "16"])
def module(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The sample with a handler that writes through a null pointer, for the oldest and the newest generation."""
    pytest.importorskip("ziglang")
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "modules" / ("pkvm_driver_a14" if request.param == "14" else "pkvm_driver"), tree,
                    ignore=shutil.ignore_patterns("build-out"))  # fmt: skip
    source = tree / "hyp" / "el2.c"
    text, count = re.subn(
        r"^\tcalls\+\+;$", "\tcalls++;\n\t*(volatile u64 *)8 = 1;", source.read_text(), flags=re.MULTILINE
    )
    assert count == 1
    source.write_text(text)
    return build_module(tree, tmp_path / "pkvm_driver.ko", request.param).path


@pytest.mark.skipif(shutil.which("gdb-multiarch") is None, reason="gdb-multiarch is not installed")
def test_gdb_shows_the_way_from_the_host_to_the_fault(module: Path, tmp_path: Path) -> None:
    commands = [
        "continue",
        "bt",
        f"frame function {HANDLER}",
        "print calls",
        "print $pc",
        "frame function pkvm_driver_init",
        "kill",
    ]
    with Server(str(module)) as server:
        text = run_gdb(server.port, commands, tmp_path)
    assert "hypervisor panic" in text
    assert "Program received signal SIGABRT" in text
    lines = re.findall(r"^#\d+ +(.*)$", text[: text.index("$1 =")], re.MULTILINE)
    assert lines[0].startswith("panic_common () at firmware/el2/panic.S:")
    assert lines[1] == "<signal handler called>"
    names = [re.sub(r"^0x[0-9a-f]+ in ", "", line).partition(" ")[0] for line in lines]
    assert names[2:9] == [HANDLER, *DISPATCH, *HOST]
    written = (module.parent / "tree" / "hyp" / "el2.c").read_text().splitlines().index("\t*(volatile u64 *)8 = 1;") + 1
    assert lines[2].endswith(f"hyp/el2.c:{written}")
    assert re.search(r"el1\.c:\d+$", lines[7])
    assert "$1 = 1" in text


@pytest.mark.skipif(shutil.which("lldb") is None, reason="lldb is not installed")
def test_lldb_shows_it_too(module: Path, tmp_path: Path) -> None:
    symbols = tmp_path / "symbols"
    with Server(str(module), "--symbols", str(symbols)) as server:
        text = run_lldb(server.port, symbols, ["continue", "bt", "kill"], tmp_path)
    found = re.findall(
        r"frame #\d+: 0x[0-9a-f]+ [\w.-]+`(?:pkvm_driver_init \[inlined\] )?(\w+)", text[text.index("(lldb) bt") :]
    )
    assert found[:9] == ["panic_common", "vector_hyp_sync", HANDLER, *DISPATCH, *HOST]


def test_our_own_backtrace_goes_the_same_way(newest: System) -> None:
    seen: list[list[str]] = []

    def look(session: Session, stop: Stop) -> None:
        assert stop.kind is StopKind.ERROR
        frames = backtrace(session.debugger, stop.cpu)
        seen.append([newest.symbols.describe(frame.place, frame.el).partition("+")[0] for frame in frames])

    with Harness(newest, [Act("call", lambda: str(newest.call("hyp_call", 8)))]) as harness:
        harness.at(look)
        harness.debugger.flow.run(lambda: None)
        assert isinstance(harness.debugger.flow.failure, HypPanic)
    (names,) = seen
    assert [name.removeprefix("EL2 ").removeprefix("__kvm_nvhe_") for name in names[1:]] == [
        "load", "hyp_call", "hcall_dispatch", "trap_hvc", "host_exit", "host_hvc",
    ]  # fmt: skip


def test_what_a_panic_interrupted_is_undone_by_a_snapshot(newest: System) -> None:
    before = newest.snapshot()
    assert newest.hyp.panic.interrupted is None
    with pytest.raises(HypPanic):
        newest.call("hyp_call", 8)
    interrupted = newest.hyp.panic.interrupted
    assert interrupted is not None
    module = newest.modules["faults"]
    assert 0 <= interrupted.registers[32] - module.el2_symbol("load") < 16
    assert interrupted.spsr >> 2 & 3 == 1
    newest.restore(before)
    assert newest.hyp.panic.interrupted is None
