"""``heap-out-of-bounds`` and ``heap-use-after-free``: memory of ``hyp_alloc`` within its size and its life."""

from __future__ import annotations

from pkvm_emu.contracts.checker import Checker
from pkvm_emu.contracts.monitor import Monitor
from pkvm_emu.hyp.op_calls import OpCall
from pkvm_emu.machine.pagetable import PAGE_SIZE
from pkvm_emu.machine.state import StateDict

_SHIFT = 12


class HeapBlocks(Checker):
    """Attributes: live: size that was asked for by hyp VA; freed: size and the caller of the free by hyp VA; pages: hyp VA of the
    heap's pages by page frame number.
    """

    contracts = ("heap-out-of-bounds", "heap-use-after-free")

    def __init__(self, monitor: Monitor) -> None:
        super().__init__(monitor)
        journal = self.system.machine.journal
        self.live: StateDict[int, int] = StateDict(journal)
        self.freed: StateDict[int, tuple[int, int]] = StateDict(journal)
        self.pages: StateDict[int, int] = StateDict(journal)

    def op(self, call: OpCall, result: int) -> None:
        """Blocks come and go."""
        if call.name == "hyp_alloc" and result:
            size = call.args[0]
            self.live[result] = size
            for va in list(self.freed):
                if va < result + size and result < va + self.freed[va][0]:
                    del self.freed[va]
            for va in range(result & -PAGE_SIZE, result + max(size, 1), PAGE_SIZE):
                pa = self.system.hyp.to_pa(va)
                if pa is not None:
                    self.pages[pa >> _SHIFT] = va
        elif call.name == "hyp_free" and call.args[0] in self.live:
            self.freed[call.args[0]] = (self.live.pop(call.args[0]), call.caller)

    def access(self, pc: int, is_write: bool, pa: int, size: int) -> None:
        """Is it inside a block that lives?"""
        page = self.pages.get(pa >> _SHIFT)
        if page is None:
            return
        va = page + (pa & PAGE_SIZE - 1)
        what = f"{'store to' if is_write else 'load of'} {size} bytes at {va:#x}"
        for block, length in self.live.items():
            if block <= va and va + size <= block + length:
                return
        for block, (length, caller) in self.freed.items():
            if block <= va < block + length:
                by = self.system.symbols.describe(caller, 2)
                self.found("heap-use-after-free", f"{what}, in the block of {length} bytes that was freed at {by}", pc)
                return
        self.found("heap-out-of-bounds", f"{what}{self._nearest(va)}", pc)

    def _nearest(self, va: int) -> str:
        if not self.live:
            return ", where no block is"
        block = min(self.live, key=lambda start: min(abs(va - start), abs(va - start - self.live[start])))
        length = self.live[block]
        beyond = va - block - length
        where = (
            f"{beyond} bytes behind the end"
            if beyond >= 0
            else "across the end"
            if va >= block
            else f"{block - va} bytes before"
        )
        return f", {where} of the block of {length} bytes at {block:#x}"
