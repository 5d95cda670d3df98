"""The socket of the debug server: one client at a time, and a thread that listens for it while the guest runs.

The thread executes nothing of the guest and touches no state of it: it accepts connections, refuses the second one, and
asks run control to stop when an interrupt byte comes, when the client vanishes, or when a new one is there.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable

from pkvm_emu.debug import codec
from pkvm_emu.debug.codec import Decoder, Packet, Signal
from pkvm_emu.debug.remote import ClientGone
from pkvm_emu.debug.stops import Killed
from pkvm_emu.errors import UsageError

_INTERRUPT = b"\x03"
_CHUNK = 1 << 16
_REPEAT_SECONDS = 0.01
_REFUSAL_SECONDS = 1.0
_PATIENCE = 30
_REFUSAL = b"E.another debugger is attached: detach it first"


def listen(port: int, host: str = "127.0.0.1") -> socket.socket:
    """A TCP socket that listens; port 0 takes a free one. A host with colons is an IPv6 address.

    Raises:
        UsageError: it cannot be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=4)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"cannot listen on {host}:{port}: {reason}") from error


def listen_unix(path: str) -> socket.socket:
    """A Unix socket that listens, for this user only; a socket that nobody listens on any more is replaced.

    Raises:
        UsageError: it cannot be had.
    """
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        before = os.umask(0o177)
        try:
            found.bind(path)
        finally:
            os.umask(before)
        found.listen(4)
    except OSError as error:
        found.close()
        raise UsageError(f"cannot listen on {path}: {error.strerror or error}") from error
    return found


def _remove_stale(path: str) -> None:
    if not os.path.exists(path) or not stat.S_ISSOCK(os.stat(path).st_mode):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(path):
            os.unlink(path)


class SocketLink:
    """The way to clients over a listening socket.

    Args:
        listener: a socket that listens; closed by :meth:`close`.
        interrupt: asks run control to stop (from the thread).
        is_over: whether no client can come any more; asked now and then while there is none.
    """

    def __init__(
        self, listener: socket.socket, interrupt: Callable[[str], None], is_over: Callable[[], bool] = lambda: False
    ) -> None:
        self._is_over = is_over
        self._listener = listener
        self._interrupt = interrupt
        self._changed = threading.Condition()
        self._client: socket.socket | None = None
        #: The client that the front end knows: while the guest runs, another may have taken the place of one that is gone.
        self._served: socket.socket | None = None
        self._decoder = Decoder()
        self._inbox = bytearray()
        self._is_running = False
        self._reason = ""
        self._is_closed = False
        self._wake_out, self._wake_in = socket.socketpair()
        self._thread = threading.Thread(target=self._watch, name="pkvm_emu-debug-server", daemon=True)
        self._thread.start()

    # The side of the front end

    def wait_for_client(self) -> None:
        """Return when a client is there.

        Raises:
            Killed: none will come.
        """
        with self._changed:
            while self._client is None:
                if self._is_over():
                    raise Killed
                # With a time limit, so that Ctrl-C on the terminal is answered.
                self._changed.wait(0.2)
            self._served = self._client

    def receive(self) -> list[Packet | Signal]:
        """What has come, at least one event.

        Raises:
            ClientGone: the client is.
        """
        while True:
            with self._changed:
                client = self._served
                if client is None or client is not self._client:
                    raise ClientGone
                data, self._inbox = bytes(self._inbox), bytearray()
            if not data:
                data = _receive(client)
                if not data:
                    raise ClientGone
            events = self._decoder.feed(data)
            if events:
                return events

    def send(self, data: bytes) -> None:
        """Send; a client that is gone is noticed when something is received."""
        client = self._served
        if client is not None:
            with contextlib.suppress(OSError):
                client.sendall(data)

    def drop_client(self) -> None:
        """Close the connection."""
        with self._changed:
            client, self._served = self._served, None
            if client is self._client:
                self._client = None
        if client is not None:
            client.close()

    def running(self, is_running: bool, is_interrupted: bool = False) -> None:
        """The guest runs (and is to be interrupted at once), or stands still again."""
        with self._changed:
            self._is_running = is_running
            self._reason = ""
            if is_running and (is_interrupted or _INTERRUPT in self._inbox):
                self._reason = "interrupted"
        self._wake()

    def close(self) -> None:
        """End the thread and close everything."""
        self._is_closed = True
        self._wake()
        self._thread.join(2)
        self._served = self._client
        self.drop_client()
        for each in (self._listener, self._wake_in, self._wake_out):
            each.close()

    # The thread

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_in.send(b"w")

    def _watch(self) -> None:
        while not self._is_closed:
            with self._changed:
                watched: list[socket.socket] = [self._listener, self._wake_out]
                client = self._client if self._is_running else None
                is_asking = self._is_running and bool(self._reason)
                if client is not None:
                    watched.append(client)
            ready, _, _ = select.select(watched, [], [], _REPEAT_SECONDS if is_asking else None)
            if self._wake_out in ready:
                self._wake_out.recv(_CHUNK)
            if self._listener in ready:
                self._accept()
            with self._changed:
                if client is not None and client in ready and self._is_running and client is self._client:
                    self._take(client)
                if self._is_running and self._reason:
                    self._interrupt(self._reason)

    def _take(self, client: socket.socket) -> None:
        """Something came from the client while the guest runs."""
        data = _receive(client)
        self._inbox += data
        if not data:
            self._client = None
            self._reason = "the debugger is gone"
        elif _INTERRUPT in data:
            self._reason = "interrupted"

    def _accept(self) -> None:
        try:
            newcomer, _ = self._listener.accept()
        except OSError:
            return
        if not self._adopt(newcomer):
            threading.Thread(target=self._wait_or_refuse, args=(newcomer,), daemon=True).start()

    def _adopt(self, newcomer: socket.socket) -> bool:
        """Make a connection the client, where there is none."""
        with self._changed:
            if self._client is not None or self._is_closed:
                return False
            if newcomer.family != socket.AF_UNIX:
                newcomer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._client = newcomer
            self._decoder, self._inbox = Decoder(), bytearray()
            if self._is_running:
                self._reason = "a debugger has come"
            self._changed.notify_all()
        self._wake()
        return True

    def _wait_or_refuse(self, newcomer: socket.socket) -> None:
        """A client that has gone may not have been noticed yet; one that is there keeps its place."""
        for _ in range(_PATIENCE):
            time.sleep(_REPEAT_SECONDS)
            if self._adopt(newcomer):
                return
        _refuse(newcomer)


def _receive(client: socket.socket) -> bytes:
    try:
        return client.recv(_CHUNK)
    except OSError:
        return b""


def _refuse(newcomer: socket.socket) -> None:
    """Answer the first packet of a second client with an error that says why, and close."""
    with contextlib.suppress(OSError):
        newcomer.settimeout(_REFUSAL_SECONDS)
        newcomer.recv(_CHUNK)
        newcomer.sendall(b"+" + codec.frame(_REFUSAL))
        newcomer.recv(_CHUNK)
    newcomer.close()
