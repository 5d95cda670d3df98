"""What a build description (Kbuild or Bazel) asks for: the sources, their flags, and how they make modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pkvm_emu.errors import BuildError

SOURCE_SUFFIXES = (".c", ".S")


@dataclass(frozen=True)
class SourceFile:
    """One C or assembly file and the flags that only its build description gives."""

    path: Path
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModulePlan:
    """One module: its EL1 and EL2 sources.

    ``directory`` is where headers named by a path that does not exist are looked for, ``file_name`` the name of the
    result. ``symbols`` are files that list what other modules export (a ``.ko`` or a ``Module.symvers``).
    """

    name: str
    directory: Path
    file_name: str
    el1: tuple[SourceFile, ...]
    el2: tuple[SourceFile, ...]
    symbols: tuple[Path, ...] = ()


@dataclass
class BuildPlan:
    """All modules of a tree, with notes for the log and what ``clean`` removes beside the results."""

    modules: list[ModulePlan] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    clean_files: list[Path] = field(default_factory=list)


def split_flag_path(flag: str, base: Path) -> str:
    """*flag* with a relative include path made relative to *base*, as ``-Idir`` in a module's Makefile means it."""
    if flag.startswith("-I") and len(flag) > 2:
        return f"-I{base / flag[2:]}"
    return flag


def anchor_include_paths(flags: Sequence[str], base: Path) -> tuple[str, ...]:
    """*flags* with the include paths of ``-Idir``, ``-I dir``, ``-isystem dir`` and ``-include file`` below *base*.

    An ``-include`` whose file does not lie below *base* stays as it is and goes through the include path.
    """
    result: list[str] = []
    words = iter(flags)
    for word in words:
        if word in ("-I", "-isystem", "-iquote"):
            result += [word, str(base / next(words, ""))]
        elif word == "-include":
            name = next(words, "")
            result += [word, str(base / name) if (base / name).is_file() else name]
        else:
            result.append(split_flag_path(word, base))
    return tuple(result)


def source_for_object(directory: Path, name: str, where: str) -> Path:
    """The source of the object *name* (``el1.o``) in *directory*. Raises BuildError naming *where* it is asked for."""
    stem = directory / name.removesuffix(".o")
    for suffix in SOURCE_SUFFIXES:
        candidate = stem.with_name(stem.name + suffix)
        if candidate.is_file():
            return candidate
    wanted = " or ".join(f"{stem}{suffix}" for suffix in SOURCE_SUFFIXES)
    raise BuildError(f"{where}: no source for {name}: expected {wanted}")


def enabled(value: str) -> bool:
    """True for a configuration value that switches an option on (``y``, ``m``, ``1``, any other non-empty text)."""
    return value not in ("", "n", "0")


def normalize_config(config: Mapping[str, str]) -> dict[str, str]:
    """*config* with option names without their ``CONFIG_`` prefix, and the two names of EL2 function tracing joined."""
    options = {name.removeprefix("CONFIG_"): value for name, value in config.items()}
    for name, twin in (("PKVM_FTRACE", "PROTECTED_NVHE_FTRACE"), ("PROTECTED_NVHE_FTRACE", "PKVM_FTRACE")):
        if name in options:
            options.setdefault(twin, options[name])
    return options
