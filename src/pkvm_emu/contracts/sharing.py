"""``share-without-pin`` and ``pin-left-behind``: pages that the host keeps and EL2 uses."""

from __future__ import annotations

from collections.abc import Iterator

from pkvm_emu.contracts.checker import Checker
from pkvm_emu.contracts.entries import Entry
from pkvm_emu.contracts.monitor import Monitor
from pkvm_emu.hyp.op_calls import OpCall
from pkvm_emu.machine.state import StateDict

_SHIFT = 12


class SharedPages(Checker):
    """Attributes: shared: caller of the share that was not pinned yet, by page frame number; pins: by page frame number, how
    often it is pinned and the caller of the last pin of this entry.
    """

    contracts = ("share-without-pin", "pin-left-behind")

    def __init__(self, monitor: Monitor) -> None:
        super().__init__(monitor)
        journal = self.system.machine.journal
        self.shared: StateDict[int, int] = StateDict(journal)
        self.pins: StateDict[int, tuple[int, int]] = StateDict(journal)

    def op(self, call: OpCall, result: int) -> None:
        """Share, unshare, pin, unpin."""
        if call.name == "host_share_hyp" and result == 0:
            self.shared[call.args[0]] = call.caller
        elif call.name == "host_unshare_hyp" and result == 0:
            if call.args[0] in self.shared:
                self._unpinned(call.args[0])
        elif call.name == "pin_shared_mem":
            for pfn in self._pages(call):
                # One that cannot be pinned is not used either, or the op would not be asked.
                if pfn in self.shared:
                    del self.shared[pfn]
                if result:
                    continue
                count = self.pins[pfn][0] if pfn in self.pins else 0
                self.pins[pfn] = (count + 1, call.caller)
        elif call.name == "unpin_shared_mem":
            for pfn in self._pages(call):
                count, caller = self.pins.get(pfn, (0, 0))
                if count > 1:
                    self.pins[pfn] = (count - 1, caller)
                elif count:
                    del self.pins[pfn]

    def left(self, entry: Entry, registers: tuple[int, ...]) -> None:
        """What is shared is pinned by now; what a hypercall pinned is not any more."""
        for pfn in list(self.shared):
            self._unpinned(pfn)
        for pfn, (count, caller) in list(self.pins.items()):
            if entry.kind in ("hypercall", "smc") and caller:
                self.found(
                    "pin-left-behind",
                    f"page {pfn << _SHIFT:#x} is still pinned {count} times when {entry.name} returns",
                    caller,
                )
            # Said once; a later entry is judged by its own pins.
            self.pins[pfn] = (count, 0)

    def _unpinned(self, pfn: int) -> None:
        caller = self.shared.pop(pfn)
        self.found("share-without-pin", f"host_share_hyp({pfn:#x}): page {pfn << _SHIFT:#x} was never pinned", caller)

    def _pages(self, call: OpCall) -> Iterator[int]:
        start, end = call.args[0], call.args[1]
        first = self.system.hyp.stage1.pa_of(start) >> _SHIFT
        yield from range(first, first + max(0, (end - (start & ~0xFFF) + 0xFFF) >> _SHIFT))
