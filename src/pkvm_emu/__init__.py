"""Run, debug and regression-test Android pKVM vendor modules as binaries.

The public surface is :func:`boot` and the :class:`System` it returns; see ``docs/python.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pkvm_emu.errors import (
    BuildError,
    EmulatorError,
    InputError,
    ModuleError,
    PkvmEmuError,
    UsageError,
)

if TYPE_CHECKING:
    from pkvm_emu.elf.module_file import ModuleFile
    from pkvm_emu.machine.profile import MachineProfile
    from pkvm_emu.results import HvcResult
    from pkvm_emu.system import System, boot

__version__ = "0.1.0"

__all__ = [
    "BuildError",
    "EmulatorError",
    "HvcResult",
    "InputError",
    "MachineProfile",
    "ModuleError",
    "ModuleFile",
    "PkvmEmuError",
    "System",
    "UsageError",
    "__version__",
    "boot",
]

_LAZY = {
    "boot": "pkvm_emu.system",
    "System": "pkvm_emu.system",
    "HvcResult": "pkvm_emu.results",
    "MachineProfile": "pkvm_emu.machine.profile",
    "ModuleFile": "pkvm_emu.elf.module_file",
}


def __getattr__(name: str) -> Any:
    # Importing the engine takes a while; `pkvm-emu --help` does not need it.
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'pkvm_emu' has no attribute {name!r}")
