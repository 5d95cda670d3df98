"""The chunks of the hypervisor's heap, in EL2 memory: 32 bytes of header before each block, linked in address order.

A header carries a hash over itself. A block that is written past its end damages the next header, and the hypervisor
notices at the next call that looks at it: a WARN, which is a panic. Source of layout and hash: arch/arm64/kvm/hyp/nvhe/alloc.c.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pkvm_emu.hyp.errors import HypBug

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

HEADER_SIZE = 32
MIN_ALLOC = 8
_HEADER = struct.Struct("<IIQQI4x")
_HASHED = struct.Struct("<QQQ")
_NODE = 8
_GOLDEN_RATIO = 0x61C8_8646_80B5_83EB
_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1


def chunk_size(size: int) -> int:
    """Bytes that a block of ``size`` bytes takes with its header."""
    return HEADER_SIZE + max(size, MIN_ALLOC)


@dataclass(slots=True)
class Chunk:
    """One header: ``mapped_size`` bytes of mapped memory from ``address`` on, ``alloc_size`` of them in use (0: free)."""

    address: int
    alloc_size: int
    mapped_size: int

    @property
    def data(self) -> int:
        """VA of the block."""
        return self.address + HEADER_SIZE

    @property
    def is_used(self) -> bool:
        """Somebody holds the block."""
        return bool(self.alloc_size)

    @property
    def mapped_end(self) -> int:
        """Where the chunk's mapped memory ends."""
        return self.address + self.mapped_size


class ChunkList:
    """The list of chunks, as it stands in EL2 memory.

    Args:
        hyp: the hypervisor; the list head is ``heap_chunks`` in the data of its firmware.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        self._hyp = hyp
        self._head = hyp.entry("heap_chunks")
        self._set_node(self._head, self._head, self._head)

    def chunks(self) -> list[Chunk]:
        """Every chunk in address order, each header checked."""
        found = []
        node = self._next(self._head)
        while node != self._head:
            found.append(self.at(node - _NODE))
            node = self._next(node)
        return found

    def at(self, address: int) -> Chunk:
        """The chunk whose header is at ``address``.

        Raises:
            HypFault: nothing is mapped there.
            HypBug: its hash does not fit: it was overwritten, or it is no header.
        """
        raw = self._hyp.load(address, HEADER_SIZE, "the heap reads a chunk header")
        alloc_size, mapped_size, _, _, stored = _HEADER.unpack(raw)
        if stored != _hash(raw):
            raise HypBug(
                f"the heap chunk header at {address:#x} is damaged (hash {stored:#x}, it should be {_hash(raw):#x}): "
                f"the block before it was written past its end, or this is no block of hyp_alloc"
            )
        return Chunk(address, alloc_size, mapped_size)

    def next_of(self, chunk: Chunk) -> Chunk | None:
        """The next chunk, or None for the last one."""
        node = self._next(chunk.address + _NODE)
        return None if node == self._head else self.at(node - _NODE)

    def previous_of(self, chunk: Chunk) -> Chunk | None:
        """The chunk before, or None for the first one."""
        node = self._hyp.load_u64(chunk.address + _NODE + 8, "the heap follows its list")
        return None if node == self._head else self.at(node - _NODE)

    def insert(self, chunk: Chunk, after: Chunk | None) -> None:
        """Link a new chunk behind ``after`` (None: the list is empty)."""
        before = self._head if after is None else after.address + _NODE
        behind = self._next(before)
        node = chunk.address + _NODE
        self._store_sizes(chunk)
        self._set_node(node, behind, before)
        self._hyp.write_u64(before, node)
        self._hyp.write_u64(behind + 8, node)
        self._seal(node, before, behind)

    def remove(self, chunk: Chunk) -> None:
        """Take a chunk out."""
        node = chunk.address + _NODE
        behind = self._next(node)
        before = self._hyp.load_u64(node + 8, "the heap follows its list")
        self._hyp.write_u64(before, behind)
        self._hyp.write_u64(behind + 8, before)
        self._seal(before, behind)

    def update(self, chunk: Chunk) -> None:
        """Store the sizes of a chunk and its hash."""
        self._store_sizes(chunk)
        self._seal(chunk.address + _NODE)

    def _store_sizes(self, chunk: Chunk) -> None:
        self._hyp.write(chunk.address, struct.pack("<II", chunk.alloc_size & _U32, chunk.mapped_size & _U32))

    def _seal(self, *nodes: int) -> None:
        for node in nodes:
            if node != self._head:
                raw = self._hyp.load(node - _NODE, HEADER_SIZE, "the heap reads a chunk header")
                self._hyp.write(node - _NODE + _HASHED.size, _hash(raw).to_bytes(4, "little"))

    def _next(self, node: int) -> int:
        return self._hyp.load_u64(node, "the heap follows its list")

    def _set_node(self, node: int, following: int, previous: int) -> None:
        self._hyp.write(node, struct.pack("<QQ", following, previous))


def _hash(header: bytes) -> int:
    value = 0
    for word in _HASHED.unpack_from(header):
        value ^= (word * _GOLDEN_RATIO & _U64) >> 32
    return value
