"""Calls functions of a test's module, and reads its variables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pkvm_emu
from pkvm_emu.system import System


class Calls:
    """``calls.function(1, 2)`` calls a function of the module; ``calls["name"]`` reads an ``int`` variable.

    Args:
        system: has the module.
        module: its name.
    """

    def __init__(self, system: System, module: str) -> None:
        self.system = system
        self._module = system.modules[module]

    def __getattr__(self, name: str) -> Callable[..., int]:
        address = self.address(name)
        return lambda *args: self.system.kernel.call_s32(address, *args)

    def __getitem__(self, name: str) -> int:
        return int.from_bytes(self.system.kernel.memory.read(self.address(name), 4), "little", signed=True)

    def address(self, name: str) -> int:
        address = self._module.symbol(name)
        assert address is not None, name
        return address

    def text(self, name: str) -> str:
        """A ``char`` array, as a string."""
        return self.system.kernel.memory.read_cstr(self.address(name)).decode()

    @property
    def log(self) -> str:
        return "\n".join(record.text for record in self.system.kernel.log)


def loaded(path: Path, name: str, **options: Any) -> Calls:
    """A system with a module that has no EL2 half."""
    return Calls(pkvm_emu.boot(modules=[path], **options), name)


def undone(calls: Calls) -> Iterator[Calls]:
    """What a test does is undone."""
    before = calls.system.snapshot()
    yield calls
    calls.system.restore(before)
