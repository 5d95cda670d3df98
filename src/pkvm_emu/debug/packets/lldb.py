"""What lldb asks beyond gdb: host and process, threads in stop replies."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pkvm_emu.debug import codec
from pkvm_emu.debug.packets.registry import OK, Answer, escape_text, packet

if TYPE_CHECKING:
    from pkvm_emu.debug.session import Session

_TRIPLE = b"aarch64-unknown-none"
_CPU_TYPE_ARM64, _SUBTYPE_ALL = 0x0100_000C, 0
_PID = 1


@packet("qHostInfo")
def host(_session: Session, _data: bytes) -> Answer:
    """A 64-bit Arm without an operating system; watchpoints stop before the access."""
    return (
        b"triple:%s;ptrsize:8;endian:little;watchpoint_exceptions_received:before;default_packet_timeout:60;"
        % escape_text(_TRIPLE)
    )


@packet("qProcessInfo")
def process(_session: Session, _data: bytes) -> Answer:
    """The machine as one process."""
    return b"pid:%x;triple:%s;ptrsize:8;endian:little;" % (_PID, escape_text(_TRIPLE))


@packet("qGetPid")
def pid(_session: Session, _data: bytes) -> Answer:
    """Its number."""
    return b"%x" % _PID


@packet("QThreadSuffixSupported")
def thread_suffix(session: Session, _data: bytes) -> Answer:
    """Register packets name their thread."""
    session.is_lldb = True
    return OK


@packet("QListThreadsInStopReply")
def list_threads(session: Session, _data: bytes) -> Answer:
    """Stop replies list the CPUs and their PCs."""
    session.lists_threads = True
    return OK


@packet("vAttach;")
def attach(session: Session, _data: bytes) -> Answer:
    """Whatever number is given: there is one process."""
    return session.stop_reply()


@packet("qWatchpointSupportInfo:")
def watchpoints(_session: Session, _data: bytes) -> Answer:
    """There is no fixed number of watchpoints; lldb wants one."""
    return b"num:64;"


@packet("jThreadsInfo")
def threads_info(session: Session, _data: bytes) -> Answer:
    """The CPUs with their reasons to stop and the registers that lldb shows first."""
    rows = [session.thread_facts(cpu) for cpu in session.debugger.cpus()]
    return codec.escape(json.dumps(rows, separators=(",", ":")).encode())
