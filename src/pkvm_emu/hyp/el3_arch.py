"""Arm Architecture calls of the firmware: version, features, SoC id, the workarounds. Source: Arm DEN 0028."""

from __future__ import annotations

from pkvm_emu.arch import smccc

_VERSION_1_2 = 0x1_0002
#: JEP-106 bank and identity of Arm with the low half of a product number; and a revision.
_SOC_VERSION, _SOC_REVISION = 0x043B_0001, 0
_FEATURES: dict[int, int] = {
    smccc.SMCCC_VERSION: smccc.SUCCESS,
    smccc.SMCCC_ARCH_FEATURES: smccc.SUCCESS,
    smccc.SMCCC_ARCH_SOC_ID: smccc.SUCCESS,
    # The CPU model is not affected, or has the mitigation in hardware: the calls exist and need not be made.
    smccc.SMCCC_ARCH_WORKAROUND_1: 1,
    smccc.SMCCC_ARCH_WORKAROUND_2: smccc.NOT_REQUIRED,
    smccc.SMCCC_ARCH_WORKAROUND_3: 1,
}


class El3Arch:
    """Stateless: every answer is a constant."""

    def answer(self, function: int, x: tuple[int, ...]) -> int | None:
        """See :class:`~pkvm_emu.hyp.el3.El3Service`."""
        match function:
            case smccc.SMCCC_VERSION:
                return _VERSION_1_2
            case smccc.SMCCC_ARCH_FEATURES:
                return _FEATURES.get(x[1], smccc.NOT_SUPPORTED)
            case smccc.SMCCC_ARCH_SOC_ID:
                return {0: _SOC_VERSION, 1: _SOC_REVISION}.get(x[1], smccc.INVALID_PARAMETER)
            case smccc.SMCCC_ARCH_WORKAROUND_1 | smccc.SMCCC_ARCH_WORKAROUND_2 | smccc.SMCCC_ARCH_WORKAROUND_3:
                # No result: the registers stay as they are, x0 too.
                return x[0]
        return None
