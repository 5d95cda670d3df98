"""The files that modules made, in the report of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pkvm_emu.kernel.fs.module_files import ModuleEntry
    from pkvm_emu.system import System

#: So many files of a directory are listed one by one.
_LISTED = 4


def _entries(system: System) -> dict[str, ModuleEntry]:
    part = system.kernel.part_made("ModuleFiles")
    return dict(part.entries) if part is not None else {}


def file_lines(system: System) -> Iterator[str]:
    """``foo: /dev/foo (10:127), /sys/kernel/debug/foo/state``: one line a module; long directories are cut."""
    by_module: dict[str, list[tuple[str, ModuleEntry]]] = {}
    for path, entry in _entries(system).items():
        by_module.setdefault(entry.module or "the kernel", []).append((path, entry))
    for module, files in by_module.items():
        yield f"  {module}: {', '.join(_shortened(files))}"


def _shortened(files: list[tuple[str, ModuleEntry]]) -> Iterator[str]:
    seen: dict[str, int] = {}
    totals: dict[str, int] = {}
    for path, _ in files:
        directory = path.rpartition("/")[0]
        totals[directory] = totals.get(directory, 0) + 1
    for path, entry in files:
        directory = path.rpartition("/")[0]
        seen[directory] = seen.get(directory, 0) + 1
        if seen[directory] <= _LISTED or entry.device is not None:
            yield entry.text(path)
        elif seen[directory] == totals[directory]:
            yield f"{totals[directory] - _LISTED} more in {directory}"


def file_facts(system: System) -> list[dict[str, Any]]:
    """The same for programs: path, module, and major and minor number of device nodes."""
    return [
        {"path": path, "module": entry.module, "device": list(entry.device) if entry.device is not None else None}
        for path, entry in _entries(system).items()
    ]
