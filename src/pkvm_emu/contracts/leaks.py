"""``hyp-address-leak``: addresses of EL2 in what the host gets."""

from __future__ import annotations

from pkvm_emu.contracts.checker import Checker
from pkvm_emu.contracts.entries import Entry
from pkvm_emu.contracts.monitor import Monitor
from pkvm_emu.hyp import layout
from pkvm_emu.hyp.page_state import Component

_RESULTS = 18
_WORD = 8


class LeakedAddresses(Checker):
    """Looks at results and at what a call stored where the host reads, when EL2 returns."""

    contracts = ("hyp-address-leak",)

    def __init__(self, monitor: Monitor) -> None:
        super().__init__(monitor)
        #: Aligned words that this call stored into memory of the host: the storing instruction by PA.
        self._stores: dict[int, int] = {}

    def entered(self, entry: Entry) -> None:
        """A new call."""
        self._stores.clear()

    def access(self, pc: int, is_write: bool, pa: int, size: int) -> None:
        """What a store writes is looked at when EL2 returns."""
        if is_write and size >= _WORD and self.system.hyp.ownership.owner_of(pa & ~0xFFF) is Component.HOST:
            for word in range(pa + -pa % _WORD, pa + size - _WORD + 1, _WORD):
                self._stores[word] = pc

    def left(self, entry: Entry, registers: tuple[int, ...]) -> None:
        """Results, and shared memory."""
        # The hypervisor's own hypercalls do return addresses of EL2.
        if entry.kind != "core":
            for number in range(_RESULTS):
                value = registers[number]
                if value != entry.registers[number] and self._is_of_el2(value):
                    self.found(
                        "hyp-address-leak",
                        f"x{number} of {entry.name} is {value:#x}, {self._words(value)}",
                        self._handler(entry),
                    )
        for pa, pc in self._stores.items():
            value = self.system.machine.ram.read_u64(pa)
            if self._is_of_el2(value):
                self.found(
                    "hyp-address-leak", f"{value:#x}, {self._words(value)}, is stored where the host reads: {pa:#x}", pc
                )
        self._stores.clear()

    def _handler(self, entry: Entry) -> int:
        for module in self.system.modules.values():
            for name in module.hypercalls:
                if entry.name == f"hypercall {name} [{module.name}]":
                    return module.el2_symbol(name) or 0
        return 0

    def _is_of_el2(self, value: int) -> bool:
        hyp = self.system.hyp
        if layout.PRIVATE_BASE <= value < max(hyp.private_cursor, layout.HEAP_VA + layout.HEAP_SIZE):
            return True
        return hyp.stage1.pa_of(value) in self.system.machine.ram

    def _words(self, value: int) -> str:
        symbol = self.system.symbols.el2(value)
        return symbol if symbol is not None else "an address of EL2"
