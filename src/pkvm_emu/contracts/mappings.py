"""``early-mapping-left`` and ``page-left-mapped``: EL2 mappings that outlive their right."""

from __future__ import annotations

from pkvm_emu.abi.errno import is_err_value
from pkvm_emu.contracts.checker import Checker
from pkvm_emu.contracts.entries import Entry
from pkvm_emu.contracts.monitor import Monitor
from pkvm_emu.hyp.op_calls import OpCall
from pkvm_emu.hyp.page_state import Component
from pkvm_emu.machine.state import StateDict

_SHIFT = 12


class EarlyMappings(Checker):
    """Attributes: open: by hyp VA, caller, PA and size of the mapping."""

    contracts = ("early-mapping-left",)

    def __init__(self, monitor: Monitor) -> None:
        super().__init__(monitor)
        self.open: StateDict[int, tuple[int, int, int]] = StateDict(self.system.machine.journal)

    def op(self, call: OpCall, result: int) -> None:
        """Map and unmap."""
        if call.name == "linear_map_early" and result and not is_err_value(result):
            self.open[result] = (call.caller, call.args[0], call.args[1])
        elif call.name == "linear_unmap_early" and call.args[0] in self.open:
            del self.open[call.args[0]]

    def deprivileged(self) -> None:
        """None may be left."""
        for caller, pa, size in self.open.values():
            self.found(
                "early-mapping-left", f"linear_map_early({pa:#x}, {size:#x}) is still mapped at deprivilege", caller
            )


class LeftPages(Checker):
    """Attributes: mapped: by page frame number, op and caller of a mapping outside the linear map; taken: by page frame number,
    the caller that took it from the host in this entry.
    """

    contracts = ("page-left-mapped",)

    def __init__(self, monitor: Monitor) -> None:
        super().__init__(monitor)
        journal = self.system.machine.journal
        self.mapped: StateDict[int, tuple[str, int]] = StateDict(journal)
        self.taken: StateDict[int, int] = StateDict(journal)

    def op(self, call: OpCall, result: int) -> None:
        """Mappings, and pages that change hands."""
        name, args = call.name, call.args
        if name == "create_private_mapping" and result == 0:
            first, last = args[0] >> _SHIFT, args[0] + max(args[1], 1) - 1 >> _SHIFT
            self._map(call, first, last + 1 - first)
        elif name == "map_module_page" and result == 0:
            self._map(call, args[0], 1)
        elif name == "map_module_pages" and result == 0:
            self._map(call, args[0], args[2])
        elif name in ("unmap_module_page", "unmap_module_pages"):
            for pfn in range(args[0], args[0] + (args[2] if len(args) > 2 else 1)):
                self.mapped.pop(pfn, None)
        elif name in ("fixmap_map", "fixblock_map") and result:
            self._map(call, args[0] >> _SHIFT, 1 if name == "fixmap_map" else 512)
        elif name in ("fixmap_unmap", "fixblock_unmap"):
            wanted = name.replace("unmap", "map")
            for pfn in [pfn for pfn, (mapper, _) in self.mapped.items() if mapper == wanted]:
                del self.mapped[pfn]
        elif name in ("host_donate_hyp", "host_donate_hyp_prot") and result == 0:
            for pfn in range(args[0], args[0] + min(args[1], 1 << 20)):
                self.taken[pfn] = call.caller
        elif name in ("hyp_donate_host", "host_unshare_hyp") and result == 0:
            for pfn in range(args[0], args[0] + (min(args[1], 1 << 20) if name == "hyp_donate_host" else 1)):
                self._given_back(call, pfn)

    def _map(self, call: OpCall, first: int, count: int) -> None:
        for pfn in range(first, first + min(count, 1 << 20)):
            self.mapped[pfn] = (call.name, call.caller)

    def _given_back(self, call: OpCall, pfn: int) -> None:
        self.taken.pop(pfn, None)
        mapper, caller = self.mapped.pop(pfn, ("", 0))
        if mapper:
            where = self.system.symbols.describe(caller, 2)
            self.found(
                "page-left-mapped",
                f"{call.name}: page {pfn << _SHIFT:#x} goes back to the host and is still mapped by {mapper}() at {where}",
                call.caller,
            )

    def left(self, entry: Entry, registers: tuple[int, ...]) -> None:
        """A hypercall that failed has given back what it took."""
        failed = registers[0] != 0 or is_err_value(registers[1])
        for pfn, caller in list(self.taken.items()):
            del self.taken[pfn]
            owner = self.system.hyp.ownership.owner_of(pfn << _SHIFT)
            if failed and entry.kind in ("hypercall", "init") and owner is Component.HYP:
                self.found(
                    "page-left-mapped",
                    f"{entry.name} fails and keeps page {pfn << _SHIFT:#x}, which it took from the host",
                    caller,
                )
