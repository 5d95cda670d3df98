"""XArrays (``lib/xarray.c``): numbers to pointers.

A ``struct xarray`` is {u32 lock; u32 flags @4; head @8}; the head is NULL while it is empty, which inlined code looks at. The
entries are kept by its address.
"""

from __future__ import annotations

from errno import EBUSY

from pkvm_emu.kernel.guest_access import load_u64, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_part, kernel_symbol
from pkvm_emu.machine.calling import U32, U64, Ptr
from pkvm_emu.machine.state import State, StateDict

_HEAD = 8


@kernel_part
class Arrays(State):
    """Entries by the array's address and index.

    Args:
        kernel: whose arrays.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.arrays")
        self._kernel = kernel
        self.entries: StateDict[tuple[int, int], int] = StateDict(kernel.machine.journal, "kernel.arrays.entries")

    def of(self, array: int) -> dict[int, int]:
        """The entries of an array, by ascending index. An array whose head is NULL was made anew."""
        if not load_u64(self._kernel, array + _HEAD):
            return {}
        return {index: self.entries[owner, index] for owner, index in sorted(self.entries) if owner == array}

    def get(self, array: int, index: int) -> int:
        """One entry, 0 for none."""
        return self.entries.get((array, index), 0) if load_u64(self._kernel, array + _HEAD) else 0

    def set(self, array: int, index: int, entry: int) -> int:
        """Set an entry, or take it away (0); what was there."""
        if not load_u64(self._kernel, array + _HEAD):
            for owner, number in [key for key in self.entries if key[0] == array]:
                del self.entries[owner, number]
        old = self.entries.pop((array, index), 0)
        if entry:
            self.entries[array, index] = entry
        # Any pointer that is not NULL; nobody follows it.
        store_uint(self._kernel, array + _HEAD, array if any(key[0] == array for key in self.entries) else 0, 8)
        return old

    def free_index(self, array: int, low: int, high: int) -> int | None:
        """The lowest index without an entry from ``low`` to ``high``."""
        taken = self.of(array)
        return next((index for index in range(low, min(high, low + len(taken)) + 1) if index not in taken), None)


# XArrays


@kernel_symbol("xa_load", "radix_tree_lookup", runs_guest=True)
def xa_load(kernel: Kernel, array: Ptr, index: U64) -> int:
    """An entry, or NULL."""
    return kernel.part(Arrays).get(array, index)


@kernel_symbol("xa_store", "__xa_store", runs_guest=True)
def xa_store(kernel: Kernel, array: Ptr, index: U64, entry: Ptr, flags: U32) -> int:
    """Set an entry; what was there."""
    return kernel.part(Arrays).set(array, index, entry)


@kernel_symbol("xa_erase", "__xa_erase", "radix_tree_delete", runs_guest=True)
def xa_erase(kernel: Kernel, array: Ptr, index: U64) -> int:
    """Take an entry away; what was there."""
    return kernel.part(Arrays).set(array, index, 0)


@kernel_symbol("__xa_insert", runs_guest=True)
def xa_insert(kernel: Kernel, array: Ptr, index: U64, entry: Ptr, flags: U32) -> int:
    """Set an entry where there is none: 0 or -EBUSY."""
    arrays = kernel.part(Arrays)
    if arrays.get(array, index):
        return -EBUSY
    arrays.set(array, index, entry)
    return 0


@kernel_symbol("__xa_alloc", runs_guest=True)
def xa_alloc(kernel: Kernel, array: Ptr, number: Ptr, entry: Ptr, limit: U64, flags: U32) -> int:
    """Set an entry at the lowest free index of a ``struct xa_limit`` ({u32 max; u32 min}, in one register): 0 or -EBUSY."""
    index = kernel.part(Arrays).free_index(array, limit >> 32, limit & 0xFFFF_FFFF)
    if index is None:
        return -EBUSY
    kernel.part(Arrays).set(array, index, entry)
    store_uint(kernel, number, index, 4)
    return 0


@kernel_symbol("xa_find", runs_guest=True)
def xa_find(kernel: Kernel, array: Ptr, place: Ptr, last: U64, mark: U32) -> int:
    """The first entry from ``*place`` on, whose index ``*place`` becomes; NULL where there is none."""
    return _find(kernel, array, place, load_u64(kernel, place), last)


@kernel_symbol("xa_find_after", runs_guest=True)
def xa_find_after(kernel: Kernel, array: Ptr, place: Ptr, last: U64, mark: U32) -> int:
    """The first entry behind ``*place``."""
    return _find(kernel, array, place, load_u64(kernel, place) + 1, last)


def _find(kernel: Kernel, array: int, place: int, first: int, last: int) -> int:
    for index, entry in kernel.part(Arrays).of(array).items():
        if first <= index <= last:
            store_uint(kernel, place, index, 8)
            return entry
    return 0


@kernel_symbol("xa_destroy", runs_guest=True)
def xa_destroy(kernel: Kernel, array: Ptr) -> None:
    """Take all entries away."""
    for index in kernel.part(Arrays).of(array):
        kernel.part(Arrays).set(array, index, 0)
