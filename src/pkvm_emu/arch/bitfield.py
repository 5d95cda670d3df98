"""Registers as bit-field classes that print themselves by name.

A register is an ``int``; its fields are declared once, in the class body:

>>> from enum import IntEnum
>>> class Level(IntEnum):
...     LOW = 0
...     HIGH = 3
>>> class Demo(Register):
...     level = Field(9, 8, Level)
...     valid = Field(0)
>>> Demo(0x301).level
<Level.HIGH: 3>
>>> Demo.build(level=Level.HIGH, valid=1) == 0x301
True
>>> Demo(0x301).describe()
'LEVEL=HIGH VALID=1'
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Any, ClassVar, Self, overload


class Field:
    """One field of a register: bits ``msb`` down to ``lsb``, inclusive.

    Args:
        msb: number of the highest bit.
        lsb: number of the lowest bit; the same as ``msb`` when left out.
        enum: names of the values; a value without a name reads as a plain int.
        label: the architecture's spelling where it is not the attribute name in capitals (``WnR``).
    """

    __slots__ = ("_members", "enum", "label", "lsb", "mask", "msb", "name")

    def __init__(
        self, msb: int, lsb: int | None = None, enum: type[IntEnum] | None = None, *, label: str | None = None
    ) -> None:
        self.msb = msb
        self.lsb = msb if lsb is None else lsb
        if not 0 <= self.lsb <= self.msb < 64:
            raise ValueError(f"bits {msb}:{lsb} are no field of a 64-bit register")
        self.mask = (1 << (self.msb - self.lsb + 1)) - 1
        self.enum = enum
        self.label = label or ""
        self.name = ""
        # Aliases of an enum (two names, one value) read as the first name.
        self._members: dict[int, int] = {} if enum is None else {int(m): m for m in enum}

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.label = self.label or name.upper()

    @overload
    def __get__(self, obj: None, owner: type | None = None) -> Field: ...

    @overload
    def __get__(self, obj: Register, owner: type | None = None) -> int: ...

    def __get__(self, obj: Register | None, owner: type | None = None) -> Field | int:
        if obj is None:
            return self
        value = (int(obj) >> self.lsb) & self.mask
        return self._members.get(value, value)

    @property
    def width(self) -> int:
        """Number of bits."""
        return self.msb - self.lsb + 1

    @property
    def in_place(self) -> int:
        """All bits of the field set, at their place in the register."""
        return self.mask << self.lsb

    def place(self, value: int) -> int:
        """``value`` shifted to the field's place.

        Raises:
            ValueError: the value does not fit.
        """
        if not 0 <= value <= self.mask:
            raise ValueError(f"{self.label} takes 0 to {self.mask:#x}, got {value:#x}")
        return int(value) << self.lsb

    def text(self, value: int) -> str:
        """``LABEL=value``: the enum name if there is one, decimal for one bit, hex otherwise."""
        member = self._members.get(value)
        if isinstance(member, IntEnum):
            shown = member.name
        else:
            shown = str(value) if self.width == 1 else f"{value:#x}"
        return f"{self.label}={shown}"


class Register(int):
    """Base of bit-field classes; an ``int`` cut to ``WIDTH`` bits. Subclasses inherit and may override fields.

    A class declared with ``flags=True`` describes only the fields that are set, single bits by their bare name.
    """

    WIDTH: ClassVar[int] = 64
    FIELDS: ClassVar[Mapping[str, Field]] = MappingProxyType({})
    _flags: ClassVar[bool] = False

    def __init_subclass__(cls, *, flags: bool | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        found = dict(cls.FIELDS)
        for name, value in vars(cls).items():
            if isinstance(value, Field):
                if value.msb >= cls.WIDTH:
                    raise TypeError(f"{cls.__name__}.{name} lies outside {cls.WIDTH} bits")
                found[name] = value
            else:
                found.pop(name, None)
        cls.FIELDS = MappingProxyType(dict(sorted(found.items(), key=lambda item: -item[1].msb)))
        if flags is not None:
            cls._flags = flags

    def __new__(cls, value: int = 0) -> Self:
        return super().__new__(cls, value & ((1 << cls.WIDTH) - 1))

    @classmethod
    def build(cls, **fields: int) -> Self:
        """A register with the given fields, all other bits zero.

        Raises:
            TypeError: no such field.
            ValueError: a value does not fit its field.
        """
        return cls(0).replace(**fields)

    def replace(self, **fields: int) -> Self:
        """The same register with some fields changed; errors as in :meth:`build`."""
        value = int(self)
        for name, new in fields.items():
            field = self.FIELDS.get(name)
            if field is None:
                raise TypeError(f"{type(self).__name__} has no field {name!r}; it has {', '.join(self.FIELDS)}")
            value = value & ~field.in_place | field.place(new)
        return type(self)(value)

    def unnamed(self) -> int:
        """The set bits that no field covers."""
        value = int(self)
        for field in self.FIELDS.values():
            value &= ~field.in_place
        return value

    def describe(self) -> str:
        """The fields by name, highest bit first: ``EC=HVC64 IL=1 ISS=0x0``.

        Flag registers (HCR_EL2, SCTLR) name only what is set: ``TSC IMO VM``. Set bits without a name follow as
        ``+0x…``.
        """
        parts: list[str] = []
        for field in self.FIELDS.values():
            value = (int(self) >> field.lsb) & field.mask
            if not self._flags:
                parts.append(field.text(value))
            elif value:
                parts.append(field.label if field.width == 1 and field.enum is None else field.text(value))
        rest = self.unnamed()
        if rest:
            parts.append(f"+{rest:#x}")
        return " ".join(parts) or "0"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self):#x}: {self.describe()})"

    # ``int.__str__`` would otherwise go through ``__repr__``.
    def __str__(self) -> str:
        return f"{int(self):#x}"
