"""Temporary mappings: one page slot a CPU, and one 2 MiB slot for all of them.

A slot's entry is written by hand: mapping sets address and valid bit, unmapping clears the valid bit. Its table pages
exist from boot on. Source: arch/arm64/kvm/hyp/nvhe/mm.c (hyp_fixmap_map, hyp_fixblock_map).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.errors import EmulatorError
from pkvm_emu.hyp import layout
from pkvm_emu.hyp.errors import HypBug, HypMisuse
from pkvm_emu.hyp.pgtable import PAGE_HYP
from pkvm_emu.hyp.registry import hyp_part
from pkvm_emu.machine.core import Stuck
from pkvm_emu.machine.pagetable import ADDR_MASK, DESC_VALID, PAGE_MASK, PAGE_SIZE
from pkvm_emu.machine.state import State

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

#: Tries after which the holder of the block slot counts as one that never releases it.
_SPIN_LIMIT = 1_000_000


@hyp_part
class Fixmap(State):
    """The slots of one hypervisor.

    Attributes:
        block_holder: the CPU that holds the lock of the block slot, or None.
        tries: how often in a row a CPU found it held.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.fixmap")
        self._hyp = hyp
        self.block_holder: int | None = None
        self.tries = 0
        cpus = hyp.machine.profile.cpus
        self._entries = [self._make_slot(layout.FIXMAP_VA + cpu * PAGE_SIZE, PAGE_SIZE) for cpu in range(cpus)]
        self._block_entry = self._make_slot(layout.FIXBLOCK_VA, layout.FIXBLOCK_SIZE)

    def _make_slot(self, va: int, size: int) -> int:
        """PA of the entry of a slot; the entry keeps its attributes and its table's reference, but is not valid."""
        hyp = self._hyp
        error = hyp.stage1.map(va, size, hyp.machine.ram.base, PAGE_HYP)
        leaf = hyp.stage1.leaf(va)
        if error or leaf is None:
            raise EmulatorError(f"the hypervisor cannot make its fixmap slot at {va:#x} (errno {-error})")
        hyp.machine.ram.write_u64(leaf.entry, leaf.descriptor & ~(ADDR_MASK | DESC_VALID))
        return leaf.entry

    def map(self, pa: int) -> int:
        """Map the page of ``pa`` read-write in this CPU's slot; the VA of ``pa``.

        The page that the slot maps already may be mapped again: nothing changes, and a shipped module does it for each word
        that it writes.

        Raises:
            HypMisuse: the slot maps another page. A device does not notice: it gives the same VA, behind which the TLB may still
                hold the page from before.
        """
        index = self._hyp.cpu.index
        entry = self._entries[index]
        old = self._hyp.machine.ram.read_u64(entry)
        if old & DESC_VALID and (old ^ pa) & ADDR_MASK & ~PAGE_MASK:
            raise HypMisuse(
                f"fixmap_map({pa:#x}) by {self._hyp.caller()} while the slot of CPU {index} maps {old & ADDR_MASK:#x}: "
                f"the slot does not nest, call fixmap_unmap() first"
            )
        self._set(entry, old, pa)
        return layout.FIXMAP_VA + index * PAGE_SIZE + (pa & PAGE_MASK)

    def unmap(self) -> None:
        """Clear this CPU's slot (nothing happens to an empty one)."""
        self._clear(self._entries[self._hyp.cpu.index])

    def map_block(self, pa: int) -> int | None:
        """Map the 2 MiB block at ``pa`` and hold the slot's lock; the VA, or None where the CPU has to try again in its next turn.

        Raises:
            HypBug: ``pa`` is not 2 MiB aligned.
            Stuck: the slot is held by this CPU, or by one that does not run: a device spins on its lock for ever.
        """
        if pa % layout.FIXBLOCK_SIZE:
            raise HypBug(f"fixblock_map({pa:#x}): the address is not 2 MiB aligned")
        if self.block_holder is not None:
            self.tries += 1
            core = self._hyp.machine.core
            can_release = self.block_holder != self._hyp.cpu.index and self.block_holder in core.in_turns
            if can_release and self.tries < _SPIN_LIMIT:
                core.engine.write("pc", core.engine.read("pc") - 4)
                return None
            raise Stuck(
                f"fixblock_map({pa:#x}) by {self._hyp.caller()} on CPU {self._hyp.cpu.index} waits for ever for the block slot, "
                f"which CPU {self.block_holder} holds since its own fixblock_map()"
            )
        self.tries = 0
        self.block_holder = self._hyp.cpu.index
        self._set(self._block_entry, self._hyp.machine.ram.read_u64(self._block_entry), pa)
        return layout.FIXBLOCK_VA

    def unmap_block(self) -> None:
        """Clear the block slot and release its lock.

        Raises:
            HypMisuse: nobody holds it. A device releases the lock once too often, and the next fixblock_map() hangs.
        """
        if self.block_holder is None:
            raise HypMisuse(f"fixblock_unmap() by {self._hyp.caller()} without fixblock_map()")
        self._clear(self._block_entry)
        self.block_holder = None

    def _set(self, entry: int, old: int, pa: int) -> None:
        self._hyp.machine.ram.write_u64(entry, old & ~ADDR_MASK | pa & ADDR_MASK | DESC_VALID)

    def _clear(self, entry: int) -> None:
        ram = self._hyp.machine.ram
        old = ram.read_u64(entry)
        if old & DESC_VALID:
            ram.write_u64(entry, old & ~DESC_VALID)
            self._hyp.machine.engine.flush_tlb()
