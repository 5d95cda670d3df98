"""What a guest has after a call or an access of its own."""

from __future__ import annotations

from dataclasses import dataclass

from pkvm_emu.arch.esr import Esr, fault_kind

#: SMCCC_RET_NOT_SUPPORTED, in 64 and in 32 bits.
_NOT_SUPPORTED = ((1 << 64) - 1, (1 << 32) - 1)


@dataclass(frozen=True, slots=True)
class GuestCallResult:
    """What a guest has after an SMC or HVC.

    Attributes:
        registers: x0 to x17.
        exited: the hypervisor did not answer it alone: the host was asked, and answered NOT_SUPPORTED.
    """

    registers: tuple[int, ...]
    exited: bool

    @property
    def is_supported(self) -> bool:
        """x0 is not SMCCC_RET_NOT_SUPPORTED."""
        return self.registers[0] not in _NOT_SUPPORTED


@dataclass(frozen=True, slots=True)
class GuestAccess:
    """What became of a load or store of the guest.

    Attributes:
        value: what was read or written; None where stage 2 stopped it.
        esr: ESR_EL2 of the abort, or None.
        ipa: the faulting guest address, or None.
    """

    value: int | None
    esr: Esr | None = None
    ipa: int | None = None

    @property
    def ok(self) -> bool:
        """The access was made."""
        return self.esr is None

    @property
    def kind(self) -> str | None:
        """``translation`` or ``permission`` for an abort."""
        return None if self.esr is None else fault_kind(int(self.esr) & 0x3F)
