"""What is supported, threads, monitor commands, and other questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.debug import codec
from pkvm_emu.debug.packets import xfer
from pkvm_emu.debug.packets.registry import EMPTY, NO_SUCH, OK, Answer, Go, Malformed, escape_text, from_hex, packet
from pkvm_emu.errors import PkvmEmuError

if TYPE_CHECKING:
    from pkvm_emu.debug.session import Session

_OURS = ("QStartNoAckMode+", "vContSupported+", "QThreadSuffixSupported+", "QListThreadsInStopReply+")


@packet("qSupported")
def supported(session: Session, data: bytes) -> Answer:
    """What this side does, from what the other side says."""
    session.client = frozenset(part.decode("ascii", "replace") for part in data.lstrip(b":").split(b";"))
    words = [f"PacketSize={codec.PACKET_LIMIT:x}", *_OURS, "qXfer:features:read+"]
    words += [f"qXfer:{name}:read+" for name in xfer.NAMES if name != "features"]
    words += [f"{name}+" for name in ("swbreak", "hwbreak") if f"{name}+" in session.client]
    words += session.debugger.extra_features
    return ";".join(words).encode()


@packet("QStartNoAckMode")
def stop_acknowledging(session: Session, _data: bytes) -> Answer:
    """Packets are not acknowledged any more, after this answer."""
    session.acknowledges_until_answer = True
    return OK


@packet("vMustReplyEmpty")
def unknown(_session: Session, _data: bytes) -> Answer:
    """An unknown ``v`` packet, as a test."""
    return EMPTY


@packet("!")
def extended(_session: Session, _data: bytes) -> Answer:
    """``target extended-remote`` works like ``target remote``."""
    return OK


@packet("qC")
def current_thread(session: Session, _data: bytes) -> Answer:
    """The CPU that stopped."""
    return b"QC%x" % (session.stop.cpu + 1)


@packet("qAttached")
def attached(_session: Session, _data: bytes) -> Answer:
    """It was there before the debugger: leaving it does not end it."""
    return b"1"


@packet("qfThreadInfo")
def threads(session: Session, _data: bytes) -> Answer:
    """The CPUs that are on; numbers from 1."""
    return b"m" + b",".join(b"%x" % (cpu + 1) for cpu in session.debugger.cpus())


@packet("qsThreadInfo")
def more_threads(_session: Session, _data: bytes) -> Answer:
    """There are no more."""
    return b"l"


@packet("qThreadExtraInfo,")
def thread_text(session: Session, data: bytes) -> Answer:
    """Exception level and symbol."""
    return escape_text(session.debugger.describe_cpu(session.cpu_of(data)).encode())


@packet("T")
def is_alive(session: Session, data: bytes) -> Answer:
    """Whether a CPU is on."""
    return OK if session.cpu_of(data) in session.debugger.cpus() else NO_SUCH


@packet("qSymbol::")
def symbols(_session: Session, _data: bytes) -> Answer:
    """Nothing has to be looked up."""
    return OK


@packet("qRcmd,")
def monitor(session: Session, data: bytes) -> Answer:
    """``monitor COMMAND``."""
    line = from_hex(data).decode("utf-8", "replace")
    try:
        answer = session.debugger.monitor(session, line)
    except PkvmEmuError as error:
        answer = f"{error}\n"
    if isinstance(answer, Go):
        session.awaits_output = True
        return answer
    return escape_text(answer.encode()) if answer else OK


@packet("qTStatus", "qOffsets", "qL", "qP")
def nothing(_session: Session, _data: bytes) -> Answer:
    """Known questions that have no answer here: tracepoints, and older forms of others."""
    return EMPTY


@packet("QDisableRandomization:", "QNonStop:")
def modes(_session: Session, data: bytes) -> Answer:
    """Nothing is random, and all CPUs stop together."""
    if data not in (b"0", b"1"):
        raise Malformed("0 or 1")
    return OK if data == b"0" else EMPTY
