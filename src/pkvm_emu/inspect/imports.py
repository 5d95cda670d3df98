"""What a module needs from others: kernel symbols with the emulator's answer to them, and EL2 functions of other modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pkvm_emu.elf.elements import NVHE_PREFIX
from pkvm_emu.elf.module_file import ModuleFile


@dataclass(frozen=True, slots=True)
class Import:
    """One undefined symbol.

    Attributes:
        name: the symbol.
        status: ``served`` (a function with Python behind it), ``variable``, ``module`` (another of the given modules
            exports it), ``companion`` (Python stands in for the module that exports it), ``stub`` (calling it stops the
            run), ``module needed`` (only another module can give it), or ``weak`` (0 when nobody gives it).
        given_by: the module that exports it, or that Python stands in for.
        first_use: the first place that refers to it.
    """

    name: str
    status: str
    given_by: str | None
    first_use: str | None


@dataclass(frozen=True, slots=True)
class Exported:
    """A symbol that the module offers to others."""

    name: str
    gpl_only: bool
    el: int


def read_imports(file: ModuleFile, others: Sequence[ModuleFile] = ()) -> list[Import]:
    """Every undefined symbol by name.

    Args:
        file: the module.
        others: modules that are loaded before it.
    """
    from pkvm_emu.kernel import registry
    from pkvm_emu.kernel.exports import register_all

    register_all()
    offered: dict[str, str] = {}
    for other in others:
        if other is not file:
            for export in other.exports:
                offered.setdefault(export.name, other.name)
    found = []
    for symbol in file.undefined_symbols():
        given_by = offered.get(symbol.name)
        if given_by is not None:
            status = "module"
        elif symbol.name in registry.FUNCTIONS:
            companions = registry.FUNCTIONS[symbol.name].companions
            status = "companion" if companions else "served"
            given_by = next((name for name in file.depends if name in companions), next(iter(companions), None))
        elif symbol.name in registry.VARIABLES:
            status = "variable"
        elif symbol.name.startswith(NVHE_PREFIX):
            status = "module needed"
        else:
            status = "weak" if symbol.is_weak else "stub"
        found.append(Import(symbol.name, status, given_by, symbol.first_use.text if symbol.first_use else None))
    return sorted(found, key=lambda row: row.name)


def read_exports(file: ModuleFile) -> list[Exported]:
    """What the module exports, in table order."""
    return [Exported(row.name, row.gpl_only, 2 if row.name.startswith(NVHE_PREFIX) else 1) for row in file.exports]
