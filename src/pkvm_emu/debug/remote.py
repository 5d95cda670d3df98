"""The front end that speaks the remote protocol: answers packets while the guest stands still.

It knows a :class:`Link`, not a socket, so a recorded session is played back through the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from pkvm_emu.debug import codec
from pkvm_emu.debug.codec import Packet, Signal
from pkvm_emu.debug.packets.registry import Go, Leave
from pkvm_emu.debug.session import Session
from pkvm_emu.debug.stops import Killed, Resume, Stop, StopKind

if TYPE_CHECKING:
    from pkvm_emu.debug.debugger import Debugger


class ClientGone(Exception):
    """The other side closed the connection."""


class Link(Protocol):
    """The way to one client at a time."""

    def wait_for_client(self) -> None:
        """Return when a client is there."""

    def receive(self) -> list[Packet | Signal]:
        """What has come, at least one.

        Raises:
            ClientGone: nothing will.
        """

    def send(self, data: bytes) -> None:
        """Send bytes; a client that is gone is noticed by :meth:`receive`."""

    def drop_client(self) -> None:
        """Close the connection."""

    def running(self, is_running: bool, is_interrupted: bool = False) -> None:
        """The guest runs: watch for an interrupt (one may have come already), until it does not."""


class Remote:
    """Serves one client after the other.

    Args:
        debugger: what is debugged.
        link: the way to the clients.
        announce: called once, when the guest stands still for the first time.
    """

    def __init__(self, debugger: Debugger, link: Link, announce: Callable[[Stop], None] = lambda stop: None) -> None:
        self._debugger = debugger
        self._link = link
        self._announce: Callable[[Stop], None] | None = announce
        self._session: Session | None = None
        self._acknowledges = True
        self._last = b""
        self._backlog: list[Packet | Signal] = []
        self._is_running = False
        self._resume = Resume()

    def at_stop(self, stop: Stop) -> Resume:
        """Serve until the client lets the guest run (``RunControl.on_stop``).

        Raises:
            Killed: the client ends the run.
        """
        if stop.kind is StopKind.LIBRARIES and not self._wants_libraries():
            return self._resume
        if self._is_running:
            self._link.running(False)
            self._debugger.control.forget_interrupt()
            self._is_running = False
        if self._announce is not None:
            announce, self._announce = self._announce, None
            announce(stop)
        if self._session is not None:
            self._report(stop)
        while True:
            if self._session is None:
                self._link.wait_for_client()
                self._session, self._acknowledges = Session(self._debugger, stop), True
            resume = self._serve()
            if resume is not None:
                self._resume = resume
                self._is_running = True
                is_interrupted = Signal.INTERRUPT in self._backlog
                self._backlog.clear()
                self._link.running(True, is_interrupted)
                return resume

    def at_end(self, stop: Stop) -> None:
        """Nothing is left to run: a client that waits is told so. One that comes now finds the system as it is."""
        if self._is_running:
            self._link.running(False)
            self._debugger.control.forget_interrupt()
            self._is_running = False
        if self._session is not None:
            self._report(stop)
            self._leave()

    def _wants_libraries(self) -> bool:
        session = self._session
        return session is not None and not session.is_lldb and self._is_running

    def _report(self, stop: Stop) -> None:
        session = self._session
        assert session is not None
        session.at_stop(stop)
        if session.awaits_output:
            # The answer to a monitor command is what it found; the client knows of no stop.
            session.awaits_output = False
            text, session.arrival = session.arrival or stop.text, ""
            if text and not stop.text:
                text = f"{text}: {self._debugger.describe_cpu(stop.cpu)}"
            self._send(f"{text}\n".encode().hex().encode() if text else b"OK")
            return
        if stop.text and stop.kind is not StopKind.INTERRUPT:
            self._send(b"O" + f"{stop.text}\n".encode().hex().encode())
        self._send(session.stop_reply())

    def _serve(self) -> Resume | None:
        """Answer packets; how to go on, or None when the client has left."""
        while True:
            try:
                events = self._link.receive()
            except ClientGone:
                self._leave()
                return None
            for index, event in enumerate(events):
                if isinstance(event, Signal):
                    self._take(event)
                    continue
                outcome = self._answer(event.data)
                if isinstance(outcome, Resume):
                    self._backlog = events[index + 1 :]
                    return outcome
                if outcome:
                    return None

    def _take(self, signal: Signal) -> None:
        if signal is Signal.NAK:
            self._link.send(codec.frame(self._last))
        elif signal is Signal.BROKEN and self._acknowledges:
            self._link.send(b"-")
        # An interrupt finds the guest standing still: its stop is known already.

    def _answer(self, data: bytes) -> Resume | bool:
        """Answer one packet: how to go on, True when the client leaves, False for the next packet."""
        session = self._session
        assert session is not None
        if self._acknowledges:
            self._link.send(b"+")
        answer = session.answer(data)
        if isinstance(answer, Go):
            return answer.resume
        if isinstance(answer, Leave):
            self._send(answer.answer)
            self._leave()
            if answer.kills:
                raise Killed
            return True
        self._send(answer)
        if session.acknowledges_until_answer:
            self._acknowledges = session.acknowledges_until_answer = False
        return False

    def _send(self, answer: bytes) -> None:
        self._last = answer
        self._link.send(codec.frame(answer))

    def _leave(self) -> None:
        """The client is gone: what it had set goes too, and the guest stands still."""
        control = self._debugger.control
        control.breakpoints.clear()
        control.watchpoints.clear()
        self._debugger.memory.physical = False
        self._debugger.memory.level = None
        self._session = None
        self._link.drop_client()
