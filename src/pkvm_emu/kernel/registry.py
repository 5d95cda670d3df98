"""Exported kernel symbols served by Python.

A function is served by writing it with annotated parameters and a decorator; a variable by a function that gives its
first contents:

>>> @kernel_symbol("strlen")
... def strlen(kernel, s: Ptr) -> int:
...     return len(kernel.memory.read_cstr(s))

Users add their own the same way, from a file given with ``--kernel``. The registry is per process and filled by importing
the packages under ``pkvm_emu.kernel.exports``; a kernel copies it when it boots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pkvm_emu.machine.calling import Ptr  # noqa: F401 (the docstring's example)

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type[Any])


@dataclass(frozen=True, slots=True)
class KernelFunction:
    """An exported function.

    Attributes:
        name: the symbol.
        function: its Python; takes the kernel first.
        runs_guest: it calls back into guest code, so it is performed by the run loop and not inside the hook.
        companions: the modules that export it on a device, where the kernel itself does not; the Python stands in for them
            while none of them is loaded.
    """

    name: str
    function: Callable[..., Any]
    runs_guest: bool
    companions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KernelVariable:
    """An exported variable.

    Attributes:
        name: the symbol.
        size: bytes.
        initial: gives its first contents from the kernel; shorter contents are padded with zeros.
        section: ``data`` (writable), ``rodata``, or ``percpu``: one copy a CPU, the contents of all one after the other.
    """

    name: str
    size: int
    initial: Callable[[Any], bytes]
    section: str = "data"


#: Filled as the files that serve symbols are imported: see :func:`find_function`.
FUNCTIONS: dict[str, KernelFunction] = {}
VARIABLES: dict[str, KernelVariable] = {}


def find_function(name: str) -> KernelFunction | None:
    """The Python that serves a function, imported if need be."""
    if name not in FUNCTIONS and name not in VARIABLES:
        _import(name)
    return FUNCTIONS.get(name)


def _import(name: str) -> None:
    # The files that serve symbols import this one.
    from pkvm_emu.kernel import exports

    exports.import_for(name)


def find_variable(name: str) -> KernelVariable | None:
    """The declaration of a served variable, imported if need be."""
    if name not in FUNCTIONS and name not in VARIABLES:
        _import(name)
    return VARIABLES.get(name)


def kernel_symbol(*names: str, runs_guest: bool = False, companion: str | tuple[str, ...] = ()) -> Callable[[F], F]:
    """Serve one or more exported functions by the decorated one.

    Args:
        names: the symbols.
        runs_guest: the function calls guest code (callbacks, hypercalls).
        companion: the module, or the modules one of which, exports the symbols on a device. A module whose ``depends=`` names
            it links to the Python where the companion is not given, and the report says so; a companion that is given is
            used instead.
    """
    companions = (companion,) if isinstance(companion, str) else companion

    def register(function: F) -> F:
        for name in names:
            FUNCTIONS[name] = KernelFunction(name, function, runs_guest, companions)
        return function

    return register


def kernel_variable(name: str, size: int, section: str = "data") -> Callable[[F], F]:
    """Serve an exported variable of ``size`` bytes; the decorated function gives its first contents."""

    def register(function: F) -> F:
        VARIABLES[name] = KernelVariable(name, size, function, section)
        return function

    return register


def kernel_part(cls: C) -> C:
    """Give every kernel one object of the decorated class, made as ``cls(kernel)``; ``kernel.part(cls)`` returns it.

    For what a subsystem's functions keep between calls: a :class:`~pkvm_emu.machine.state.State`, so that snapshots bring
    it back. It is made when a function first asks for it.
    """
    return cls
