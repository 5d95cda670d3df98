"""The slab allocator: ``kmalloc`` and ``kmem_cache_*``, with the mistakes that corrupt a device told by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.guest_access import misuse
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.page_allocator import PAGE_SIZE
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

#: What ``kmalloc(0)`` returns.
ZERO_SIZE_PTR = 16
KMALLOC_MAX_CACHE = 2 * PAGE_SIZE
#: Sizes by index of ``kmalloc_caches[type][index]``; 0 where there is no cache.
KMALLOC_SIZES = (0, 96, 192, *(1 << shift for shift in range(3, 14)))
_CACHE_STRUCT = 256


class Cache(NamedTuple):
    """A slab cache: name, bytes between objects, bytes of an object, constructor (0: none), made by ``kmalloc``."""

    name: str
    stride: int
    size: int
    constructor: int
    is_kmalloc: bool


class Allocation(NamedTuple):
    """A live object: its cache (0: whole pages), the size asked for, the order of its pages, who allocated it."""

    cache: int
    size: int
    order: int
    caller: int


class Freed(NamedTuple):
    """A free object: the next free one of its cache and who freed it (0: never used)."""

    next: int
    caller: int


@kernel_part
class Slab(State):
    """Slab caches and their objects, in pages of the kernel's page allocator.

    The object freed last is allocated first, as SLUB does. New memory is zeroed, as GKI kernels do
    (``CONFIG_INIT_ON_ALLOC_DEFAULT_ON``); ``init_on_alloc=0`` on the command line leaves what was there.

    Args:
        kernel: whose pages are used.
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.slab")
        self._kernel = kernel
        self._facts = line_facts(kernel.generation.kernel)
        self._always_zero = kernel.command_line.get("init_on_alloc", "1") not in ("0", "n", "N", "off")
        self.next_struct = 0
        self.caches: StateDict[int, Cache] = StateDict(journal, "kernel.slab.caches")
        self.live: StateDict[int, Allocation] = StateDict(journal, "kernel.slab.live")
        #: Strings that setting a ``charp`` parameter made.
        self.parameter_copies: StateDict[int, bool] = StateDict(journal, "kernel.slab.parameter_copies")
        self._by_size: StateDict[int, int] = StateDict(journal, "kernel.slab.by_size")
        self._heads: StateDict[int, int] = StateDict(journal, "kernel.slab.heads")
        self._free: StateDict[int, Freed] = StateDict(journal, "kernel.slab.free")

    # Caches

    def create(
        self, name: str, size: int, align: int = 8, constructor: int = 0, is_kmalloc: bool = False
    ) -> int | None:
        """Make a cache; the address of its (opaque) ``struct kmem_cache``, or None without memory.

        Args:
            name: for messages.
            size: bytes of an object.
            align: bytes; a power of two.
            constructor: EL1 function called with each new object, or 0.
            is_kmalloc: it is one of ``kmalloc_caches``.
        """
        if self.next_struct % PAGE_SIZE == 0:
            pa = self._kernel.pages.alloc_pages(0, zero=True)
            if pa is None:
                return None
            self.next_struct = self._kernel.memory.linear_va(pa)
        address = self.next_struct
        self.next_struct = address + _CACHE_STRUCT
        align = max(align, 8)
        self.caches[address] = Cache(name, -(-size // align) * align, size, constructor, is_kmalloc)
        return address

    def kmalloc_cache(self, size: int) -> int | None:
        """The cache that ``kmalloc(size)`` takes from (size at most 8 KiB)."""
        size = max(size, self._facts.kmalloc_min_size)
        fitting = min(s for s in KMALLOC_SIZES if s >= size and (s & s - 1 == 0 or self._facts.kmalloc_min_size <= 32))
        address = self._by_size.get(fitting)
        if address is None:
            name = f"kmalloc-{fitting}" if fitting < 1024 else f"kmalloc-{fitting // 1024}k"
            align = fitting if fitting & fitting - 1 == 0 else 8
            address = self.create(name, fitting, align, is_kmalloc=True)
            if address is not None:
                self._by_size[fitting] = address
        return address

    def destroy(self, cache: int) -> int:
        """Remove a cache; returns the number of objects that are still allocated (the cache stays then)."""
        alive = sum(allocation.cache == cache for allocation in self.live.values())
        if not alive:
            del self.caches[cache]
        return alive

    # Objects

    def kmalloc(self, size: int, flags: int = 0) -> int | None:
        """``size`` bytes; whole pages above 8 KiB. None without memory.

        Args:
            size: bytes; 0 gives :data:`ZERO_SIZE_PTR`.
            flags: GFP flags.
        """
        if size == 0:
            return ZERO_SIZE_PTR
        if size > KMALLOC_MAX_CACHE:
            return self._pages(size, flags)
        cache = self.kmalloc_cache(size)
        return None if cache is None else self.alloc(cache, flags, size)

    def alloc(self, cache: int, flags: int = 0, size: int = 0) -> int | None:
        """An object of a cache.

        Raises:
            ModuleError: there is no such cache.
        """
        facts = self.caches.get(cache)
        if facts is None:
            raise misuse(self._kernel, f"allocation from {cache:#x}, which is no slab cache")
        address = self._heads.get(cache, 0)
        if not address:
            self._grow(cache, facts)
            address = self._heads.get(cache, 0)
            if not address:
                return None
        self._heads[cache] = self._free[address].next
        del self._free[address]
        self.live[address] = Allocation(cache, size or facts.size, 0, self._return_address())
        if flags & self._facts.gfp_zero or (self._always_zero and not facts.constructor):
            self._kernel.memory.write(address, bytes(facts.size))
        return address

    def kfree(self, address: int, name: str = "kfree", cache: int = 0) -> None:
        """Give an object back; NULL and :data:`ZERO_SIZE_PTR` are ignored.

        Args:
            address: the object.
            name: the function, for messages.
            cache: the cache that the caller says it is from; 0: any.

        Raises:
            ModuleError: it is not allocated, was freed before, is not the start of an object, or is of another cache.
        """
        if address in (0, ZERO_SIZE_PTR):
            return
        allocation = self.live.get(address)
        if allocation is None:
            raise self._bad_free(address, name)
        if cache and allocation.cache != cache:
            raise misuse(
                self._kernel,
                f"{name}({address:#x}): the object is of {self._cache_name(allocation)}, not of "
                f"{self._cache_name(allocation._replace(cache=cache))}",
            )
        del self.live[address]
        if not allocation.cache:
            self._kernel.pages.free_pages(self._kernel.memory.linear_pa(address), allocation.order)
            self._free[address] = Freed(0, self._return_address())
            return
        self._free[address] = Freed(self._heads.get(allocation.cache, 0), self._return_address())
        self._heads[allocation.cache] = address

    def usable_size(self, address: int) -> int:
        """``ksize``: the bytes that an object really has; 0 for NULL and :data:`ZERO_SIZE_PTR`."""
        if address in (0, ZERO_SIZE_PTR):
            return 0
        allocation = self.live.get(address)
        if allocation is None:
            raise self._bad_free(address, "ksize")
        return self.caches[allocation.cache].size if allocation.cache else PAGE_SIZE << allocation.order

    def containing(self, address: int) -> tuple[int, int, str] | None:
        """The live object that an address is in: its start, the bytes it has, and the name of its cache; None without."""
        allocation = self.live.get(address)
        start = address
        if allocation is None:
            # Objects of caches are aligned, and no larger than what kmalloc takes from a cache.
            below = range(address & -8, max(address - KMALLOC_MAX_CACHE, 0), -8)
            start = next((key for key in below if key in self.live), -1)
            allocation = self.live.get(start)
            if allocation is not None and address >= start + self.usable_size(start):
                return None
        if allocation is None or not allocation.cache:
            return None
        return start, self.caches[allocation.cache].size, self._cache_name(allocation)

    def resize(self, address: int, size: int, flags: int) -> int | None:
        """``krealloc``."""
        if size == 0:
            self.kfree(address, "krealloc")
            return ZERO_SIZE_PTR
        old = self.usable_size(address)
        if 0 < size <= old:
            self.live[address] = self.live[address]._replace(size=size)
            return address
        new = self.kmalloc(size, flags)
        if new is not None and old:
            self._kernel.memory.write(new, self._kernel.memory.read(address, min(old, size)))
            self.kfree(address, "krealloc")
        return new

    # Parts

    def _pages(self, size: int, flags: int) -> int | None:
        order = ((size - 1) // PAGE_SIZE).bit_length()
        zero = self._always_zero or bool(flags & self._facts.gfp_zero)
        pa = self._kernel.pages.alloc_pages(order, zero)
        if pa is None:
            return None
        address = self._kernel.memory.linear_va(pa)
        self._free.pop(address, None)
        self.live[address] = Allocation(0, size, order, self._return_address())
        return address

    def _grow(self, cache: int, facts: Cache) -> None:
        order = ((facts.stride - 1) // PAGE_SIZE).bit_length()
        pa = self._kernel.pages.alloc_pages(order)
        if pa is None:
            return
        start = self._kernel.memory.linear_va(pa)
        objects = range(start, start + (PAGE_SIZE << order) - facts.stride + 1, facts.stride)
        if facts.constructor:
            for address in objects:
                self._kernel.call(facts.constructor, address)
        head = 0
        for address in reversed(objects):
            self._free[address] = Freed(head, 0)
            head = address
        self._heads[cache] = head

    def _return_address(self) -> int:
        return self._kernel.machine.engine.read("x30")

    def _cache_name(self, allocation: Allocation) -> str:
        known = self.caches.get(allocation.cache)
        return known.name if known is not None else f"{allocation.cache:#x}"

    def _bad_free(self, address: int, name: str) -> ModuleError:
        freed = self._free.get(address)
        if freed is not None and freed.caller:
            before = self._kernel.machine.core.describe(freed.caller - 4, 1)
            return misuse(self._kernel, f"{name}({address:#x}): the object is free already, it was freed by {before}")
        for start, allocation in self.live.items():
            if start < address < start + allocation.size:
                return misuse(
                    self._kernel,
                    f"{name}({address:#x}): this is {address - start:#x} bytes into the object at {start:#x}",
                )
        return misuse(self._kernel, f"{name}({address:#x}): nothing is allocated there")
