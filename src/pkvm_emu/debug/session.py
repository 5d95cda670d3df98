"""One client's session: what it said it can do, which CPU it looks at, and the answers to its packets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pkvm_emu.debug import packets  # noqa: F401  (registers the commands)
from pkvm_emu.debug.packets.registers import encode
from pkvm_emu.debug.packets.registry import BAD_REQUEST, EMPTY, NO_MEMORY, Answer, Malformed, find, hex_number
from pkvm_emu.debug.registers import BY_NAME
from pkvm_emu.debug.stops import Request, Resume, Stop, StopKind
from pkvm_emu.errors import PkvmEmuError

if TYPE_CHECKING:
    from pkvm_emu.debug.debugger import Debugger

_SIGNALS = {StopKind.INTERRUPT: 2, StopKind.ERROR: 6}
_SIGTRAP = 5
#: What a stop reply tells without being asked: frame pointer, SP and PC.
_EXPEDITED = ("x29", "sp", "pc")
_LLDB_REASONS = {
    StopKind.BREAKPOINT: "breakpoint",
    StopKind.WATCHPOINT: "watchpoint",
    StopKind.STEP: "trace",
    StopKind.ERROR: "exception",
}


class Session:
    """What has been agreed with one client.

    Args:
        debugger: what it talks to.
        stop: why the guest stands still.

    Attributes:
        cpu: the CPU that register packets are about.
        stop: the last stop.
        client: what the client said it supports.
        acknowledges_until_answer: the acknowledgements end with the answer to this packet.
        is_lldb: the client is lldb.
        lists_threads: stop replies list all CPUs.
        documents: what ``qXfer`` reads, by object and annex.
        files: what ``vFile`` has open.
        libraries_seen: the state of the libraries when the client read them.
    """

    def __init__(self, debugger: Debugger, stop: Stop) -> None:
        self.debugger = debugger
        self.stop = stop
        self.cpu = stop.cpu
        self.client: frozenset[str] = frozenset()
        self.acknowledges_until_answer = False
        self.is_lldb = False
        self.lists_threads = False
        self.documents: dict[tuple[bytes, bytes], bytes] = {}
        self.files: dict[int, bytes] = {}
        self.libraries_seen: object = None
        #: What the next resume does in the place of what it says (for debuggers that cannot go back).
        self.armed: Request | None = None
        #: A monitor command lets the guest run: its answer is still to be given.
        self.awaits_output = False
        #: What that answer begins with where the guest is elsewhere then.
        self.arrival = ""

    def direct(self, resume: Resume) -> Resume:
        """How a packet lets the guest run: as it says, or back where a monitor command asked for that."""
        armed, self.armed = self.armed, None
        return resume if armed is None else Resume(back=armed)

    def answer(self, data: bytes) -> Answer:
        """The answer to one packet. Whatever it says, this does not raise for it."""
        found = find(data)
        if found is None:
            return EMPTY
        handler, rest = found
        try:
            return handler(self, rest)
        except Malformed:
            return BAD_REQUEST
        except PkvmEmuError:
            return NO_MEMORY
        except Exception as error:
            # A fault of this side must not take the guest with it: the client is told, and so is the terminal.
            self.debugger.complain(f"packet {data[:40]!r}: {type(error).__name__}: {error}")
            return b"E63"

    def at_stop(self, stop: Stop) -> None:
        """The guest has stopped."""
        self.stop = stop
        self.cpu = stop.cpu
        self.documents.clear()

    def cpu_of(self, thread: bytes) -> int:
        """The CPU of a thread id; 0 and -1 are the one that stopped.

        Raises:
            Malformed: there is no such.
        """
        text = thread.rpartition(b".")[2]
        if text in (b"-1", b"0", b""):
            return self.stop.cpu
        cpu = hex_number(text) - 1
        if cpu not in self.debugger.cpus():
            raise Malformed(f"no CPU {cpu}")
        return cpu

    # Stops

    def stop_reply(self) -> bytes:
        """``T05...`` for the last stop, ``W00`` when nothing is left to run."""
        stop = self.stop
        if stop.kind is StopKind.END:
            return b"W01" if stop.error is not None else b"W00"
        parts = [f"thread:{stop.cpu + 1:x}", f"core:{stop.cpu:x}"]
        parts += self._reason(stop)
        if self.lists_threads:
            cpus = self.debugger.cpus()
            pcs = [self.debugger.registers.read(cpu, "pc") for cpu in cpus]
            parts.append("threads:" + ",".join(f"{cpu + 1:x}" for cpu in cpus))
            parts.append("thread-pcs:" + ",".join(f"{pc:x}" for pc in pcs))
        chosen = [BY_NAME[name] for name in _EXPEDITED]
        values = self.debugger.registers.read_many(stop.cpu, chosen)
        parts += [f"{r.number:x}:{encode(v, r.bits).decode()}" for r, v in zip(chosen, values, strict=True)]
        return f"T{_SIGNALS.get(stop.kind, _SIGTRAP):02x}{';'.join(parts)};".encode()

    def _reason(self, stop: Stop) -> list[str]:
        parts = []
        if stop.kind is StopKind.BEGIN and not self.is_lldb:
            parts.append("replaylog:begin")
        if stop.kind is StopKind.LIBRARIES or self.libraries_seen not in (None, self.debugger.libraries.state()):
            parts.append("library:")
        if stop.watch is not None:
            parts.append(f"{stop.watch[0]}:{stop.watch[1]:x}")
        elif stop.kind is StopKind.BREAKPOINT:
            kind = "hwbreak" if stop.hardware else "swbreak"
            if f"{kind}+" in self.client:
                parts.append(f"{kind}:")
        if self.is_lldb and stop.kind in _LLDB_REASONS:
            parts.append(f"reason:{_LLDB_REASONS[stop.kind]}")
        return parts

    def thread_facts(self, cpu: int) -> dict[str, Any]:
        """One row of ``jThreadsInfo``."""
        chosen = [BY_NAME[name] for name in _EXPEDITED]
        values = self.debugger.registers.read_many(cpu, chosen)
        facts: dict[str, Any] = {
            "tid": cpu + 1,
            "name": f"CPU {cpu}",
            "registers": {str(r.number): encode(v, r.bits).decode() for r, v in zip(chosen, values, strict=True)},
        }
        if cpu == self.stop.cpu and self.stop.kind in _LLDB_REASONS:
            facts["reason"] = _LLDB_REASONS[self.stop.kind]
            facts["signal"] = _SIGNALS.get(self.stop.kind, _SIGTRAP)
            if self.stop.watch is not None:
                facts["description"] = f"{self.stop.watch[1]}"
        return facts
