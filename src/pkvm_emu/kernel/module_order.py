"""The order in which modules have to be loaded: each behind those that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.errors import UsageError


def needed_modules(file: ModuleFile, others: Mapping[str, ModuleFile]) -> list[str]:
    """The modules that have to be loaded before ``file``: those of ``depends=``, then others whose exports it imports.

    ``others`` are the modules that are at hand, by name; ``depends=`` may name further ones.
    """
    found = {name.replace("-", "_"): True for name in file.depends}
    wanted = {symbol.name for symbol in file.undefined_symbols() if not symbol.is_weak}
    # What depends= names and another module too exports is taken from there.
    for name in found:
        if name in others:
            wanted -= {export.name for export in others[name].exports}
    for name, other in others.items():
        if other is not file and name not in found and any(export.name in wanted for export in other.exports):
            found[name] = True
    return list(found)


def transitive_needs(name: str, needs: Callable[[str], Sequence[str]]) -> list[str]:
    """Everything that a module needs, directly or through others, in the order of modules.dep: the first to be loaded last."""
    ordered: dict[str, None] = {}
    waiting = [(other, False) for other in reversed(needs(name))]
    seen = {name}
    while waiting:
        other, is_done = waiting.pop()
        if is_done:
            ordered[other] = None
        elif other not in seen:
            seen.add(other)
            waiting.append((other, True))
            waiting += [(deeper, False) for deeper in reversed(needs(other))]
    return list(reversed(ordered))


def loading_order(files: Sequence[ModuleFile]) -> list[ModuleFile]:
    """``files`` with each behind those that it needs; otherwise in the order given.

    Raises:
        UsageError: modules need each other in a circle, or two have the same name.
    """
    for index, file in enumerate(files):
        twin = next((other for other in files[:index] if other.name == file.name and other is not file), None)
        if twin is not None:
            raise UsageError(
                f"{twin.file_name} and {file.file_name} are both called {file.name}: a kernel has one of a name"
            )
    by_name = {file.name.replace("-", "_"): file for file in files}
    needs = {
        name: [n for n in needed_modules(file, by_name) if n in by_name and n != name] for name, file in by_name.items()
    }
    ordered: dict[str, ModuleFile] = {}
    path: list[str] = []
    waiting = [(name, False) for name in reversed(by_name)]
    while waiting:
        name, is_done = waiting.pop()
        if is_done:
            path.pop()
            ordered[name] = by_name[name]
        elif name in path:
            circle = " -> ".join([*path[path.index(name) :], name])
            raise UsageError(f"the modules need each other in a circle: {circle}")
        elif name not in ordered:
            path.append(name)
            waiting.append((name, True))
            waiting += [(other, False) for other in reversed(needs[name])]
    return list(ordered.values())
