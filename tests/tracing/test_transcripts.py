"""What was typed on a real kernel gives what came back there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.shell.session import Session

TRANSCRIPTS = Path(__file__).parents[1] / "conformance/transcripts"
# What depends on when the kernel of the recording looked, or on what else its processes did.
_KERNEL_LOG = re.compile(r"\[ *\d+\.\d{6}\] ")
_MODULE_LINE = re.compile(r"pkvm_driver \d+ 1 \[permanent\]")
_TIME = re.compile(r" +\d+\.\d{6}: ")
_MATCH = re.compile(r"\d+[-:](\[\d+\].*)")
_LOST_IN_STORM = re.compile(r"\d+:CPU:0 \[LOST \d+ EVENTS\]")
_COUNT = re.compile(r"\d+ (/tmp/(?:pipe2|f|g))")


def normalised(text: str) -> list[str]:
    """The lines of a session without times, and without counts that depend on who reads when."""
    lines: list[str] = []
    for line in text.splitlines():
        if not line or _KERNEL_LOG.match(line) or _MODULE_LINE.match(line):
            continue
        line = _COUNT.sub(r"N \1", _TIME.sub(" <time>: ", line))
        if _LOST_IN_STORM.fullmatch(line):
            line = "N:CPU:0 [LOST N EVENTS]"
            if lines[-1] == line:
                continue
        if line == "trace           trace_pipe      trace_pipe_raw":
            # ls in columns.
            lines += line.split()
            continue
        lines.append(line)
    return _from_the_call_on(lines)


def _from_the_call_on(lines: list[str]) -> list[str]:
    """Of lines that grep numbered: those of the call; before it, the order in which find enabled the events shows."""
    out: list[str] = []
    before: list[str] = []
    for line in lines:
        match = _MATCH.fullmatch(line)
        if match is None:
            before = []
            out.append(line)
        elif "pkvm_driver_event" in line or not before or before[0] == "seen":
            if "pkvm_driver_event" in line:
                out += before[-1:]
                before = ["seen"]
            if before == ["seen"]:
                out.append(match[1])
            else:
                before = [match[1]]
        else:
            before.append(match[1])
    return out


@pytest.mark.parametrize("name", ["tracing-basic", "tracing-details"])
def test_a_session_reads_as_on_the_recorded_kernel(start, built, name: str) -> None:
    traced = start("pkvm_driver")
    out = bytearray()
    session = Session(traced.system, out.extend, modules=[ModuleFile.load(built("pkvm_driver"))])
    session.run((TRANSCRIPTS / f"{name}.sh").read_text())
    session.close()
    assert normalised(out.decode()) == normalised((TRANSCRIPTS / f"{name}.out.txt").read_text())
