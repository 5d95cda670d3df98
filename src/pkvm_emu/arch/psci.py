"""Power State Coordination Interface: ids, return codes, the range that the hypervisor relays.

Source: Arm DEN 0022.
"""

from __future__ import annotations

from enum import IntEnum


class PsciFunction(IntEnum):
    """Function numbers (low bits of the id) as of PSCI 0.2 and later."""

    VERSION = 0
    CPU_SUSPEND = 1
    CPU_OFF = 2
    CPU_ON = 3
    AFFINITY_INFO = 4
    MIGRATE = 5
    MIGRATE_INFO_TYPE = 6
    MIGRATE_INFO_UP_CPU = 7
    SYSTEM_OFF = 8
    SYSTEM_RESET = 9
    FEATURES = 10
    CPU_FREEZE = 11
    CPU_DEFAULT_SUSPEND = 12
    NODE_HW_STATE = 13
    SYSTEM_SUSPEND = 14
    SET_SUSPEND_MODE = 15
    STAT_RESIDENCY = 16
    STAT_COUNT = 17
    SYSTEM_RESET2 = 18
    MEM_PROTECT = 19
    MEM_PROTECT_CHECK_RANGE = 20
    SYSTEM_OFF2 = 21


class PsciReturn(IntEnum):
    """Return codes, as signed 32-bit values."""

    SUCCESS = 0
    NOT_SUPPORTED = -1
    INVALID_PARAMS = -2
    DENIED = -3
    ALREADY_ON = -4
    ON_PENDING = -5
    INTERNAL_FAILURE = -6
    NOT_PRESENT = -7
    DISABLED = -8
    INVALID_ADDRESS = -9


class AffinityState(IntEnum):
    """Results of AFFINITY_INFO."""

    ON = 0
    OFF = 1
    ON_PENDING = 2


PSCI_SMC32_BASE = 0x8400_0000
PSCI_SMC64_BASE = 0xC400_0000
PSCI_RANGE = 0x20
"""Number of ids from each base that belong to PSCI."""
PSCI_VERSION_1_1 = 0x0001_0001


def is_psci(func_id: int) -> bool:
    """True for an id in the PSCI range, defined or not (0x84000000-1f and 0xc4000000-1f)."""
    return func_id & 0xFFFF_FFFF & ~0x4000_001F == PSCI_SMC32_BASE


def psci_id(function: PsciFunction, *, smc64: bool = False) -> int:
    """The 32-bit function id."""
    return (PSCI_SMC64_BASE if smc64 else PSCI_SMC32_BASE) | int(function)


def psci_name(func_id: int) -> str | None:
    """``CPU_ON`` for 0x84000003 and 0xc4000003; None for ids outside the range or without a name."""
    if not is_psci(func_id):
        return None
    number = func_id & 0x1F
    return PsciFunction(number).name if number <= max(PsciFunction) else None
