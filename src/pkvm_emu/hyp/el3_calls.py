"""Vendor calls answered by a user's Python file: ``pkvm-emu run foo.ko --smc FILE.py``.

>>> from pkvm_emu.hyp.el3_calls import SmcCall, smc
>>> @smc(0xC2000834)
... def secure_register(call: SmcCall):
...     if call.x[1] == 1:
...         call.write_u64(call.x[2], 0x1234)
...         return 0
...     return 0, call.x[1]

A function returns x0, or a tuple for x0, x1, ..., or None where it does not answer. A file may also have ``setup(el3)``, which
is called once with the :class:`~pkvm_emu.hyp.el3.El3Firmware`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pkvm_emu.arch.smccc import MASK64, SVE_HINT, call_name
from pkvm_emu.errors import PkvmEmuError, UsageError
from pkvm_emu.user_code import one_line, run_user_file

if TYPE_CHECKING:
    from pkvm_emu.hyp.el3 import El3Firmware
    from pkvm_emu.machine.memory import GuestRam

F = TypeVar("F", bound=Callable[..., Any])
_MASK32 = 0xFFFF_FFFF
_MOST_RESULTS = 18


class SmcCall:
    """An SMC that is being answered.

    Attributes:
        function: its id, without hint.
        x: x0 to x17.
    """

    def __init__(self, el3: El3Firmware, ram: GuestRam, registers: tuple[int, ...]) -> None:
        self._el3, self._ram = el3, ram
        self.function = registers[0] & _MASK32 & ~SVE_HINT
        self.x = registers

    @property
    def name(self) -> str:
        """What the call is named: ``sip 0x834``."""
        return call_name(self.function)

    @property
    def caller(self) -> str:
        """Who makes it: symbol and offset, source line where there is one."""
        return self._el3.caller()

    def log(self, text: str) -> None:
        """Put a line into the report (``system.hyp.el3.log``)."""
        self._el3.note(text)

    def read(self, pa: int, size: int) -> bytes:
        """``size`` bytes at a physical address.

        Raises:
            UsageError: not in RAM.
        """
        self._check(pa, size)
        return self._ram.read(pa, size)

    def write(self, pa: int, data: bytes) -> None:
        """Write at a physical address; raises as :meth:`read`."""
        self._check(pa, len(data))
        self._ram.write(pa, data)

    def read_u64(self, pa: int) -> int:
        """64 bits at a physical address; raises as :meth:`read`."""
        return int.from_bytes(self.read(pa, 8), "little")

    def write_u64(self, pa: int, value: int) -> None:
        """Store 64 bits at a physical address; raises as :meth:`read`."""
        self.write(pa, (value & MASK64).to_bytes(8, "little"))

    def _check(self, pa: int, size: int) -> None:
        if not self._ram.base <= pa <= pa + size <= self._ram.end:
            raise UsageError(f"{self.name} at EL3: {size:#x} bytes at physical address {pa:#x} are not in RAM")


@dataclass(frozen=True, slots=True)
class _Served:
    ids: frozenset[int] | range
    function: Callable[[SmcCall], Any]


_REGISTERED: list[_Served] = []


def smc(*functions: int | range | Iterable[int]) -> Callable[[F], F]:
    """Answer SMCs of these function ids (numbers and ranges) by the decorated function, which gets an :class:`SmcCall`."""

    def register(function: F) -> F:
        for wanted in functions:
            ids = wanted if isinstance(wanted, range) else frozenset([wanted] if isinstance(wanted, int) else wanted)
            _REGISTERED.append(_Served(ids, function))
        return function

    return register


def load_calls(path: str | Path, el3: El3Firmware, ram: GuestRam) -> None:
    """Run a user's file and serve what it registers.

    Raises:
        UsageError: it cannot be read, fails, or registers nothing.
    """
    del _REGISTERED[:]
    setup = run_user_file("--smc", path).get("setup")
    try:
        if callable(setup):
            setup(el3)
    except PkvmEmuError:
        raise
    except Exception as error:
        raise UsageError(f"--smc {path}: {type(error).__name__}: {one_line(error)}") from error
    served = tuple(_REGISTERED)
    if not served and not callable(setup):
        raise UsageError(f"--smc {path}: it has neither a function with @smc(ID) nor setup(el3)")

    def handler(registers: tuple[int, ...]) -> tuple[int, ...] | None:
        call = SmcCall(el3, ram, registers)
        for row in served:
            if call.function in row.ids:
                answer = _run(row.function, call, path)
                if answer is not None:
                    return answer
        return None

    el3.serve(handler)


def _run(function: Callable[[SmcCall], Any], call: SmcCall, path: str | Path) -> tuple[int, ...] | None:
    where = f"--smc {path}: {getattr(function, '__name__', 'the function')}() for {call.function:#010x}"
    try:
        answer = function(call)
    except PkvmEmuError:
        raise
    except Exception as error:
        raise UsageError(f"{where} raised {type(error).__name__}: {one_line(error)}") from error
    if answer is None:
        return None
    values = (answer,) if isinstance(answer, int) else tuple(answer) if isinstance(answer, (tuple, list)) else None
    if values is None or len(values) > _MOST_RESULTS or not all(isinstance(value, int) for value in values):
        raise UsageError(f"{where} returned {answer!r}: wanted x0, a tuple of registers, or None")
    return tuple(value & MASK64 for value in values)
