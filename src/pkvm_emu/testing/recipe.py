"""What a test wants booted: modules, generation, command line, machine. Two tests that want the same share one boot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pkvm_emu.errors import UsageError

#: Every generation, in the order in which a test runs on them.
ALL = ("android14-5.15", "android14-6.1", "android15-6.6", "android16-6.12")
Android = str | int


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what a boot is.

    Attributes:
        android: a generation's full name; None: as the modules were built.
        modules: ``.ko`` files, or source directories, which are built for the generation.
        cmdline: the kernel command line.
        dtb: the device tree, ``.dtb`` or ``.dts``; None: a board made up for the modules.
        machine: features of the machine (``nvhe,nopauth``).
        ram_mib: RAM.
        cpus: number of CPUs.
        options: further keyword arguments of :func:`pkvm_emu.boot`, sorted by name.
    """

    android: str | None = None
    modules: tuple[Path, ...] = ()
    cmdline: str = ""
    dtb: Path | None = None
    machine: str = ""
    ram_mib: int = 1024
    cpus: int = 1
    options: tuple[tuple[str, Any], ...] = ()

    def with_android(self, android: str | None) -> Recipe:
        """The same on another generation."""
        return replace(self, android=android)

    @property
    def variant(self) -> str:
        """A short word that tells recipes for the same modules and generation apart; empty for the plain one."""
        import hashlib

        special = [f"{name}={getattr(self, name)}" for name in ("cmdline", "machine") if getattr(self, name)]
        special += [f"dtb={self.dtb.name}"] if self.dtb is not None else []
        special += [f"ram={self.ram_mib}"] if self.ram_mib != 1024 else []
        special += [f"cpus={self.cpus}"] if self.cpus != 1 else []
        special += [f"{name}={_plain(value)}" for name, value in self.options if name not in ("timeline", "contracts")]
        return hashlib.sha256("\n".join(special).encode()).hexdigest()[:8] if special else ""

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """Changes when the recipe or one of its files does."""
        named = [path for _, value in self.options for path in (value if isinstance(value, tuple) else (value,))]
        files = [*self.modules, self.dtb, *(path for path in named if isinstance(path, Path))]
        return (self, *(_stamp(path) for path in files if path is not None))


def generations(wanted: Android | Sequence[Android] | None) -> tuple[str | None, ...]:
    """The generations that a test asks for, by their full names.

    Args:
        wanted: ``"all"``, one generation, several, or None for "as the modules were built".

    Raises:
        UsageError: a name that no generation has.

    >>> generations([15, "android16"])
    ('android15-6.6', 'android16-6.12')
    """
    from pkvm_emu.abi.generation import generation

    if wanted is None:
        return (None,)
    if wanted == "all":
        return ALL
    several: Iterable[Android] = [wanted] if isinstance(wanted, (str, int)) else wanted
    words = [word for item in several for word in (item.split(",") if isinstance(item, str) else [item])]
    if "all" in words:
        return ALL
    named = [generation(word.strip() if isinstance(word, str) else word).name for word in words]
    if not named:
        raise UsageError("an empty list of Android generations")
    return tuple(dict.fromkeys(named))


def find_file(path: str | Path, places: Sequence[Path], what: str) -> Path:
    """A file or directory given by a relative path, looked up in ``places`` in their order.

    Raises:
        UsageError: it is in none of them.
    """
    given = Path(path)
    for place in places:
        found = place / given
        if found.exists():
            return found.resolve()
    looked = ", ".join(str(place) for place in places)
    raise UsageError(f"{what} {str(path)!r} is not there (looked in {looked})")


#: Arguments of boot() that a test may give besides those that a recipe has, and that are decided elsewhere.
_NOT_OPTIONS = ("android", "modules", "cmdline", "profile", "dtb", "prepare")
_FILES = ("initramfs", "kernel", "smc")


def boot_options(given: Mapping[str, Any], places: Sequence[Path]) -> tuple[tuple[str, Any], ...]:
    """Further arguments of :func:`pkvm_emu.boot`, with their files found, in a form that recipes can be compared by.

    Args:
        given: by name, as a marker or a case file has them.
        places: where relative paths begin, tried in this order.

    Raises:
        UsageError: an argument that ``boot()`` does not have, or a file that is not there.
    """
    if not given:
        return ()
    import inspect

    from pkvm_emu.system import boot

    known = [name for name in inspect.signature(boot).parameters if name not in _NOT_OPTIONS]
    for name in given:
        if name not in known:
            own = "android, modules, cmdline, dtb, machine, ram_mib, cpus"
            raise UsageError(f"{name!r} is nothing that a boot takes (there are {own}, {', '.join(known)})")
    return tuple((name, _found(name, _frozen(value), places)) for name, value in sorted(given.items()))


def _plain(value: Any) -> str:
    """A value without the place where its file happens to be: the same on every machine."""
    if isinstance(value, tuple):
        return ",".join(_plain(each) for each in value)
    return value.name if isinstance(value, Path) else str(value).rpartition("/")[2]


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, (list, tuple)) else value


def _found(name: str, value: Any, places: Sequence[Path]) -> Any:
    """The value with its paths made absolute."""
    if isinstance(value, tuple) and name in (*_FILES, "mmio"):
        return tuple(_found(name, each, places) for each in value)
    if isinstance(value, (str, Path)):
        if name in _FILES or (name == "el3" and str(value).endswith(".py")):
            return find_file(value, places, name)
        window, equals, model = str(value).partition("=")
        if name == "mmio" and equals and model.endswith(".py"):
            return f"{window}={find_file(model, places, name)}"
    return value


def _stamp(path: Path) -> tuple[int, int]:
    if path.is_dir():
        stamps = [_stamp(found) for found in sorted(path.rglob("*")) if found.suffix in (".c", ".h", ".bazel", ".S")]
        return (len(stamps), max((stamp[0] for stamp in stamps), default=0))
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)
