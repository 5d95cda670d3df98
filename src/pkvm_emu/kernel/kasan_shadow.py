"""The KASAN shadow for modules whose checks are inlined: code that reads the shadow by itself finds "accessible" everywhere.

A kernel's early shadow is one page of zeros mapped over and over, and so is this one, in blocks of 2 MiB. Instrumented functions
poison the shadow of their stack frames and clean it up again, so the shadow of the kernel stacks is memory of its own that can be
written. Real accesses fault by themselves. Source: ``arch/arm64/mm/kasan_init.c``, ``Documentation/dev-tools/kasan.rst``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.elf.va_bits import InlinedShadow
from pkvm_emu.errors import EmulatorError
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

_BLOCK, _BLOCK_ORDER = 2 << 20, 9
_TOP = 1 << 64
#: So much of the vmalloc area has a shadow.
_VMALLOC = 4 << 30


@kernel_part
class KasanShadow(State):
    """The shadow of one kernel.

    Args:
        kernel: whose address space it is in.

    Attributes:
        offset: KASAN_SHADOW_OFFSET of what is mapped; 0 before a module needed it.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.kasan_shadow")
        self._kernel = kernel
        self.offset = 0

    def open(self, shadow: InlinedShadow) -> None:
        """Map the shadow that a module was compiled for.

        Raises:
            EmulatorError: another module has another shadow already, or there is no memory.
        """
        if self.offset == shadow.offset:
            return
        if self.offset:
            raise EmulatorError(
                f"a module reads a KASAN shadow at offset {shadow.offset:#x}, and one before it at {self.offset:#x}: "
                "they are from different kernels"
            )
        self.offset = shadow.offset
        memory, ram = self._kernel.memory, self._kernel.machine.ram
        areas = memory.layout
        shared, own = self._block(shadow.accessible), self._block(shadow.accessible)
        stacks = _of(areas.stacks_vaddr, shadow)
        for start, end in (
            (memory.linear_va(ram.base), memory.linear_va(ram.base) + ram.size),
            (areas.modules_vaddr, areas.vmalloc_start + _VMALLOC),
        ):
            for va in range(_of(start, shadow), _of(end - 1, shadow) + 1, _BLOCK):
                is_of_stacks = va == stacks
                memory.map(va, own if is_of_stacks else shared, _BLOCK, "rw" if is_of_stacks else "ro")

    def _block(self, accessible: int) -> int:
        kernel = self._kernel
        pa = kernel.pages.alloc_pages(_BLOCK_ORDER, zero=True)
        if pa is None:
            raise EmulatorError("no memory for the KASAN shadow")
        if accessible:
            kernel.machine.ram.write(pa, bytes((accessible,)) * _BLOCK)
        return pa


def _of(va: int, shadow: InlinedShadow) -> int:
    """The block of shadow that the shadow of an address lies in."""
    return ((va >> shadow.shift) + shadow.offset) % _TOP & -_BLOCK
