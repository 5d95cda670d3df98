"""Models that a user gives: ``--mmio ADDR:SIZE=MODEL`` and ``boot(mmio=[...])``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from pkvm_emu.devices.model import Model
from pkvm_emu.devices.models import SHIPPED, shipped
from pkvm_emu.errors import UsageError
from pkvm_emu.user_code import run_user_file

_SPEC = re.compile(r"^(?P<base>[^:=]+):(?P<size>[^:=]+)=(?P<model>.+)$")
_UNITS = {"k": 10, "m": 20}
_FORM = "write ADDR:SIZE=FILE.py[:CLASS], ADDR:SIZE=NAME of a model that is shipped, or FILE.py[:CLASS]"


class Given(NamedTuple):
    """A model that a user gave: where (None: at the nodes that it is compatible with), which, and as what it was given."""

    base: int | None
    size: int
    model: type[Model]
    name: str


#: What ``boot(mmio=...)`` takes: as on the command line, a class, or a place and one of both.
MmioSpec = str | type[Model] | tuple[int, int, str | type[Model]]


def read_spec(spec: MmioSpec) -> list[Given]:
    """The models that one ``--mmio`` option or one element of ``boot(mmio=...)`` gives.

    Raises:
        UsageError: it cannot be read, the file fails, or there is no such model.
    """
    if isinstance(spec, str):
        match = _SPEC.match(spec)
        if match is None:
            return [Given(None, 0, one, one.__name__) for one in _with_compatible(spec)]
        base, size = _number(spec, match["base"]), _number(spec, match["size"])
        return [Given(base, size, _one(spec, match["model"]), spec)]
    if isinstance(spec, tuple):
        base, size, which = spec
        found = _one(which, which) if isinstance(which, str) else which
        return [Given(base, size, found, f"{found.__name__} at {base:#x}")]
    return [Given(None, 0, spec, spec.__name__)]


def _number(spec: str, text: str) -> int:
    unit = _UNITS.get(text[-1:].lower(), 0)
    try:
        value = int(text[:-1] if unit else text, 0)
    except ValueError as error:
        raise UsageError(f"--mmio {spec}: {text!r} is no number; {_FORM}") from error
    if value < 0:
        raise UsageError(f"--mmio {spec}: {text!r} is negative")
    return value << unit


def _with_compatible(spec: str) -> list[type[Model]]:
    if not spec.partition(":")[0].endswith(".py"):
        raise UsageError(f"--mmio {spec}: {_FORM}")
    found = [one for one in _classes(spec, spec) if one.COMPATIBLE]
    if not found:
        raise UsageError(f"--mmio {spec}: no class in it has @model(compatible=...); say where: ADDR:SIZE={spec}")
    return found


def _one(spec: str, which: str) -> type[Model]:
    own = shipped(which)
    if own is not None:
        return own
    if not which.partition(":")[0].endswith(".py"):
        raise UsageError(f"--mmio {spec}: no model {which!r} (shipped: {', '.join(SHIPPED)}); {_FORM}")
    found = _classes(spec, which)
    if len(found) != 1:
        names = ", ".join(one.__name__ for one in found)
        raise UsageError(f"--mmio {spec}: the file has several models ({names}): add :CLASS")
    return found[0]


def _classes(spec: str, which: str) -> list[type[Model]]:
    """The models that a file defines; the one of that name where one is named."""
    path, _, name = which.partition(":")
    if not Path(path).is_file():
        raise UsageError(f"--mmio {spec}: there is no file {path}")
    # A name of its own, so that ``isinstance`` and pickles of two files do not meet.
    namespace = run_user_file("--mmio", path, f"pkvm_emu_mmio_{Path(path).stem}")
    found = [
        value
        for value in namespace.values()
        if isinstance(value, type) and issubclass(value, Model) and value.__module__ == namespace["__name__"]
    ]
    if name:
        found = [one for one in found if one.__name__ == name]
    if not found:
        wanted = f"a model {name}" if name else "a subclass of pkvm_emu.devices.model.Model"
        raise UsageError(f"--mmio {spec}: {path} defines no {wanted.removeprefix('a ')}")
    return found
