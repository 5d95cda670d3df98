"""Runs a flow under a debug server: to the first stop alone, from there on as the clients want."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from pkvm_emu.debug.recording import RecordingLink
from pkvm_emu.debug.remote import Remote
from pkvm_emu.debug.server import SocketLink
from pkvm_emu.debug.stops import Resume, Stop, StopKind

if TYPE_CHECKING:
    from pkvm_emu.debug.debugger import Debugger
    from pkvm_emu.debug.places import FirstStop
    from pkvm_emu.debug.remote import Link


def serve(
    debugger: Debugger,
    listener: socket.socket,
    first: FirstStop,
    announce: Callable[[Stop], None],
    is_over: Callable[[], bool] = lambda: False,
    record: TextIO | None = None,
) -> None:
    """Run the debugger's flow and serve clients from the first stop on.

    Args:
        debugger: what runs; it is detached at the end.
        listener: where clients come; closed at the end.
        first: where to stand still first. An error before it stops too.
        announce: called at that stop.
        is_over: whether no client can come any more; ends the run.
        record: receives the session (:mod:`pkvm_emu.debug.recording`).
    """
    link = SocketLink(listener, debugger.control.interrupt, is_over)
    try:
        run_remote(debugger, link if record is None else RecordingLink(link, record), first, announce)
    finally:
        debugger.control.detach()
        link.close()


def run_remote(debugger: Debugger, link: Link, first: FirstStop, announce: Callable[[Stop], None]) -> None:
    """The same over any link."""
    remote = Remote(debugger, link, announce)
    control = debugger.control

    def at_stop(stop: Stop) -> Resume:
        if stop.kind is not StopKind.ERROR and not first.was_reached:
            return Resume()
        first.was_reached = True
        return remote.at_stop(stop)

    def at_end() -> None:
        if control.replay is not None and control.replay.is_active:
            control.replay.ended()
        end = control.make_stop(StopKind.END)
        failure = debugger.flow.failure
        remote.at_end(Stop(end.kind, end.cpu, end.pc, end.el, error=failure))

    control.on_stop = at_stop
    first.resolve()
    debugger.flow.run(at_end)
