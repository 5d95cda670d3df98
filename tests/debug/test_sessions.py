"""Recorded sessions of the real debuggers, played back: the same bytes come out."""

from __future__ import annotations

from pathlib import Path

import pytest
from record_sessions import SCRIPTS, make_debugger

from pkvm_emu.debug.recording import Divergence, ReplayLink
from pkvm_emu.debug.serve import run_remote
from pkvm_emu.debug.stops import Killed

SESSIONS = Path(__file__).parent / "sessions"


def replay(name: str, lines: list[str]) -> ReplayLink:
    debugger, first = make_debugger(SCRIPTS[name][0], "/pkvm-emu")
    link = ReplayLink(lines)
    try:
        run_remote(debugger, link, first, lambda stop: None)
    finally:
        debugger.control.detach()
    return link


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_recorded_session_replays_byte_for_byte(name: str) -> None:
    lines = (SESSIONS / f"{name}.txt").read_text().splitlines()
    assert any(line.startswith("> vCont;") for line in lines)
    assert replay(name, lines).is_finished


def test_a_session_that_differs_is_noticed() -> None:
    lines = (SESSIONS / "gdb-android16.txt").read_text().splitlines()
    position = next(index for index, line in enumerate(lines) if line.startswith("< $T05") and index > 20)
    lines[position] = lines[position].replace("T05", "T06")
    with pytest.raises(Divergence, match=f"line {position + 1} of the recording"):
        replay("gdb-android16", lines)


def test_a_recording_that_ends_early_is_noticed() -> None:
    lines = (SESSIONS / "gdb-android16.txt").read_text().splitlines()
    with pytest.raises((Divergence, Killed), match="has ended"):
        replay("gdb-android16", lines[:30])
