"""``mod-prot-without-handler`` and ``slots-exhausted``: who answers, and whether there is room to register."""

from __future__ import annotations

from errno import EBUSY, ENOMEM

from pkvm_emu.contracts.checker import Checker
from pkvm_emu.contracts.entries import Entry
from pkvm_emu.contracts.monitor import Monitor
from pkvm_emu.hyp.op_calls import OpCall
from pkvm_emu.machine.state import StateDict

_SHIFT = 12
_RWX = 7


class RestrictedPages(Checker):
    """Attributes: restricted: by caller, the first page that its last call took a permission of."""

    contracts = ("mod-prot-without-handler",)

    def __init__(self, monitor: Monitor) -> None:
        super().__init__(monitor)
        self.restricted: StateDict[int, int] = StateDict(self.system.machine.journal)

    def op(self, call: OpCall, result: int) -> None:
        """A permission was taken away."""
        is_restriction = call.name.startswith("host_stage2_mod_prot") and result == 0 and call.args[1] & _RWX != _RWX
        # Without any permission the page is the module's: its accesses are translation faults, no handler is asked.
        if is_restriction and call.args[1] & _RWX:
            self.restricted[call.caller] = call.args[0]

    def left(self, entry: Entry, registers: tuple[int, ...]) -> None:
        """By now somebody has registered."""
        for caller, pfn in list(self.restricted.items()):
            del self.restricted[caller]
            if not self.system.hyp.read_word("perm_count"):
                self.found(
                    "mod-prot-without-handler",
                    f"permissions of page {pfn << _SHIFT:#x} are taken away and no permission-fault handler is registered",
                    caller,
                )


class Slots(Checker):
    """Registrations that find no slot."""

    contracts = ("slots-exhausted",)

    def op(self, call: OpCall, result: int) -> None:
        """A registration."""
        if call.name.startswith("register_") and result in (-EBUSY, -ENOMEM):
            function = self.system.symbols.describe(call.args[0], 2) if call.args else ""
            self.found("slots-exhausted", f"{call.name}({function}): every slot is taken", call.caller)

    def left(self, entry: Entry, registers: tuple[int, ...]) -> None:
        """The host registers hypercalls for the module."""
        if entry.kind == "core" and entry.name.endswith("register_hcall") and registers[1] == (1 << 64) - ENOMEM:
            self.found("slots-exhausted", "every dynamic hypercall is registered", entry.registers[1])
