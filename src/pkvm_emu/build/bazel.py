"""Reading a DDK tree: ``ddk_module`` and ``ddk_library`` in BUILD.bazel files (Kleaf, android16)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pkvm_emu.build.plan import (
    SOURCE_SUFFIXES,
    BuildPlan,
    ModulePlan,
    SourceFile,
    anchor_include_paths,
    enabled,
)
from pkvm_emu.build.starlark import BuildFile, Target
from pkvm_emu.errors import BuildError, UsageError

_FILE_NAMES = ("BUILD.bazel", "BUILD")
_ROOT_MARKERS = ("MODULE.bazel", "WORKSPACE", "WORKSPACE.bazel")
_MODULE, _LIBRARY, _SUBMODULE = "ddk_module", "ddk_library", "ddk_submodule"
_LOCATION = re.compile(r"\$\((?:location|execpath|rootpath) ([^)]*)\)")


def build_file_of(directory: Path) -> Path | None:
    """The BUILD file of *directory*, or None."""
    return next((directory / name for name in _FILE_NAMES if (directory / name).is_file()), None)


def read_bazel_tree(directory: Path, config: Mapping[str, str]) -> BuildPlan:
    """The modules that the BUILD file in *directory* describes by ``ddk_module``.

    *config* decides ``conditional_srcs``. Raises UsageError if there is no module, BuildError with file and line for
    what cannot be understood.
    """
    reader = _Reader(directory, config)
    package = reader.package(directory)
    if package is None:
        raise UsageError(f"no BUILD.bazel in {directory}")
    for target in package.targets.values():
        if target.rule == _SUBMODULE or (target.rule == _MODULE and not reader.is_collection(directory, target)):
            reader.plan.modules.append(reader.module(directory, target))
    if not reader.plan.modules:
        raise UsageError(f"{package.path}: no ddk_module in it")
    return reader.plan


@dataclass
class _Parts:
    """What a target and its dependencies give: flags that headers need, and EL2 sources."""

    includes: list[str]
    el2: list[SourceFile]
    extra_el1: list[SourceFile]


class _Reader:
    def __init__(self, top: Path, config: Mapping[str, str]) -> None:
        self.top = top
        self.root = _workspace_root(top)
        self.config = config
        self.plan = BuildPlan()
        self._packages: dict[Path, BuildFile | None] = {}

    def package(self, directory: Path) -> BuildFile | None:
        if directory not in self._packages:
            path = build_file_of(directory)
            self._packages[directory] = BuildFile.read(path) if path else None
        return self._packages[directory]

    def is_collection(self, directory: Path, target: Target) -> bool:
        """True for a ``ddk_module`` that has no sources of its own and only gathers ``ddk_submodule`` targets."""
        found = [self._resolve(directory, label, target) for label in target.strings("deps")]
        return not target.strings("srcs") and any(item is not None and item[1].rule == _SUBMODULE for item in found)

    def module(self, directory: Path, target: Target) -> ModulePlan:
        parts = self._dependencies(directory, target, ())
        own = self._sources(directory, target, parts.includes)
        out = target.string("out") or f"{target.name}.ko"
        if not out.endswith(".ko"):
            raise BuildError(f"{target.where}: out = {out!r} of {target.name} must end with .ko")
        name = Path(out).name.removesuffix(".ko")
        if not own and not parts.extra_el1:
            raise BuildError(f"{target.where}: {target.name} has no C or assembly file in srcs")
        # A library that several dependencies lead to is linked once.
        el1, el2 = (tuple(dict.fromkeys(sources)) for sources in (own + parts.extra_el1, parts.el2))
        return ModulePlan(name, self.top, Path(out).name, el1, el2)

    def _dependencies(self, directory: Path, target: Target, trail: tuple[str, ...]) -> _Parts:
        if target.where in trail:
            raise BuildError(f"{target.where}: {target.name} depends on itself")
        parts = _Parts([*_include_flags(directory, target)], [], [])
        for label in (*target.strings("deps"), *target.strings("hdrs"), *target.strings("srcs")):
            found = self._resolve(directory, label, target)
            if found is None:
                continue
            place, other = found
            inner = self._dependencies(place, other, (*trail, target.where))
            if other.rule == _LIBRARY:
                sources = self._sources(place, other, inner.includes)
                is_el2 = other.attributes.get("pkvm_el2") is True
                (parts.el2 if is_el2 else parts.extra_el1).extend(sources)
            if other.rule != _MODULE:
                parts.includes += [flag for flag in inner.includes if flag not in parts.includes]
                parts.el2 += inner.el2
                parts.extra_el1 += inner.extra_el1
        return parts

    def _sources(self, directory: Path, target: Target, includes: list[str]) -> list[SourceFile]:
        flags = [
            *(f"-I{directory / item}" for item in target.strings("linux_includes")),
            *includes,
            *(f"-D{define}" for define in target.strings("local_defines")),
            *(f"-D{define}" for define in target.strings("defines")),
            *anchor_include_paths([self._expand(flag, directory) for flag in target.strings("copts")], directory),
        ]
        sources = []
        for name in dict.fromkeys((*target.strings("srcs"), *self._conditional_sources(target))):
            if not name.endswith(SOURCE_SUFFIXES):
                continue
            path = self._file(directory, name, target)
            sources.append(SourceFile(path, tuple(flags)))
        return sources

    def _expand(self, flag: str, directory: Path) -> str:
        """*flag* with ``$(location FILE)`` replaced by the path of a file in the package."""
        return _LOCATION.sub(lambda match: str(directory / match[1].removeprefix(":")), flag)

    def _conditional_sources(self, target: Target) -> list[str]:
        table = target.attributes.get("conditional_srcs")
        if table is None:
            return []
        if not isinstance(table, dict):
            raise BuildError(f"{target.where}: conditional_srcs of {target.name} must be a dictionary")
        names: list[str] = []
        for option, branches in table.items():
            value = self.config.get(str(option).removeprefix("CONFIG_"), "")
            chosen = branches.get(enabled(value)) if isinstance(branches, dict) else branches
            if isinstance(chosen, list):
                names += [item for item in chosen if isinstance(item, str)]
        return names

    def _file(self, directory: Path, label: str, target: Target) -> Path:
        package, name = parse_label(label)
        place = directory if package is None else self._package_directory(package)
        if place is None or not (place / name).is_file():
            raise BuildError(f"{target.where}: {target.name} names the source {label}, which does not exist")
        return place / name

    def _resolve(self, directory: Path, label: str, target: Target) -> tuple[Path, Target] | None:
        """The target that *label* names; None for a file, and for what lies outside of this tree (kernel headers)."""
        package, name = parse_label(label)
        place = directory if package is None else self._package_directory(package)
        file = self.package(place) if place is not None else None
        if place is not None and file is not None and name in file.targets:
            return place, file.targets[name]
        if place is not None and (place / name).is_file():
            return None
        if package is not None:
            if not name.startswith("all_headers"):
                text = f"note: {target.where}: {label} is outside of this tree: taken as kernel headers"
                self.plan.notes += [text] if text not in self.plan.notes else []
            return None
        if not label.startswith(":") and name.endswith((*SOURCE_SUFFIXES, ".h")):
            raise BuildError(f"{target.where}: {target.name} names the file {label}, which does not exist")
        raise BuildError(f"{target.where}: {target.name} depends on {label}, which is not in {directory}")

    def _package_directory(self, package: str) -> Path | None:
        """The directory of ``//package``: below the workspace root, else by its longest tail below the module's."""
        words = [word for word in package.split("/") if word]
        if not words:
            return self.root
        for base in (self.root, self.top):
            for start in range(len(words)):
                place = base.joinpath(*words[start:])
                if build_file_of(place) is not None:
                    return place
        return self.top if words[-1] == self.top.absolute().name else None


def parse_label(label: str) -> tuple[str | None, str]:
    """(package, name) of a Bazel label; the package is None for ``:name`` and ``name``, a repository is dropped."""
    _, absolute, rest = label.partition("//")
    if not absolute:
        return None, label.removeprefix(":")
    package, _, name = rest.partition(":")
    return package, name or package.rpartition("/")[2]


def _include_flags(directory: Path, target: Target) -> list[str]:
    return [f"-I{directory / item}" for item in target.strings("includes")]


def _workspace_root(top: Path) -> Path:
    for place in (top, *top.absolute().parents):
        if any((place / marker).is_file() for marker in _ROOT_MARKERS):
            return place
    return top
