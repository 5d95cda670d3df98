"""Sorting and searching with the module's own comparison (``lib/sort.c``, ``lib/bsearch.c``, ``lib/list_sort.c``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cmp_to_key
from itertools import pairwise

from pkvm_emu.kernel.guest_access import load, load_u64, store, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import U64, Ptr

#: ``sort`` also gets the size as third argument of swap, and ``sort_r`` the private pointer behind it.
Swap = Callable[[int, int], None]


def _sort(kernel: Kernel, base: int, count: int, size: int, compare: Callable[[int, int], int], swap: Swap) -> None:
    """Heap sort in place: elements move only by ``swap``, and ``compare`` sees them in the array."""

    def sift(root: int, end: int) -> None:
        while (child := 2 * root + 1) < end:
            if child + 1 < end and compare(base + child * size, base + (child + 1) * size) < 0:
                child += 1
            if compare(base + root * size, base + child * size) >= 0:
                return
            swap(base + root * size, base + child * size)
            root = child

    for root in reversed(range(count // 2)):
        sift(root, count)
    for end in reversed(range(1, count)):
        swap(base, base + end * size)
        sift(0, end)


def _exchange(kernel: Kernel, size: int) -> Swap:
    def swap(left: int, right: int) -> None:
        first = load(kernel, left, size)
        store(kernel, left, load(kernel, right, size))
        store(kernel, right, first)

    return swap


@kernel_symbol("sort", runs_guest=True)
def sort(kernel: Kernel, base: Ptr, count: U64, size: U64, compare: Ptr, swap: Ptr) -> None:
    """Sort an array in place, not stable, by ``compare(a, b)`` and, where there is one, ``swap(a, b, size)``."""

    def exchange(left: int, right: int) -> None:
        kernel.call(swap, left, right, size)

    _sort(
        kernel,
        base,
        count,
        size,
        lambda a, b: kernel.call_s32(compare, a, b),
        exchange if swap else _exchange(kernel, size),
    )


@kernel_symbol("sort_r", runs_guest=True)
def sort_r(kernel: Kernel, base: Ptr, count: U64, size: U64, compare: Ptr, swap: Ptr, private: Ptr) -> None:
    """``sort`` with a pointer that is handed to the callbacks."""

    def exchange(left: int, right: int) -> None:
        kernel.call(swap, left, right, size, private)

    _sort(
        kernel,
        base,
        count,
        size,
        lambda a, b: kernel.call_s32(compare, a, b, private),
        exchange if swap else _exchange(kernel, size),
    )


@kernel_symbol("bsearch", runs_guest=True)
def bsearch(kernel: Kernel, key: Ptr, base: Ptr, count: U64, size: U64, compare: Ptr) -> int:
    """The element of a sorted array for which ``compare(key, element)`` is 0, or NULL."""
    while count:
        pivot = base + (count >> 1) * size
        order = kernel.call_s32(compare, key, pivot)
        if order == 0:
            return pivot
        if order > 0:
            base = pivot + size
            count -= 1
        count >>= 1
    return 0


@kernel_symbol("list_sort", runs_guest=True)
def list_sort(kernel: Kernel, private: Ptr, head: Ptr, compare: Ptr) -> None:
    """Sort a list, stable, by ``compare(private, a, b)``: positive where a belongs behind b."""
    entries: list[int] = []
    entry = load_u64(kernel, head)
    while entry != head:
        entries.append(entry)
        entry = load_u64(kernel, entry)

    def order(left: int, right: int) -> int:
        return 1 if kernel.call_s32(compare, private, left, right) > 0 else -1

    entries.sort(key=cmp_to_key(order))
    chain = [head, *entries, head]
    for previous, following in pairwise(chain):
        store_uint(kernel, previous, following, 8)
        store_uint(kernel, following + 8, previous, 8)
