"""Running and stopping: ``vCont c s``, breakpoints and watchpoints, ``D``, ``k``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.debug.breakpoints import Breakpoint
from pkvm_emu.debug.packets.registry import (
    EMPTY,
    NO_MEMORY,
    NO_SUCH,
    OK,
    Answer,
    Go,
    Leave,
    Malformed,
    hex_number,
    packet,
)
from pkvm_emu.debug.stops import CONTINUE, STEP, Action, Resume
from pkvm_emu.debug.watchpoints import ACCESS, READ, WRITE

if TYPE_CHECKING:
    from pkvm_emu.debug.session import Session

_WATCH_KINDS = {2: WRITE, 3: READ, 4: ACCESS}
_LARGEST_WATCH = 4096


@packet("?")
def why(session: Session, _data: bytes) -> Answer:
    """Why it stands still."""
    return session.stop_reply()


@packet("vCont?")
def kinds_of_resume(_session: Session, _data: bytes) -> Answer:
    """What ``vCont`` takes."""
    return b"vCont;c;C;s;S;t;r"


@packet("vCont;")
def resume(session: Session, data: bytes) -> Answer:
    """``vCont;action[:thread];...``: the first action that names a CPU, or none, is that CPU's."""
    actions: dict[int, Action] = {}
    default: Action | None = None
    for part in data.split(b";"):
        text, colon, thread = part.partition(b":")
        action = _action(text)
        if colon and thread not in (b"-1", b"p1.-1"):
            actions.setdefault(session.cpu_of(thread), action)
        elif default is None:
            default = action
    return Go(session.direct(Resume(actions, CONTINUE if default is None else default)))


def _action(text: bytes) -> Action:
    kind = text[:1]
    if kind in (b"c", b"C", b"t"):
        return CONTINUE
    if kind in (b"s", b"S"):
        return STEP
    if kind == b"r":
        first, comma, end = text[1:].partition(b",")
        if not comma:
            raise Malformed("a range has two ends")
        return Action(single=True, first=hex_number(first), end=hex_number(end))
    raise Malformed(f"vCont does not know {text[:20]!r}")


@packet("c", "C")
def go_on(session: Session, data: bytes) -> Answer:
    """Go on, from another address where one is given."""
    _jump(session, data)
    return Go(session.direct(Resume()))


@packet("s", "S")
def step(session: Session, data: bytes) -> Answer:
    """One instruction, at another address where one is given."""
    _jump(session, data)
    return Go(session.direct(Resume({session.cpu: STEP})))


def _jump(session: Session, data: bytes) -> None:
    # C and S begin with a signal, which nobody here takes.
    target = data.partition(b";")[2] if b";" in data else data if len(data) > 2 else b""
    if target:
        session.debugger.registers.write(session.cpu, "pc", hex_number(target))


@packet("Z")
def insert(session: Session, data: bytes) -> Answer:
    """``Z type,addr,kind``; conditions after ``;`` are left to the debugger."""
    kind, address, size = _point(data)
    debugger = session.debugger
    if kind in (0, 1):
        regime = debugger.memory.level_of(address)
        points = debugger.control.breakpoints
        if points.find(regime, address, kind == 1) is None:
            points.add(Breakpoint(regime, address, hardware=kind == 1))
        return OK
    if kind not in _WATCH_KINDS:
        return EMPTY
    if not 0 < size <= _LARGEST_WATCH:
        return NO_SUCH
    pieces = debugger.memory.pieces(address, size)
    if pieces is None:
        return NO_MEMORY
    debugger.control.watchpoints.add(_WATCH_KINDS[kind], address, size, pieces)
    return OK


@packet("z")
def remove(session: Session, data: bytes) -> Answer:
    """``z type,addr,kind``: nothing happens where there is none."""
    kind, address, size = _point(data)
    debugger = session.debugger
    if kind in (0, 1):
        points = debugger.control.breakpoints
        for regime in (1, 2):
            found = points.find(regime, address, kind == 1)
            if found is not None:
                points.remove(found)
        return OK
    if kind not in _WATCH_KINDS:
        return EMPTY
    debugger.control.watchpoints.remove(_WATCH_KINDS[kind], address, size)
    return OK


def _point(data: bytes) -> tuple[int, int, int]:
    fields = data.partition(b";")[0].split(b",")
    if len(fields) != 3:
        raise Malformed("a point is type,address,kind")
    kind, address, size = (hex_number(field) for field in fields)
    return kind, address, size


@packet("D", "vDetach;")
def detach(_session: Session, _data: bytes) -> Answer:
    """The debugger leaves; the guest stands still until the next one comes."""
    return Leave(OK)


@packet("k")
def kill(_session: Session, _data: bytes) -> Answer:
    """The run ends, as by signal 9: lldb waits for this answer, gdb for none."""
    return Leave(b"X09", kills=True)


@packet("vKill;")
def kill_politely(_session: Session, _data: bytes) -> Answer:
    """The run ends."""
    return Leave(OK, kills=True)
