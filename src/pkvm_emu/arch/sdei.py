"""Software Delegated Exception Interface: function ids, return codes, bits. Source: Arm DEN 0054.

>>> Sdei.name_of(0xC400_0025)
'SDEI_EVENT_COMPLETE'
"""

from __future__ import annotations

from enum import IntEnum

SDEI_BASE = 0xC400_0000


class Sdei(IntEnum):
    """Function numbers of the SMC64 ids."""

    VERSION = 0x20
    EVENT_REGISTER = 0x21
    EVENT_ENABLE = 0x22
    EVENT_DISABLE = 0x23
    EVENT_CONTEXT = 0x24
    EVENT_COMPLETE = 0x25
    EVENT_COMPLETE_AND_RESUME = 0x26
    EVENT_UNREGISTER = 0x27
    EVENT_STATUS = 0x28
    EVENT_GET_INFO = 0x29
    EVENT_ROUTING_SET = 0x2A
    PE_MASK = 0x2B
    PE_UNMASK = 0x2C
    INTERRUPT_BIND = 0x2D
    INTERRUPT_RELEASE = 0x2E
    EVENT_SIGNAL = 0x2F
    FEATURES = 0x30
    PRIVATE_RESET = 0x31
    SHARED_RESET = 0x32

    @property
    def smc64(self) -> int:
        """The id."""
        return SDEI_BASE | self

    @staticmethod
    def of(function: int) -> Sdei | None:
        """The function of an id, or None."""
        number = function - SDEI_BASE
        return Sdei(number) if Sdei.VERSION <= number <= Sdei.SHARED_RESET else None

    @staticmethod
    def name_of(function: int) -> str | None:
        """``SDEI_VERSION`` for 0xc4000020."""
        found = Sdei.of(function)
        return None if found is None else f"SDEI_{found.name}"


class SdeiReturn(IntEnum):
    """Return codes; negative ones are errors."""

    SUCCESS = 0
    NOT_SUPPORTED = -1
    INVALID_PARAMETERS = -2
    DENIED = -3
    PENDING = -5
    OUT_OF_RESOURCE = -10


class SdeiStatus(IntEnum):
    """Bits of EVENT_STATUS."""

    REGISTERED = 1
    ENABLED = 2
    RUNNING = 4


class SdeiInfo(IntEnum):
    """What EVENT_GET_INFO is asked for."""

    TYPE = 0
    SIGNALED = 1
    PRIORITY = 2
    ROUTING_MODE = 3
    ROUTING_AFFINITY = 4


ROUTE_ANY, ROUTE_PE = 0, 1
VERSION_1_0 = 1 << 48
FEATURE_BIND_SLOTS, FEATURE_RELATIVE_MODE = 0, 1
SIGNALED_EVENT = 0
"""The private event that software signals to a CPU."""
