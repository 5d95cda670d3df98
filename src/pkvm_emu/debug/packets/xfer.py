"""``qXfer``: documents that are read piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from pkvm_emu.debug import codec
from pkvm_emu.debug.features import memory_map_xml, target_xml
from pkvm_emu.debug.packets.registry import BAD_REQUEST, EMPTY, Answer, Malformed, address_and_size, packet

if TYPE_CHECKING:
    from pkvm_emu.debug.session import Session

_MOST = codec.PACKET_LIMIT // 2 - 16


def _features(_session: Session, annex: bytes) -> bytes | None:
    return target_xml() if annex == b"target.xml" else None


def _memory_map(_session: Session, annex: bytes) -> bytes | None:
    return None if annex else memory_map_xml()


def _libraries(session: Session, annex: bytes) -> bytes | None:
    if annex:
        return None
    libraries = session.debugger.libraries
    session.libraries_seen = libraries.state()
    rows = [
        f'<library name={quoteattr(library.path)}><segment address="{library.base:#x}"/></library>'
        for library in libraries.present()[1:]
    ]
    return f'<library-list version="1.0">{"".join(rows)}</library-list>'.encode()


def _exec_file(session: Session, _annex: bytes) -> bytes | None:
    return session.debugger.libraries.present()[0].path.encode()


def _threads(session: Session, annex: bytes) -> bytes | None:
    if annex:
        return None
    rows = [
        f'<thread id="{cpu + 1:x}" core="{cpu}" name="CPU {cpu}">{escape(session.debugger.describe_cpu(cpu))}</thread>'
        for cpu in session.debugger.cpus()
    ]
    return f"<threads>{''.join(rows)}</threads>".encode()


_OBJECTS: dict[bytes, Callable[[Session, bytes], bytes | None]] = {
    b"features": _features,
    b"memory-map": _memory_map,
    b"libraries": _libraries,
    b"exec-file": _exec_file,
    b"threads": _threads,
}
#: For ``qSupported``.
NAMES = tuple(name.decode() for name in _OBJECTS)


@packet("qXfer:")
def transfer(session: Session, data: bytes) -> Answer:
    """``object:read:annex:offset,length``."""
    fields = data.split(b":", 3)
    if len(fields) != 4:
        raise Malformed("qXfer takes object:read:annex:offset,length")
    name, operation, annex, place = fields
    make = _OBJECTS.get(name)
    if make is None or operation != b"read":
        return EMPTY
    offset, size = address_and_size(place)
    # The pieces of one document have to be of one document.
    if offset == 0 or (name, annex) not in session.documents:
        document = make(session, annex)
        if document is None:
            return b"E00"
        session.documents[name, annex] = document
    document = session.documents[name, annex]
    if offset > len(document) or size == 0:
        return BAD_REQUEST
    piece = document[offset : offset + min(size, _MOST)]
    return (b"m" if offset + len(piece) < len(document) else b"l") + codec.escape(piece)
