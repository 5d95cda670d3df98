"""FF-A of the firmware: a secure partition manager that takes memory for its partitions. Source: Arm DEN 0077A (1.1).

Who calls it is the hypervisor's proxy (:mod:`pkvm_emu.hyp.ffa`); its RX and TX buffers are what the mailbox here is. It starts
without partitions:

>>> system.hyp.el3.spmc.add_partition(0x8001, uuid="486178e0-e7f8-11e3-bc5e-0002a5d5c51b")
>>> system.hyp.el3.spmc.regions        # what was shared or lent, by handle
"""

from __future__ import annotations

import struct
import uuid as uuid_module
from collections.abc import Callable
from typing import NamedTuple

from pkvm_emu.arch import ffa
from pkvm_emu.arch.ffa import (
    ACCESS_SIZE,
    COMPOSITE_SIZE,
    HOST_ID,
    PAGE_SIZE,
    VERSION_1_1,
    Ffa,
    FfaReturn,
    Range,
    Region,
)
from pkvm_emu.errors import UsageError
from pkvm_emu.machine.machine import Machine
from pkvm_emu.machine.state import State, StateDict

_SPMC_ID = 0x8000
_SECURE_ID = 1 << 15
_COUNT_ONLY = 1
_AARCH64 = 1 << 8
_DIRECT_RECEIVE = 1 << 0
_RETRIEVE_RESP_SHARE, _RETRIEVE_RESP_LEND = 1 << 3, 2 << 3
_MASK32 = 0xFFFF_FFFF
_MOST_BYTES = 1 << 20

DirectHandler = Callable[[tuple[int, ...]], tuple[int, ...]]
Answer = int | tuple[int, ...] | None


class Partition(NamedTuple):
    """A secure partition: endpoint id, UUID, number of execution contexts, property bits of its information descriptor."""

    id: int
    uuid: str
    contexts: int
    properties: int


class SharedRegion(NamedTuple):
    """Memory that a partition was given.

    Attributes:
        kind: ``share`` or ``lend``.
        receiver: the partition.
        ranges: the pages.
        attributes, permissions, tag: as the sender described it.
    """

    kind: str
    receiver: int
    ranges: tuple[Range, ...]
    attributes: int
    permissions: int
    tag: int


class Transfer(NamedTuple):
    """A transaction whose descriptor comes in fragments: its whole length, and what is there."""

    kind: str
    length: int
    data: bytes


class Reply(NamedTuple):
    """A descriptor that goes out in fragments."""

    handle: int
    data: bytes


