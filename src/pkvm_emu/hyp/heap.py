"""The hypervisor's heap (``hyp_alloc``): 128 MiB of address space, backed by pages that the host gives on request.

The pages wait in a cache of each CPU until a block needs them. When the cache is too small the allocation fails with
-ENOMEM and the number of missing pages is kept for the host's next top-up. Source of the behaviour:
arch/arm64/kvm/hyp/nvhe/alloc.c.
"""

from __future__ import annotations

from errno import E2BIG, EBUSY, EINVAL, ENOMEM
from typing import TYPE_CHECKING

from pkvm_emu.hyp import layout
from pkvm_emu.hyp.errors import HypBug, HypFault
from pkvm_emu.hyp.heap_chunks import HEADER_SIZE, MIN_ALLOC, Chunk, ChunkList, chunk_size
from pkvm_emu.hyp.memcache import HostMemcache, admit
from pkvm_emu.hyp.pgtable import PAGE_HYP
from pkvm_emu.hyp.registry import hyp_part
from pkvm_emu.machine.pagetable import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, ZERO_PAGE
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

_U64 = (1 << 64) - 1
_MAX_MISSING = 255


def _page_align(size: int) -> int:
    return (size + PAGE_MASK) & ~PAGE_MASK & _U64


def _as_int(value: int) -> int:
    """A size that the hypervisor keeps in an ``int``: its low 32 bits, with sign."""
    return ((value & 0xFFFF_FFFF) ^ 1 << 31) - (1 << 31)


