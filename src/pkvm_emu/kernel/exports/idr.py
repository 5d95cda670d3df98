"""Numbers for objects: ``idr`` and ``ida`` (``lib/{idr,radix-tree}.c``).

What is in one is kept here; of the structure in guest memory the members that inline code reads are kept up to date:
``struct idr`` {xarray {lock, flags, head @8}, base @16, next @20} and ``struct ida`` {xarray}.
"""

from __future__ import annotations

from errno import EINVAL, ENOENT, ENOSPC

from pkvm_emu.kernel.guest_access import load_u32, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.registry import kernel_part, kernel_symbol
from pkvm_emu.machine.calling import S32, U32, U64, Ptr
from pkvm_emu.machine.state import State, StateDict

_HEAD, _NEXT = 8, 20
_INT_MAX, _UINT_MAX = (1 << 31) - 1, (1 << 32) - 1


@kernel_part
class Idrs(State):
    """Contents of idrs and idas, by the address of the structure and the number."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.idrs")
        self._kernel = kernel
        self.entries: StateDict[tuple[int, int], int] = StateDict(kernel.machine.journal, "kernel.idrs.entries")

    def numbers(self, tree: int) -> list[int]:
        """The numbers in use, ascending."""
        return sorted(number for owner, number in self.entries if owner == tree)

    def take(self, tree: int, first: int, last: int, value: int) -> int:
        """The smallest free number from ``first`` to ``last``, or -ENOSPC."""
        number = first
        while number <= last and (tree, number) in self.entries:
            number += 1
        if number > last:
            return -ENOSPC
        self.entries[tree, number] = value
        self._mark(tree)
        return number

    def remove(self, tree: int, number: int) -> int | None:
        """Free a number; what was there."""
        value = self.entries.pop((tree, number), None)
        self._mark(tree)
        return value

    def clear(self, tree: int) -> None:
        """Free all numbers."""
        for number in self.numbers(tree):
            del self.entries[tree, number]
        self._mark(tree)

    def _mark(self, tree: int) -> None:
        # idr_is_empty() and ida_is_empty() look at the head.
        used = any(owner == tree for owner, _ in self.entries)
        store_uint(self._kernel, tree + _HEAD, tree | 2 if used else 0, 8)


# idr


@kernel_symbol("idr_alloc", runs_guest=True)
def idr_alloc(kernel: Kernel, idr: Ptr, value: Ptr, start: S32, end: S32, flags: U32) -> int:
    """The smallest free number from ``start`` to below ``end`` (0: no end); -ENOSPC, -EINVAL for a negative start."""
    if start < 0:
        warn(kernel, "lib/idr.c")
        return -EINVAL
    return kernel.part(Idrs).take(idr, start, end - 1 if end > 0 else _INT_MAX, value)


@kernel_symbol("idr_alloc_u32", runs_guest=True)
def idr_alloc_u32(kernel: Kernel, idr: Ptr, value: Ptr, number: Ptr, last: U64, flags: U32) -> int:
    """The same from ``*number`` to ``last``, which is stored; 0 or -ENOSPC."""
    got = kernel.part(Idrs).take(idr, load_u32(kernel, number), min(last, _UINT_MAX), value)
    if got >= 0:
        store_uint(kernel, number, got, 4)
    return min(got, 0)


@kernel_symbol("idr_alloc_cyclic", runs_guest=True)
def idr_alloc_cyclic(kernel: Kernel, idr: Ptr, value: Ptr, start: S32, end: S32, flags: U32) -> int:
    """The first free number behind the last one given, then from ``start``; -ENOSPC."""
    last = end - 1 if end > 0 else _INT_MAX
    part = kernel.part(Idrs)
    following = max(load_u32(kernel, idr + _NEXT), start)
    got = part.take(idr, following, last, value)
    if got < 0:
        got = part.take(idr, start, last, value)
    if got >= 0:
        store_uint(kernel, idr + _NEXT, got + 1, 4)
    return got


@kernel_symbol("idr_find")
def idr_find(kernel: Kernel, idr: Ptr, number: U64) -> int:
    """The object of a number, or NULL."""
    return kernel.part(Idrs).entries.get((idr, number), 0)


@kernel_symbol("idr_remove", runs_guest=True)
def idr_remove(kernel: Kernel, idr: Ptr, number: U64) -> int:
    """Free a number; the object that was there, or NULL."""
    return kernel.part(Idrs).remove(idr, number) or 0


@kernel_symbol("idr_replace", runs_guest=True)
def idr_replace(kernel: Kernel, idr: Ptr, value: Ptr, number: U64) -> int:
    """Put another object at a number that is in use; the old one, or ERR_PTR(-ENOENT)."""
    part = kernel.part(Idrs)
    old = part.entries.get((idr, number))
    if old is None:
        return -ENOENT
    part.entries[idr, number] = value
    return old


@kernel_symbol("idr_for_each", runs_guest=True)
def idr_for_each(kernel: Kernel, idr: Ptr, function: Ptr, data: Ptr) -> int:
    """Call ``function(number, object, data)`` for all, until one gives something else than 0, which is returned."""
    part = kernel.part(Idrs)
    for number in part.numbers(idr):
        value = part.entries.get((idr, number))
        result = 0 if value is None else kernel.call_s32(function, number, value, data)
        if result:
            return result
    return 0


@kernel_symbol("idr_get_next", "idr_get_next_ul", runs_guest=True)
def idr_get_next(kernel: Kernel, idr: Ptr, number: Ptr) -> int:
    """The object with the next number from ``*number`` on, which is stored; or NULL."""
    part = kernel.part(Idrs)
    wanted = load_u32(kernel, number)
    found = next((known for known in part.numbers(idr) if known >= wanted and part.entries[idr, known]), None)
    if found is None:
        return 0
    store_uint(kernel, number, found, 4)
    return part.entries[idr, found]


@kernel_symbol("idr_destroy", runs_guest=True)
def idr_destroy(kernel: Kernel, idr: Ptr) -> None:
    """Free all numbers; the objects stay."""
    kernel.part(Idrs).clear(idr)


@kernel_symbol("idr_preload")
def idr_preload(kernel: Kernel, flags: U32) -> None:
    """Memory beforehand: none is needed."""


# ida


@kernel_symbol("ida_alloc_range", runs_guest=True)
def ida_alloc_range(kernel: Kernel, ida: Ptr, first: U32, last: U32, flags: U32) -> int:
    """The smallest free number from ``first`` to ``last``; -ENOSPC (also where they are negative as ``int``)."""
    if first > _INT_MAX:
        return -ENOSPC
    return kernel.part(Idrs).take(ida, first, min(last, _INT_MAX), 1)


@kernel_symbol("ida_free", runs_guest=True)
def ida_free(kernel: Kernel, ida: Ptr, number: U32) -> None:
    """Free a number; one that is free already is warned about."""
    if kernel.part(Idrs).remove(ida, number) is None:
        warn(kernel, "lib/idr.c", f"ida_free called for id={number} which is not allocated.")


@kernel_symbol("ida_destroy", runs_guest=True)
def ida_destroy(kernel: Kernel, ida: Ptr) -> None:
    """Free all numbers."""
    kernel.part(Idrs).clear(ida)
