"""Python functions as callees of guest code: arguments and results by the AAPCS64, from annotations.

A service is an ordinary function with annotated parameters; the annotation says how the register is read:

>>> def strnlen(env, s: Ptr, limit: U64) -> int: ...
>>> signature_of(strnlen).kinds
('u64', 'u64')

The first parameter is the model that the service belongs to (the kernel, the hypervisor). A parameter annotated
``VarArgs`` takes all variadic arguments as a source that is read one by one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, get_args, get_type_hints

U64 = Annotated[int, "u64"]
S64 = Annotated[int, "s64"]
U32 = Annotated[int, "u32"]
S32 = Annotated[int, "s32"]
U16 = Annotated[int, "u16"]
U8 = Annotated[int, "u8"]
S8 = Annotated[int, "s8"]
Bool = Annotated[bool, "bool"]
#: A guest address.
Ptr = Annotated[int, "u64"]
#: A guest string, read and decoded (a NULL pointer is None).
CStr = Annotated[str | None, "cstr"]
#: The variadic arguments.
VarArgs = Annotated[Any, "varargs"]

_ARGUMENT_REGISTERS = 8


class CallEnvironment(Protocol):
    """What argument conversion needs from the model."""

    def read_cstr(self, va: int, limit: int = ...) -> bytes:
        """The string at ``va`` without its NUL."""

    def variadic(self, registers: tuple[int, ...], first: int) -> Any:
        """A source of the variadic arguments after ``first`` named ones."""


@dataclass(frozen=True, slots=True)
class Signature:
    """How a function takes its arguments.

    Attributes:
        kinds: one kind a parameter, the model not included.
        names: the parameters' names, for messages.
        registers: how many of x0..x7 have to be read.
    """

    kinds: tuple[str, ...]
    names: tuple[str, ...]
    registers: int


def signature_of(function: Callable[..., Any]) -> Signature:
    """The :class:`Signature` of an annotated service function.

    Raises:
        TypeError: a parameter without a kind, or more parameters than registers.
    """
    hints = get_type_hints(function, include_extras=True)
    names = list(inspect.signature(function).parameters)[1:]
    kinds = []
    for name in names:
        metadata = get_args(hints.get(name))
        if len(metadata) < 2 or not isinstance(metadata[-1], str):
            raise TypeError(f"{function.__qualname__}: parameter {name} has no kind (U64, S32, Ptr, CStr, ...)")
        kinds.append(metadata[-1])
    variadic = "varargs" in kinds
    if len(kinds) > _ARGUMENT_REGISTERS:
        raise TypeError(f"{function.__qualname__}: {len(kinds)} parameters, but x0..x7 carry eight")
    return Signature(tuple(kinds), tuple(names), _ARGUMENT_REGISTERS if variadic else len(kinds))


def _signed(bits: int) -> Callable[[int], int]:
    mask, sign = (1 << bits) - 1, 1 << (bits - 1)
    return lambda value: ((value & mask) ^ sign) - sign


_CONVERTERS: dict[str, Callable[[int], Any]] = {
    "s64": _signed(64),
    "u32": lambda value: value & 0xFFFF_FFFF,
    "s32": _signed(32),
    "u16": lambda value: value & 0xFFFF,
    "u8": lambda value: value & 0xFF,
    "s8": _signed(8),
    "bool": lambda value: bool(value & 1),
}


def bind(function: Callable[..., Any], model: CallEnvironment) -> tuple[int, Callable[..., Any]]:
    """How many registers to read for ``function``, and a callable that takes them raw.

    The callable converts the registers by the annotations and passes ``model`` first. Functions whose arguments are all
    64-bit are called with no conversion at all.
    """
    signature = signature_of(function)
    kinds = signature.kinds
    if all(kind == "u64" for kind in kinds):
        return signature.registers, lambda *registers: function(model, *registers)
    converters: list[Callable[[tuple[int, ...]], Any]] = []
    for index, kind in enumerate(kinds):
        if kind == "u64":
            converters.append(lambda registers, i=index: registers[i])  # type: ignore[misc]  # mypy: lambda default
        elif kind == "cstr":
            converters.append(
                lambda registers, i=index: model.read_cstr(registers[i]).decode("latin-1") if registers[i] else None  # type: ignore[misc]  # mypy: lambda default
            )
        elif kind == "varargs":
            converters.append(lambda registers, i=index: model.variadic(registers, i))  # type: ignore[misc]  # mypy: lambda default
        else:
            convert = _CONVERTERS[kind]
            converters.append(lambda registers, i=index, c=convert: c(registers[i]))  # type: ignore[misc]  # mypy: lambda default

    def call(*registers: int) -> Any:
        return function(model, *[c(registers) for c in converters])

    return signature.registers, call
