"""Going back: ``bs`` and ``bc``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.debug.packets.registry import EMPTY, Answer, Go, packet
from pkvm_emu.debug.stops import Back, Request, Resume

if TYPE_CHECKING:
    from pkvm_emu.debug.session import Session


@packet("bs")
def step_back(session: Session, _data: bytes) -> Answer:
    """Undo the last instruction, of whichever CPU executed it."""
    return _back(session, Back.STEP)


@packet("bc")
def go_back(session: Session, _data: bytes) -> Answer:
    """Go back to the last breakpoint or watchpoint, or to the beginning of the history."""
    return _back(session, Back.CONTINUE)


def _back(session: Session, kind: Back) -> Answer:
    # As a debugger steps over the access that a watchpoint stopped before, it steps back over one that it stopped after.
    return EMPTY if session.debugger.history is None else Go(Resume(back=Request(kind, stops_after=True)))