class El3Spmc(State):
    """The secure partition manager of one machine.

    Args:
        machine: whose memory the mailbox is in.

    Attributes:
        version: what was negotiated, or 0.
        tx, rx: PA of the mailbox as the normal world names it, or 0.
        rx_full: the normal world has not released what is in its RX buffer.
        partitions: by endpoint id.
        regions: what was shared or lent and not reclaimed, by handle.
        next_handle: of the next region.
        transfers: transactions under way, by handle.
        reply: the descriptor that is being read in fragments.
    """

    def __init__(self, machine: Machine) -> None:
        journal = machine.journal
        super().__init__(journal, "el3.spmc")
        self._ram = machine.ram
        self._direct: dict[int, DirectHandler] = {}
        self.version = self.tx = self.rx = 0
        self.rx_full = False
        self.partitions: StateDict[int, Partition] = StateDict(journal)
        self.regions: StateDict[int, SharedRegion] = StateDict(journal)
        self.transfers: StateDict[int, Transfer] = StateDict(journal)
        self.reply: Reply | None = None
        self.next_handle = 1
        self._functions: dict[Ffa, Callable[[tuple[int, ...]], Answer]] = {
            Ffa.VERSION: self._version,
            Ffa.FEATURES: self._features,
            Ffa.ID_GET: lambda x: _success(HOST_ID),
            Ffa.SPM_ID_GET: lambda x: _success(_SPMC_ID),
            Ffa.RXTX_MAP: self._map,
            Ffa.RXTX_UNMAP: self._unmap,
            Ffa.RX_RELEASE: self._release,
            Ffa.PARTITION_INFO_GET: self._partition_info,
            Ffa.MEM_SHARE: lambda x: self._transfer("share", x),
            Ffa.MEM_LEND: lambda x: self._transfer("lend", x),
            Ffa.MEM_FRAG_TX: self._fragment,
            Ffa.MEM_RETRIEVE_REQ: self._retrieve,
            Ffa.MEM_FRAG_RX: self._next_fragment,
            Ffa.MEM_RECLAIM: self._reclaim,
            Ffa.MSG_SEND_DIRECT_REQ: self._direct_request,
        }

    def add_partition(
        self, endpoint: int, uuid: str, *, contexts: int = 1, properties: int = 0, direct: DirectHandler | None = None
    ) -> None:
        """Make a secure partition exist.

        Args:
            endpoint: its id; bit 15 is set in ids of the secure world.
            uuid: the UUID of its service.
            contexts: execution contexts.
            properties: further bits of its information descriptor.
            direct: answers FFA_MSG_SEND_DIRECT_REQ: gets x0 to x7, returns x3 to x7 of the response.

        Raises:
            UsageError: the id is taken or of the normal world, or the UUID is none.
        """
        if endpoint in self.partitions or not _SECURE_ID < endpoint < 1 << 16:
            raise UsageError(f"partition {endpoint:#x}: ids are from 0x8001 to 0xffff, each once")
        try:
            text = str(uuid_module.UUID(uuid))
        except ValueError as error:
            raise UsageError(f"partition {endpoint:#x}: {uuid!r} is no UUID") from error
        if direct is not None:
            self._direct[endpoint] = direct
        properties |= _AARCH64 | (_DIRECT_RECEIVE if direct is not None else 0)
        self.partitions[endpoint] = Partition(endpoint, text, contexts, properties)

    def answer(self, function: int, x: tuple[int, ...]) -> Answer:
        """See :class:`~pkvm_emu.hyp.el3.El3Service`."""
        call = Ffa.of(function)
        if call is None:
            return None
        handler = self._functions.get(call)
        return _error(FfaReturn.NOT_SUPPORTED) if handler is None else handler(x)

    # Set-up

    def _version(self, x: tuple[int, ...]) -> Answer:
        wanted = x[1]
        if wanted >> 31 or ffa.major(wanted) != 1:
            return FfaReturn.NOT_SUPPORTED
        # Both layouts of 1.x are known here, so a caller of 1.0 gets 1.0.
        self.version = min(wanted, VERSION_1_1)
        return self.version

    def _features(self, x: tuple[int, ...]) -> Answer:
        known = Ffa.of(x[1])
        if known is None or known not in self._functions:
            return _error(FfaReturn.NOT_SUPPORTED)
        # For RXTX_MAP w2 is the least size and alignment of the buffers: 0 is 4 KiB.
        return _success(0)

    def _map(self, x: tuple[int, ...]) -> Answer:
        tx, rx, pages = x[1], x[2], x[3]
        if self.tx:
            return _error(FfaReturn.DENIED)
        if pages != 1 or (tx | rx) % PAGE_SIZE or tx == rx or tx not in self._ram or rx not in self._ram:
            return _error(FfaReturn.INVALID_PARAMETERS)
        self.tx, self.rx, self.rx_full = tx, rx, False
        return _success()

    def _unmap(self, x: tuple[int, ...]) -> Answer:
        if not self.tx or x[1] >> 16 != HOST_ID:
            return _error(FfaReturn.INVALID_PARAMETERS)
        self.tx = self.rx = 0
        return _success()

    def _release(self, x: tuple[int, ...]) -> Answer:
        if not self.rx or not self.rx_full:
            return _error(FfaReturn.DENIED)
        self.rx_full = False
        return _success()

    @property
    def _busy(self) -> bool:
        # Proxies of 1.0 (android14) never release the buffer; firmware of that time writes over what is in it.
        return self.rx_full and self.version > ffa.VERSION_1_0

    def _put(self, data: bytes) -> None:
        self._ram.write(self.rx, data)
        self.rx_full = True

    def _partition_info(self, x: tuple[int, ...]) -> Answer:
        wanted = uuid_module.UUID(bytes=struct.pack("<4I", *(value & _MASK32 for value in x[1:5])))
        found = [p for p in self.partitions.values() if not wanted.int or uuid_module.UUID(p.uuid) == wanted]
        if wanted.int and not found:
            return _error(FfaReturn.INVALID_PARAMETERS)
        newer = self.version > ffa.VERSION_1_0
        if newer and x[5] & _COUNT_ONLY:
            return _success(len(found))
        if not self.rx or self._busy:
            return _error(FfaReturn.BUSY)
        rows = []
        for partition in found:
            row = struct.pack("<HHI", partition.id, partition.contexts, partition.properties)
            rows.append(
                row + (uuid_module.UUID(partition.uuid).bytes if newer and not wanted.int else bytes(16 * newer))
            )
        data = b"".join(rows)
        if len(data) > PAGE_SIZE:
            return _error(FfaReturn.NO_MEMORY)
        self._put(data)
        return _success(len(found), 24 if newer else 0)

    # Memory

    def _transfer(self, kind: str, x: tuple[int, ...]) -> Answer:
        length, part, address, pages = (value & _MASK32 for value in x[1:5])
        if not self.tx or address or pages or not 0 < part <= min(length, PAGE_SIZE):
            return _error(FfaReturn.INVALID_PARAMETERS)
        if length > _MOST_BYTES:
            return _error(FfaReturn.NO_MEMORY)
        handle, self.next_handle = self.next_handle, self.next_handle + 1
        return self._collect(handle, Transfer(kind, length, self._ram.read(self.tx, part)))

    def _fragment(self, x: tuple[int, ...]) -> Answer:
        handle, part = x[1] & _MASK32 | (x[2] & _MASK32) << 32, x[3] & _MASK32
        transfer = self.transfers.get(handle)
        if transfer is None or not self.tx or not 0 < part <= PAGE_SIZE:
            return _error(FfaReturn.INVALID_PARAMETERS)
        data = transfer.data + self._ram.read(self.tx, part)
        if len(data) > transfer.length:
            del self.transfers[handle]
            return _error(FfaReturn.INVALID_PARAMETERS)
        return self._collect(handle, transfer._replace(data=data))

    def _collect(self, handle: int, transfer: Transfer) -> Answer:
        """Go on with a descriptor of which a further part is there."""
        if len(transfer.data) < transfer.length:
            self.transfers[handle] = transfer
            return Ffa.MEM_FRAG_RX.smc32, handle & _MASK32, handle >> 32, len(transfer.data)
        self.transfers.pop(handle, None)
        region = self._check(transfer)
        if region is None:
            return _error(FfaReturn.INVALID_PARAMETERS)
        self.regions[handle] = region
        return _success(handle & _MASK32, handle >> 32)

    def _check(self, transfer: Transfer) -> SharedRegion | None:
        data = transfer.data
        if len(data) < ffa.REGION_SIZE + ACCESS_SIZE:
            return None
        head = Region.parse(data, self.version)
        if head.sender != HOST_ID or head.handle or head.endpoints != 1 or head.receiver not in self.partitions:
            return None
        if head.composite + COMPOSITE_SIZE > len(data):
            return None
        pages, count = ffa.composite_of(data, head.composite)
        ranges = ffa.ranges_of(data[head.composite + COMPOSITE_SIZE :])
        good = len(ranges) == count and sum(r.pages for r in ranges) == pages
        if not good or any(not r.pages or r.address % PAGE_SIZE for r in ranges):
            return None
        return SharedRegion(transfer.kind, head.receiver, tuple(ranges), head.attributes, head.permissions, head.tag)

    def _retrieve(self, x: tuple[int, ...]) -> Answer:
        """The hypervisor asks for the description of a region, with nothing but a handle in the request."""
        if not self.tx or not self.rx:
            return _error(FfaReturn.INVALID_PARAMETERS)
        handle = Region.parse(self._ram.read(self.tx, ffa.REGION_SIZE + ACCESS_SIZE), self.version).handle
        region = self.regions.get(handle)
        if region is None:
            return _error(FfaReturn.INVALID_PARAMETERS)
        if self._busy:
            return _error(FfaReturn.BUSY)
        kind = _RETRIEVE_RESP_LEND if region.kind == "lend" else _RETRIEVE_RESP_SHARE
        head = Region(
            HOST_ID, region.attributes, kind, handle, region.tag, 0, 1, region.receiver, region.permissions, 0
        )
        data = head.pack(self.version, list(region.ranges))
        first = data[:PAGE_SIZE]
        self._put(first)
        self.reply = Reply(handle, data) if len(data) > PAGE_SIZE else None
        return Ffa.MEM_RETRIEVE_RESP.smc32, len(data), len(first)

    def _next_fragment(self, x: tuple[int, ...]) -> Answer:
        handle, offset, reply = x[1] & _MASK32 | (x[2] & _MASK32) << 32, x[3] & _MASK32, self.reply
        if reply is None or reply.handle != handle or not 0 < offset < len(reply.data) or not self.rx:
            return _error(FfaReturn.INVALID_PARAMETERS)
        if self._busy:
            return _error(FfaReturn.BUSY)
        part = reply.data[offset : offset + PAGE_SIZE]
        self._put(part)
        return Ffa.MEM_FRAG_TX.smc32, handle & _MASK32, handle >> 32, len(part)

    def _reclaim(self, x: tuple[int, ...]) -> Answer:
        handle = x[1] & _MASK32 | (x[2] & _MASK32) << 32
        if self.transfers.pop(handle, None) is None and self.regions.pop(handle, None) is None:
            return _error(FfaReturn.INVALID_PARAMETERS)
        return _success()

    # Messages

    def _direct_request(self, x: tuple[int, ...]) -> Answer:
        sender, receiver = x[1] >> 16 & 0xFFFF, x[1] & 0xFFFF
        if sender != HOST_ID or receiver not in self.partitions:
            return _error(FfaReturn.INVALID_PARAMETERS)
        handler = self._direct.get(receiver)
        if handler is None:
            return _error(FfaReturn.DENIED)
        values = (*handler(x[:8]), 0, 0, 0, 0, 0)[:5]
        response = Ffa.MSG_SEND_DIRECT_RESP
        function = response.smc64 if x[0] >> 30 & 1 else response.smc32
        return function, receiver << 16 | sender, 0, *values


def _success(w2: int = 0, w3: int = 0) -> tuple[int, ...]:
    return Ffa.SUCCESS.smc32, 0, w2, w3, 0, 0, 0, 0


def _error(code: FfaReturn) -> tuple[int, ...]:
    return Ffa.ERROR.smc32, 0, code & _MASK32, 0, 0, 0, 0, 0
