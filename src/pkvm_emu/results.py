"""Results of hypercalls and SMCs."""

from __future__ import annotations

from typing import NamedTuple

from pkvm_emu.abi.errno import errno_name

_MASK64 = (1 << 64) - 1
SMCCC_SUCCESS = 0


class HvcResult(NamedTuple):
    """x0 to x3 after an HVC or SMC, as unsigned 64-bit numbers."""

    x0: int
    x1: int
    x2: int
    x3: int

    @property
    def is_success(self) -> bool:
        """SMCCC_RET_SUCCESS in x0."""
        return self.x0 == SMCCC_SUCCESS

    @property
    def status(self) -> str:
        """x0 in words: ``SMCCC_RET_SUCCESS``, ``SMCCC_RET_NOT_SUPPORTED``, ..."""
        names = {0: "SMCCC_RET_SUCCESS", -1: "SMCCC_RET_NOT_SUPPORTED", -2: "SMCCC_RET_NOT_REQUIRED"}
        names[-3] = "SMCCC_RET_INVALID_PARAMETER"
        value = signed(self.x0)
        return names.get(value, f"{self.x0:#x}")

    def __str__(self) -> str:
        return f"{self.status} x1={describe_value(self.x1)} x2={self.x2:#x} x3={self.x3:#x}"


def signed(value: int) -> int:
    """A 64-bit register as a signed number."""
    return value - (1 << 64) if value >> 63 else value


def describe_value(value: int) -> str:
    """A register in hexadecimal; an errno with its name.

    >>> describe_value((1 << 64) - 22)
    '-EINVAL'
    """
    number = signed(value)
    return errno_name(number) if -4096 < number < 0 else f"{value:#x}"
