"""The socket: one client, the others refused in words, nobody let in from outside, and the run safe from clients that go."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Harness

from pkvm_emu.debug.codec import Decoder, Packet, frame
from pkvm_emu.debug.debugger import Debugger
from pkvm_emu.debug.flow import Act, Flow
from pkvm_emu.debug.places import FirstStop
from pkvm_emu.debug.serve import serve
from pkvm_emu.debug.server import listen, listen_unix
from pkvm_emu.errors import UsageError
from pkvm_emu.system import System

MODULE = (
    "served",
    """
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	x[0] = 0;
	while (x[1] == 99)
		__asm__ volatile("" ::: "memory");
	x[1] += 1;
}
""",
)


class Client:
    """A client that says what it is told."""

    def __init__(self, address: tuple[str, int] | str) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.settimeout(20)
        self._socket.connect(address)
        self._decoder = Decoder()
        self._packets: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def ask(self, packet: str) -> str:
        self.write(frame(packet.encode()))
        return self.read()

    def read(self) -> str:
        while not self._packets:
            try:
                data = self._socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return "<closed>"
            self._packets += [event.data for event in self._decoder.feed(data) if isinstance(event, Packet)]
            # The last packet of a session is followed by the end of the connection.
            with contextlib.suppress(OSError):
                self._socket.sendall(b"+")
        return self._packets.pop(0).decode()

    def close(self) -> None:
        self._socket.close()


def receive(raw: socket.socket, size: int) -> bytes:
    """Exactly so many bytes."""
    found = b""
    while len(found) < size:
        data = raw.recv(size - len(found))
        assert data, found
        found += data
    return found


Running = tuple[tuple[str, int] | str, list[str], threading.Thread]


@pytest.fixture
def served(newest: System) -> Iterator[Callable[..., Running]]:
    """Serves a run of hypercalls in a thread; the address, what came of it, and the thread."""
    threads: list[threading.Thread] = []

    def start(*arguments: int, path: str | None = None) -> Running:
        listener = listen_unix(path) if path else listen(0)
        address = path or listener.getsockname()
        results: list[str] = []
        flow = Flow([Act(f"call {n}", lambda n=n: f"{newest.call('hyp_call', n).x1}") for n in arguments])  # type: ignore[misc]  # mypy: lambda default
        debugger = Debugger(newest, flow)
        first = FirstStop(debugger, "hyp_call")

        def run() -> None:
            serve(debugger, listener, first, lambda stop: None)
            results.extend(["killed"] if flow.killed else list(flow.output.values()))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        threads.append(thread)
        return address, results, thread

    yield start
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_a_client_runs_it_to_the_end(served: Callable[..., Running]) -> None:
    address, results, thread = served(1, 2)
    client = Client(address)
    assert "swbreak+" in client.ask("qSupported:swbreak+")
    assert client.ask("?").startswith("T05thread:1;")
    assert client.ask("c") == "W00"
    thread.join(20)
    assert results == ["2", "3"]


def test_a_second_client_is_refused_in_words(served: Callable[..., Running]) -> None:
    address, _, _ = served(1)
    first = Client(address)
    assert first.ask("?").startswith("T05")
    second = Client(address)
    assert second.ask("qSupported") == "E.another debugger is attached: detach it first"
    assert second.read() == "<closed>"
    assert first.ask("qC") == "QC1"
    assert first.ask("vKill;1") == "OK"


def test_a_client_that_vanishes_leaves_the_run_where_it_is(served: Callable[..., Running]) -> None:
    address, results, thread = served(1)
    first = Client(address)
    pc = first.ask("p20")
    assert first.ask("Z0,4000084000000,4") == "OK"
    first.write(b"$m12")
    first.close()
    second = Client(address)
    assert second.ask("p20") == pc
    assert second.ask("c") == "W00"
    thread.join(20)
    assert results == ["2"]


def test_a_client_that_vanishes_while_it_runs_stops_it(served: Callable[..., Running]) -> None:
    address, results, thread = served(99)
    first = Client(address)
    assert first.ask("?").startswith("T05")
    first.write(frame(b"c"))
    first.close()
    second = Client(address)
    assert second.ask("?").startswith("T02")
    # Out of the loop: x1 is in the host context, which x0 points at in the handler; end it by force.
    assert second.ask("k") == "X09"
    thread.join(20)
    assert results == ["killed"]


def test_an_interrupt_right_after_continue_is_not_lost(served: Callable[..., Running]) -> None:
    address, _, _ = served(99)
    client = Client(address)
    for _ in range(5):
        client.write(frame(b"vCont;c") + b"\x03")
        assert client.read().startswith("T02")
    assert client.ask("vKill;1") == "OK"


def test_without_acknowledgements_nothing_but_packets_comes(served: Callable[..., Running]) -> None:
    address, _, _ = served(1)
    assert isinstance(address, tuple)
    with socket.create_connection(address, timeout=20) as raw:
        raw.sendall(frame(b"QStartNoAckMode"))
        assert receive(raw, 7) == b"+$OK#9a"
        raw.sendall(b"+" + frame(b"qC") + frame(b"qAttached"))
        assert receive(raw, 7 + 5) == frame(b"QC1") + frame(b"1")
        raw.sendall(frame(b"k"))


def test_a_broken_packet_is_asked_for_again(served: Callable[..., Running]) -> None:
    address, _, _ = served(1)
    assert isinstance(address, tuple)
    with socket.create_connection(address, timeout=20) as raw:
        raw.sendall(b"$qC#00")
        assert raw.recv(1) == b"-"
        raw.sendall(frame(b"qC"))
        once = b"+" + frame(b"QC1")
        assert receive(raw, len(once)) == once
        raw.sendall(b"-")
        assert receive(raw, 7) == frame(b"QC1")
        raw.sendall(frame(b"k"))


def test_a_unix_socket_is_for_its_owner_alone(served: Callable[..., Running], tmp_path: Path) -> None:
    path = str(tmp_path / "gdb.sock")
    address, results, thread = served(4, path=path)
    assert stat.S_IMODE(os.stat(path).st_mode) & 0o077 == 0
    client = Client(address)
    assert client.ask("c") == "W00"
    thread.join(20)
    assert results == ["5"]


def test_only_loopback_is_listened_on(newest: System) -> None:
    with listen(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_a_port_in_use_is_one_line(newest: System, tmp_path: Path) -> None:
    with listen(0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=rf"cannot listen on 127.0.0.1:{port}"):
            listen(port)
    path = str(tmp_path / "gdb.sock")
    with listen_unix(path), pytest.raises(UsageError, match="cannot listen on"):
        listen_unix(path)
    with contextlib.closing(listen_unix(path)):
        pass


def test_the_harness_of_these_tests_leaves_nothing_behind(newest: System) -> None:
    with Harness(newest) as harness:
        assert newest.machine.core.control is harness.debugger.control
    assert newest.machine.core.control is None
