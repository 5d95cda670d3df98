"""General-purpose pools (``lib/genalloc.c``): ``gen_pool_*`` over memory that a module gives."""

from __future__ import annotations

from errno import ENOMEM
from typing import NamedTuple

from pkvm_emu.kernel.guest_access import store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import bug
from pkvm_emu.kernel.registry import kernel_part, kernel_symbol
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.kernel.vsprintf_env import GuestFault
from pkvm_emu.machine.calling import S32, U64, Ptr
from pkvm_emu.machine.state import State, StateDict

_POOL_SIZE = 128
_NO_PHYS = (1 << 64) - 1


class Chunk(NamedTuple):
    """Memory given to a pool: virtual and physical start, bytes."""

    va: int
    pa: int
    size: int


@kernel_part
class GenPools(State):
    """The pools: granules as powers of two, chunks, and allocations by address.

    Args:
        kernel: whose pools.
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.genpools")
        self._kernel = kernel
        self.orders: StateDict[int, int] = StateDict(journal, "kernel.genpools.orders")
        self.chunks: StateDict[int, tuple[Chunk, ...]] = StateDict(journal, "kernel.genpools.chunks")
        self.live: StateDict[tuple[int, int], int] = StateDict(journal, "kernel.genpools.live")

    def of(self, pool: int) -> tuple[Chunk, ...]:
        """The chunks of a pool.

        Raises:
            GuestFault: NULL.
            KernelOops: there is no pool at that address, where a device would follow whatever lies there.
        """
        if not pool:
            raise GuestFault(pool, 8)
        if pool not in self.chunks:
            raise bug(self._kernel, "lib/genalloc.c", f"{pool:#x} is no gen_pool")
        return self.chunks[pool]

    def granule(self, pool: int) -> int:
        """Bytes that it gives multiples of; raises as :meth:`of`."""
        self.of(pool)
        return 1 << self.orders[pool]

    def allocate(self, pool: int, size: int) -> int:
        """The lowest free place that fits; 0 where there is none."""
        granule = self.granule(pool)
        size = -(-size // granule) * granule
        for chunk in self.of(pool):
            at = chunk.va
            for (owner, start), length in sorted(self.live.items()):
                if owner == pool and chunk.va <= start < chunk.va + chunk.size:
                    if start - at >= size:
                        break
                    at = start + length
            if at + size <= chunk.va + chunk.size:
                self.live[pool, at] = size
                return at
        return 0


@kernel_symbol("gen_pool_create", runs_guest=True)
def gen_pool_create(kernel: Kernel, order: S32, node: S32) -> int:
    """A pool that gives multiples of ``2**order`` bytes; NULL without memory."""
    pool = kernel.part(Slab).kmalloc(_POOL_SIZE) or 0
    if pool:
        pools = kernel.part(GenPools)
        pools.orders[pool], pools.chunks[pool] = order & 31, ()
    return pool


@kernel_symbol("devm_gen_pool_create", runs_guest=True)
def devm_gen_pool_create(kernel: Kernel, device: Ptr, order: S32, node: S32, name: Ptr) -> int:
    """The same for a device."""
    return gen_pool_create(kernel, order, node) or -ENOMEM


@kernel_symbol("gen_pool_add_owner", runs_guest=True)
def gen_pool_add_owner(kernel: Kernel, pool: Ptr, va: U64, pa: U64, size: U64, node: S32, owner: Ptr) -> int:
    """Give memory to a pool: 0."""
    pools = kernel.part(GenPools)
    pools.chunks[pool] = (*pools.of(pool), Chunk(va, pa, size))
    return 0


@kernel_symbol("gen_pool_alloc_algo_owner", runs_guest=True)
def gen_pool_alloc_algo_owner(kernel: Kernel, pool: Ptr, size: U64, algorithm: Ptr, data: Ptr, owner: Ptr) -> int:
    """Take memory from a pool, the first that fits; 0 where there is none."""
    if not pool or not size:
        return 0
    address = kernel.part(GenPools).allocate(pool, size)
    if address and owner:
        store_uint(kernel, owner, 0, 8)
    return address


@kernel_symbol("gen_pool_dma_alloc", runs_guest=True)
def gen_pool_dma_alloc(kernel: Kernel, pool: Ptr, size: U64, handle: Ptr) -> int:
    """The same with its physical address in ``*handle``."""
    address = gen_pool_alloc_algo_owner(kernel, pool, size, 0, 0, 0)
    if address and handle:
        store_uint(kernel, handle, gen_pool_virt_to_phys(kernel, pool, address), 8)
    return address


@kernel_symbol("gen_pool_free_owner", runs_guest=True)
def gen_pool_free_owner(kernel: Kernel, pool: Ptr, address: U64, size: U64, owner: Ptr) -> None:
    """Give memory back; what was not taken so is a BUG."""
    pools = kernel.part(GenPools)
    granule = pools.granule(pool)
    if pools.live.get((pool, address)) != -(-size // granule) * granule:
        raise bug(kernel, "lib/genalloc.c", f"gen_pool_free of {address:#x}, {size} bytes, which were not allocated so")
    del pools.live[pool, address]


@kernel_symbol("gen_pool_virt_to_phys")
def gen_pool_virt_to_phys(kernel: Kernel, pool: Ptr, address: U64) -> int:
    """Physical address of memory of a pool, all ones where it is of none of its chunks."""
    for chunk in kernel.part(GenPools).of(pool):
        if chunk.va <= address < chunk.va + chunk.size:
            return chunk.pa + address - chunk.va
    return _NO_PHYS


@kernel_symbol("gen_pool_size")
def gen_pool_size(kernel: Kernel, pool: Ptr) -> int:
    """Bytes of a pool."""
    return sum(chunk.size for chunk in kernel.part(GenPools).of(pool))


@kernel_symbol("gen_pool_avail")
def gen_pool_avail(kernel: Kernel, pool: Ptr) -> int:
    """Free bytes of a pool."""
    pools = kernel.part(GenPools)
    return gen_pool_size(kernel, pool) - sum(size for (owner, _), size in pools.live.items() if owner == pool)


@kernel_symbol("gen_pool_has_addr")
def gen_pool_has_addr(kernel: Kernel, pool: Ptr, address: U64, size: U64) -> int:
    """Whether a range lies in one chunk of a pool."""
    chunks = kernel.part(GenPools).of(pool)
    return any(chunk.va <= address and address + size <= chunk.va + chunk.size for chunk in chunks)


@kernel_symbol("gen_pool_destroy", runs_guest=True)
def gen_pool_destroy(kernel: Kernel, pool: Ptr) -> None:
    """Remove a pool; memory that is still taken is a BUG."""
    pools = kernel.part(GenPools)
    pools.of(pool)
    if any(owner == pool for owner, _ in pools.live):
        raise bug(kernel, "lib/genalloc.c")
    del pools.orders[pool], pools.chunks[pool]
    kernel.part(Slab).kfree(pool)
