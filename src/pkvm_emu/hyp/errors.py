"""The end of a hypervisor: what a BUG, a WARN or a bad access of its own at EL2 is in the model.

Raised by an op or by the service of a trap, :class:`HypBug` becomes a real panic of the emulated hypervisor
(:mod:`pkvm_emu.hyp.panic`). Called from Python without a CPU behind it, the model raises it as it is.
"""

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


class HypFault(HypBug):
    """The hypervisor's own code reached for an address that EL2 does not map so: a data abort at EL2, and a panic.

    Args:
        reason: which op wanted what there.
        address: the hyp VA.
        is_write: a store, else a load.
    """

    def __init__(self, reason: str, address: int, is_write: bool) -> None:
        super().__init__(reason)
        self.address = address
        self.is_write = is_write


class HypUndefined(HypBug):
    """The hypervisor's own code executed an instruction that this CPU does not have.

    Args:
        reason: which one, and why.
        label: the instruction in the firmware.
    """

    def __init__(self, reason: str, label: str) -> None:
        super().__init__(reason)
        self.label = label


class HypMisuse(ModuleError):
    """The module used an op in a way that a device does not report and that goes wrong there in silence."""


class UnservedOp(ModuleError):
    """The module called an op that nothing here serves."""
