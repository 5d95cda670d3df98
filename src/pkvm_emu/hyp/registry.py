"""What the hypervisor serves: ops of ``struct pkvm_module_ops`` and host hypercalls, found by decorator.

>>> @op("hyp_smp_processor_id")
... def hyp_smp_processor_id(hyp) -> int:
...     return hyp.cpu.index

One file a subsystem; adding an op is adding one function with a docstring. The tables are filled by importing the packages
under ``pkvm_emu.hyp.ops`` and ``pkvm_emu.hyp.hypercalls``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Op:
    """One op: its slot's name and its Python (the hypervisor is the first argument).

    ``runs_guest`` marks ops that call back into the module: they are performed by the run loop, not inside the hook.
    """

    name: str
    function: Callable[..., Any]
    runs_guest: bool


@dataclass(frozen=True, slots=True)
class Hypercall:
    """One host hypercall by its short name (``alloc_module_va``); ``runs_guest`` as for :class:`Op`."""

    name: str
    function: Callable[..., Any]
    runs_guest: bool = False


class WithStatus(NamedTuple):
    """A hypercall's result whose x0 is not SMCCC_RET_SUCCESS: x0, then x1, x2, ..."""

    x0: int
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GuestCall:
    """A hypercall's request to run module code at EL2: the firmware calls ``function(argument)``.

    What the function returns (an int) becomes x1 of the hypercall.
    """

    function: int
    argument: int


OPS: dict[str, Op] = {}
#: Classes of which every hypervisor has one object; see :func:`hyp_part`.
PARTS: list[type[Any]] = []
HYPERCALLS: dict[str, Hypercall] = {}


C = TypeVar("C", bound=type[Any])


def hyp_part(cls: C) -> C:
    """Give every hypervisor an object of the decorated class, made with the hypervisor as its only argument.

    ``hyp.part(cls)`` is that object. Its mutable state belongs in the journal or in guest memory.
    """
    PARTS.append(cls)
    return cls


def op(*names: str, runs_guest: bool = False) -> Callable[[F], F]:
    """Serve one or more ops by the decorated function."""

    def register(function: F) -> F:
        for name in names:
            OPS[name] = Op(name, function, runs_guest)
        return function

    return register


def hypercall(*names: str, runs_guest: bool = False) -> Callable[[F], F]:
    """Serve one or more host hypercalls by the decorated function.

    The function takes x1, x2, ... and returns x1 (an int), a tuple for x1, x2, ..., a :class:`GuestCall`, or None for a
    hypercall without result. x0 becomes SMCCC_RET_SUCCESS, but with a :class:`WithStatus`.
    """

    def register(function: F) -> F:
        for name in names:
            HYPERCALLS[name] = Hypercall(name, function, runs_guest)
        return function

    return register
