"""The end of a hypervisor: what a BUG or a WARN at EL2 is in the model."""

from __future__ import annotations

from pkvm_emu.errors import ModuleError


class HypBug(ModuleError):
    """EL2 hit a BUG or a WARN: in every Android generation that is a panic of the whole machine.

    Args:
        reason: what was violated, in one sentence; the machine prints it beside the panic that the kernel would print.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"hypervisor BUG: {reason}")
        self.reason = reason


class UnservedOp(ModuleError):
    """The module called an op that nothing here serves."""
