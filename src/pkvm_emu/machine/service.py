"""What the run loop and those whom it serves have in common: services, and how runs end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from pkvm_emu.errors import ModuleError

#: The immediate of an HVC that is a service, and those above it.
SERVICE_IMMEDIATE = 0x8000

ServiceResult = int | tuple[int, ...] | None


class Stuck(ModuleError):
    """The guest cannot go on: an endless loop, a WFI that nothing ends, a lock that nobody frees, or a spent budget."""


class CpuParked(ModuleError):
    """The CPU went off or to sleep inside the call, which does not come back."""


class Settled(Enum):
    """Why the engine stopped: the guest came back, something was dealt with and it goes on, there was no event, or the CPU
    went off or to sleep.
    """

    RETURNED = 0
    GOES_ON = 1
    NOTHING = 2
    PARKED = 3


@dataclass(slots=True, frozen=True)
class Service:
    """Python behind a stub.

    Attributes:
        name: for traces and messages (an op, a kernel symbol, a firmware entry).
        el: the exception level that may call it.
        nargs: how many of x0..x7 the function takes.
        function: called with ``nargs`` integers; returns x0, or a tuple for x0, x1, ..., or None to leave them.
        in_hook: answered inside the interrupt hook; False for functions that run guest code.
    """

    name: str
    el: int
    nargs: int
    function: Callable[..., ServiceResult]
    in_hook: bool = True