@hyp_part
class HypHeap(State):
    """The heap of one hypervisor.

    Attributes:
        errno: result of the last ``hyp_alloc``, by CPU (0 or negative).
        missing: pages that the last one lacked, by CPU; taking the number clears it.
        pages: PAs of the pages that wait in the cache of a CPU; the last one is used first.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        journal = hyp.machine.journal
        super().__init__(journal, "hyp.heap")
        self._hyp = hyp
        self._chunks = ChunkList(hyp)
        self._start, self._end = layout.HEAP_VA, layout.HEAP_VA + layout.HEAP_SIZE
        self.errno: StateDict[int, int] = StateDict(journal)
        self.missing: StateDict[int, int] = StateDict(journal)
        self.pages: StateDict[int, tuple[int, ...]] = StateDict(journal)

    @property
    def chunks(self) -> list[Chunk]:
        """The chunks in address order."""
        return self._chunks.chunks()

    # What modules call

    def alloc(self, size: int) -> int:
        """VA of ``size`` zeroed bytes (rounded up to 8), or 0; the errno of this CPU says why.

        Raises:
            HypBug: a chunk header is damaged.
            HypFault: a size beyond 4 GiB on a heap that is in use: the hypervisor's own arithmetic loses its high bits.
        """
        size = (size + MIN_ALLOC - 1) & ~(MIN_ALLOC - 1) & _U64
        error, chunk = self._find_room(size)
        self.errno[self._hyp.cpu.index] = error
        if error or chunk is None:
            return 0
        self._zero(chunk.data, size)
        return chunk.data

    def free(self, va: int) -> None:
        """Free a block; raises as :meth:`alloc` for what is none."""
        chunk = self._chunks.at(va - HEADER_SIZE & _U64)
        previous, following = self._chunks.previous_of(chunk), self._chunks.next_of(chunk)
        chunk.alloc_size = 0
        self._chunks.update(chunk)
        if following is not None and not following.is_used:
            self._merge(following, chunk)
        if previous is not None and not previous.is_used:
            self._merge(chunk, previous)

    def take_missing(self) -> int:
        """Pages that the last failed allocation of this CPU lacked (at most 255); the count is cleared."""
        cpu = self._hyp.cpu.index
        missing = self.missing.get(cpu, 0)
        self.missing[cpu] = 0
        return missing

    # What the host calls

    def refill(self, cache: HostMemcache) -> int:
        """Take all pages of a cache of the host; 0, or -ENOMEM at the first that the host cannot give."""
        while cache.count:
            pa = admit(self._hyp, cache, order=0)
            if pa is None:
                return -ENOMEM
            self._push(pa)
        return 0

    def reclaimable(self) -> int:
        """How many pages :meth:`reclaim` could give back (an estimate, as on the device)."""
        chunks = self.chunks
        waiting = sum(len(pages) for pages in self.pages.values())
        return waiting + sum(self._reclaimable(chunks, index) >> PAGE_SHIFT for index in range(len(chunks)))

    def reclaim(self, cache: HostMemcache, target: int) -> None:
        """Give up to ``target`` pages back to the host: waiting ones first, then the tails of free chunks."""
        if target <= 0:
            return
        for cpu in range(self._hyp.machine.profile.cpus):
            while self.pages.get(cpu, ()):
                self._give_back(cache, self._pop(cpu))
                target -= 1
                if target <= 0:
                    return
        for chunk in reversed(self.chunks):
            wanted = target << PAGE_SHIFT
            taken = self._destroy(chunk, wanted) or self._shrink(chunk, wanted)
            target -= taken >> PAGE_SHIFT
            if target <= 0:
                break
        cpu = self._hyp.cpu.index
        while self.pages.get(cpu, ()):
            pa = self._pop(cpu)
            self._hyp.machine.ram.write(pa, ZERO_PAGE)
            self._give_back(cache, pa)

    # Finding room

    def _find_room(self, size: int) -> tuple[int, Chunk | None]:
        chunks = self.chunks
        if not chunks:
            needed = _page_align(chunk_size(size))
            error = self._map(self._start, needed)
            if error:
                return error, None
            chunk = Chunk(self._start, size, needed)
            self._chunks.insert(chunk, None)
            return 0, chunk
        best = self._best_free(chunks, size)
        if best is not None:
            return self._recycle(chunks, best, size), chunks[best]
        return self._append(chunks[-1], size)

    def _room_of(self, chunks: list[Chunk], index: int) -> int:
        """Bytes from a chunk to the next one, mapped or not."""
        following = chunks[index + 1].address if index + 1 < len(chunks) else self._end
        return following - chunks[index].address

    def _best_free(self, chunks: list[Chunk], size: int) -> int | None:
        fitting = [
            (self._room_of(chunks, index), index)
            for index, chunk in enumerate(chunks)
            if not chunk.is_used and chunk_size(size) <= self._room_of(chunks, index)
        ]
        return min(fitting)[1] if fitting else None

    def _recycle(self, chunks: list[Chunk], index: int, size: int) -> int:
        chunk = chunks[index]
        rest = _keep_reclaimable(chunk.address + chunk_size(size))
        # The end of the last chunk serves the next allocation anyway.
        splits = index + 1 < len(chunks) and rest + chunk_size(0) < chunk.address + self._room_of(chunks, index)
        extent = rest + HEADER_SIZE - chunk.data if splits else size
        error = self._grow(chunk, self._missing_map(chunk, extent), self._room_of(chunks, index))
        if error:
            return error
        chunk.alloc_size = size
        self._chunks.update(chunk)
        if splits:
            self._install(Chunk(rest, 0, 0), chunk)
        return 0

    def _append(self, last: Chunk, size: int) -> tuple[int, Chunk | None]:
        address = _keep_reclaimable(last.address + chunk_size(last.alloc_size))
        missing = _as_int(self._missing_map(last, address + chunk_size(size) - last.data))
        error = self._grow(last, missing & _U64, self._end - last.address)
        if error:
            return error, None
        chunk = Chunk(address, size, 0)
        self._install(chunk, last)
        return 0, chunk

    @staticmethod
    def _missing_map(chunk: Chunk, size: int) -> int:
        needed = chunk_size(size)
        return _page_align(needed - chunk.mapped_size) if needed > chunk.mapped_size else 0

    def _grow(self, chunk: Chunk, size: int, room: int) -> int:
        if not size:
            return 0
        if room - chunk.mapped_size < size:
            return -EINVAL
        error = self._map(chunk.mapped_end, size)
        if not error:
            chunk.mapped_size += size
            self._chunks.update(chunk)
        return error

    def _install(self, chunk: Chunk, previous: Chunk) -> None:
        """Cut ``chunk`` off the mapped memory of ``previous``."""
        if previous.mapped_end < chunk.address or previous.data + previous.alloc_size > chunk.address:
            raise HypBug(f"a heap chunk cannot be put at {chunk.address:#x} (hyp_alloc of {chunk.alloc_size:#x} bytes)")
        chunk.mapped_size = previous.mapped_end - chunk.address
        previous.mapped_size = chunk.address - previous.address
        self._chunks.update(previous)
        self._chunks.insert(chunk, previous)

    def _merge(self, chunk: Chunk, previous: Chunk) -> None:
        if previous.mapped_end != chunk.address:
            return
        self._chunks.remove(chunk)
        previous.mapped_size += chunk.mapped_size
        self._chunks.update(previous)

    def _zero(self, va: int, size: int) -> None:
        end = va + size
        while va < end:
            part = min(end - va, PAGE_SIZE - va % PAGE_SIZE)
            self._hyp.write(va, bytes(part), f"hyp_alloc clears its {size:#x} bytes")
            va += part

    # Backing pages

    def _push(self, pa: int) -> None:
        cpu = self._hyp.cpu.index
        self.pages[cpu] = (*self.pages.get(cpu, ()), pa)

    def _pop(self, cpu: int) -> int:
        *rest, pa = self.pages[cpu]
        self.pages[cpu] = tuple(rest)
        return pa

    def _map(self, va: int, size: int) -> int:
        if (va | size) & PAGE_MASK:
            return -EINVAL
        if not va <= va + size <= self._end:
            return -E2BIG
        cpu = self._hyp.cpu.index
        waiting, needed = len(self.pages.get(cpu, ())), size >> PAGE_SHIFT
        if waiting < needed:
            self.missing[cpu] = min(needed - waiting, _MAX_MISSING)
            return -ENOMEM
        for done in range(0, size, PAGE_SIZE):
            pa = self._pop(cpu)
            error = self._hyp.stage1.map(va + done, PAGE_SIZE, pa, PAGE_HYP)
            if error:
                self._push(pa)
                self._unmap(va, done)
                # A shortage of table pages is nothing that more heap pages would help.
                return -EBUSY if error == -ENOMEM else error
        return 0

    def _unmap(self, va: int, size: int) -> None:
        for page in range(va, va + size, PAGE_SIZE):
            pa = self._hyp.to_pa(page)
            if pa is None:
                raise HypFault(f"the heap unmaps {page:#x}, which is not mapped", page, is_write=False)
            self._push(pa)
        if self._hyp.stage1.unmap(va, size) != size:
            raise HypBug(f"the heap cannot unmap {va:#x}+{size:#x}")

    def _give_back(self, cache: HostMemcache, pa: int) -> None:
        cache.push(pa, 0)
        if self._hyp.ownership.hyp_donate_host(pa >> PAGE_SHIFT, 1, origin="hyp_alloc reclaim"):
            raise HypBug(f"the heap cannot give page {pa:#x} back: {self._hyp.ownership.last_refusal}")

    # Giving back

    def _reclaimable(self, chunks: list[Chunk], index: int) -> int:
        chunk = chunks[index]
        alone = len(chunks) == 1
        whole = not chunk.is_used and not chunk.address & PAGE_MASK
        whole = whole and (alone if index == 0 else not chunks[index - 1].is_used)
        start = chunk.address if whole else _page_align(chunk.address + chunk_size(chunk.alloc_size))
        return max(0, (chunk.mapped_end & ~PAGE_MASK) - start)

    def _destroy(self, chunk: Chunk, wanted: int) -> int:
        if chunk.is_used or chunk.mapped_size > wanted:
            return 0
        previous, following = self._chunks.previous_of(chunk), self._chunks.next_of(chunk)
        if previous is None or following is None:
            # The first chunk goes only when it is the last one too.
            can_go = following is None and (previous is None or not chunk.address & PAGE_MASK)
        else:
            can_go = not chunk.address & PAGE_MASK and not previous.is_used and self._split_aligned(chunk, following)
        if not can_go:
            return 0
        self._chunks.remove(chunk)
        self._unmap(chunk.address, chunk.mapped_size)
        return chunk.mapped_size

    def _shrink(self, chunk: Chunk, wanted: int) -> int:
        start = _page_align(chunk.address + chunk_size(chunk.alloc_size))
        if chunk.mapped_end - start < PAGE_SIZE:
            return 0
        following = self._chunks.next_of(chunk)
        if not self._split_aligned(chunk, following):
            return 0
        size = min(chunk.mapped_end - start, wanted)
        self._unmap(chunk.mapped_end - size, size)
        chunk.mapped_size -= size
        self._chunks.update(chunk)
        return size

    def _split_aligned(self, chunk: Chunk, following: Chunk | None) -> bool:
        """Cut a chunk at its last page boundary, so that its pages can go; False where that is not possible."""
        if not chunk.mapped_end & PAGE_MASK:
            return True
        cut = chunk.mapped_end & ~PAGE_MASK
        if cut <= chunk.address or following is None:
            return False
        self._install(Chunk(cut, 0, 0), chunk)
        return True


def _keep_reclaimable(address: int) -> int:
    """Where a chunk may begin: at a page start, or far enough behind one for a chunk to fit in between."""
    offset = address & PAGE_MASK
    return address - offset + chunk_size(0) if 0 < offset < chunk_size(0) else address
