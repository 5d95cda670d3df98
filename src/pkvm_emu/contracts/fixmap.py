"""``fixmap-unpaired``: the one slot of each CPU is mapped and unmapped in turns."""

from __future__ import annotations

from pkvm_emu.contracts.checker import Checker
from pkvm_emu.contracts.entries import Entry
from pkvm_emu.contracts.monitor import Monitor
from pkvm_emu.hyp.op_calls import OpCall
from pkvm_emu.machine.state import StateDict

#: Op that maps, op that unmaps.
_PAIRS = {"fixmap_map": "fixmap_unmap", "fixblock_map": "fixblock_unmap"}
_MAPS = {unmap: mapping for mapping, unmap in _PAIRS.items()}


class FixmapPairs(Checker):
    """Attributes: open: call and argument of the map that waits for its unmap, by op and CPU."""

    contracts = ("fixmap-unpaired",)

    def __init__(self, monitor: Monitor) -> None:
        super().__init__(monitor)
        self.open: StateDict[tuple[str, int], tuple[int, int]] = StateDict(self.system.machine.journal)

    def op(self, call: OpCall, result: int) -> None:
        """A map or an unmap."""
        if call.name in _PAIRS and result:
            key = (call.name, call.cpu)
            if key in self.open:
                caller, pa = self.open[key]
                self.found(
                    "fixmap-unpaired",
                    f"{call.name}({call.args[0]:#x}) while {pa:#x} is still mapped, by {self._at(caller)}",
                    call.caller,
                )
            self.open[key] = (call.caller, call.args[0])
        elif call.name in _MAPS:
            key = (_MAPS[call.name], call.cpu)
            if key in self.open:
                del self.open[key]
            else:
                self.found("fixmap-unpaired", f"{call.name}() while nothing is mapped", call.caller)

    def left(self, entry: Entry, registers: tuple[int, ...]) -> None:
        """Nothing may stay mapped."""
        for (name, cpu), (caller, pa) in list(self.open.items()):
            if cpu == entry.cpu:
                del self.open[name, cpu]
                self._say_left(name, pa, caller, entry)

    def _say_left(self, name: str, pa: int, caller: int, entry: Entry) -> None:
        self.found("fixmap-unpaired", f"{name}({pa:#x}) is still mapped when {entry.name} returns", caller)

    def _at(self, pc: int) -> str:
        return self.system.symbols.describe(pc, 2)
