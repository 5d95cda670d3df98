"""Registers as a model declares them in its class body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from pkvm_emu.arch.bitfield import Register
from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.devices.model import Model


class Reg:
    """One register of a model, or an array of them, declared in the class body.

    Args:
        offset: bytes from the start of the window.
        kind: a bit-field class for its value; None: a plain number.
        width: bits: 8, 16, 32 or 64.
        reset: the value after reset.
        access: ``rw``, ``ro`` (writes of the guest are ignored) or ``wo`` (it reads 0).
        count: how many there are, ``stride`` bytes apart (its own size if left out).
        label: the name in the log; the attribute's in capitals if left out.

    As an attribute of the model it is the value that is held: assigning to it calls no hook. An array is
    indexed: ``self.channel[2] = 1``.
    """

    def __init__(
        self,
        offset: int,
        kind: type[Register] | None = None,
        *,
        width: Literal[8, 16, 32, 64] = 32,
        reset: int = 0,
        access: Literal["rw", "ro", "wo"] = "rw",
        count: int = 1,
        stride: int = 0,
        label: str = "",
    ) -> None:
        self.offset = offset
        self.kind = kind
        self.size = width // 8
        self.reset = reset
        self.access = access
        self.count = count
        self.stride = stride or self.size
        self.label = label
        self.name = ""
        if offset < 0 or offset % self.size or self.stride < self.size or count < 1:
            raise UsageError(f"a register of {width} bits cannot be at offset {offset:#x} with stride {self.stride:#x}")

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.label = self.label or name.upper()

    @overload
    def __get__(self, instance: None, owner: type) -> Reg: ...

    @overload
    def __get__(self, instance: Model, owner: type) -> Any: ...

    def __get__(self, instance: Model | None, owner: type) -> Any:
        if instance is None:
            return self
        return self.value(instance, 0) if self.count == 1 else Array(self, instance)

    def __set__(self, instance: Model, value: int) -> None:
        if self.count != 1:
            raise UsageError(f"{type(instance).__name__}.{self.name} is an array: set one with [index]")
        self.put(instance, 0, value)

    def value(self, owner: Model, index: int) -> int:
        """What it holds."""
        held = owner.peek(self.offset + index * self.stride, self.size)
        return held if self.kind is None else self.kind(held)

    def put(self, owner: Model, index: int, value: int) -> None:
        """Hold a value, cut to its width."""
        owner.poke(self.offset + index * self.stride, int(value) & (1 << 8 * self.size) - 1, self.size)


class Array:
    """The values of an array of registers."""

    def __init__(self, reg: Reg, owner: Model) -> None:
        self._reg = reg
        self._owner = owner

    def __len__(self) -> int:
        return self._reg.count

    def __getitem__(self, index: int) -> int:
        return self._reg.value(self._owner, range(len(self))[index])

    def __setitem__(self, index: int, value: int) -> None:
        self._reg.put(self._owner, range(len(self))[index], value)
