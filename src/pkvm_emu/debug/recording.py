"""Sessions as text: recorded packet by packet, and played back against the same system.

One line an event: ``> packet`` from the client, ``< bytes`` to it, ``= client``, ``= running``, ``= stopped``,
``= gone``. Bytes are
Latin-1 with Python's escapes. Everything that the guest does is deterministic, so a session that is played back gives the
same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TextIO

from pkvm_emu.debug.codec import Packet, Signal
from pkvm_emu.debug.remote import ClientGone, Link
from pkvm_emu.errors import EmulatorError


def _text(data: bytes) -> str:
    return data.decode("latin-1").encode("unicode_escape").decode("ascii")


def _event_text(event: Packet | Signal) -> str:
    return f"> {_text(event.data)}" if isinstance(event, Packet) else f"! {event.name}"


class RecordingLink:
    """Passes everything on to another link, and writes it down.

    Args:
        link: the way to the client.
        file: receives the lines.
    """

    def __init__(self, link: Link, file: TextIO) -> None:
        self._link = link
        self._file = file

    def _write(self, line: str) -> None:
        self._file.write(f"{line}\n")
        self._file.flush()

    def wait_for_client(self) -> None:
        """As of the other link."""
        self._link.wait_for_client()
        self._write("= client")

    def receive(self) -> list[Packet | Signal]:
        """As of the other link."""
        try:
            events = self._link.receive()
        except ClientGone:
            self._write("= gone")
            raise
        for event in events:
            self._write(_event_text(event))
        return events

    def send(self, data: bytes) -> None:
        """As of the other link."""
        self._write(f"< {_text(data)}")
        self._link.send(data)

    def drop_client(self) -> None:
        """As of the other link."""
        self._link.drop_client()

    def running(self, is_running: bool, is_interrupted: bool = False) -> None:
        """As of the other link."""
        self._write("= running" if is_running else "= stopped")
        self._link.running(is_running, is_interrupted)


class Divergence(EmulatorError):
    """What was played back is not what was recorded."""


class ReplayLink:
    """Plays a recorded session: gives its packets, and compares what is sent.

    Args:
        lines: the recording.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines: Iterator[tuple[int, str]] = enumerate((line.rstrip("\n") for line in lines), 1)
        self._next: tuple[int, str] | None = next(self._lines, None)
        self._failure: Divergence | None = None

    @property
    def is_finished(self) -> bool:
        """Everything was played."""
        return self._next is None

    def _take(self, what: str) -> str:
        # The first difference ends the run, which has something to say too.
        if self._failure is None:
            self._failure = self._compare(what)
        if self._failure is not None:
            raise self._failure
        assert self._next is not None
        line = self._next[1]
        self._next = next(self._lines, None)
        return line

    def _compare(self, what: str) -> Divergence | None:
        if self._next is None:
            return Divergence(f"the recording has ended, and then came: {what}")
        number, line = self._next
        if line == what or (what in ("> ", "! ") and line[:2] in ("> ", "! ", "= ")):
            return None
        return Divergence(f"line {number} of the recording: {line!r}, played back: {what!r}")

    def wait_for_client(self) -> None:
        """The recording goes on with a client."""
        self._take("= client")

    def receive(self) -> list[Packet | Signal]:
        """The next packet of the recording.

        Raises:
            ClientGone: the recorded client left.
        """
        line = self._take("> ")
        if line == "= gone":
            raise ClientGone
        text = line[2:]
        if line.startswith("! "):
            return [Signal[text]]
        return [Packet(text.encode("ascii").decode("unicode_escape").encode("latin-1"))]

    def send(self, data: bytes) -> None:
        """Compare with the recording.

        Raises:
            Divergence: other bytes were recorded.
        """
        self._take(f"< {_text(data)}")

    def drop_client(self) -> None:
        """Nothing was recorded for it."""

    def running(self, is_running: bool, is_interrupted: bool = False) -> None:
        """Compare with the recording."""
        self._take("= running" if is_running else "= stopped")
