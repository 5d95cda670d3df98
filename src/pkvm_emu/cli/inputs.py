"""Modules given on the command line: ``.ko`` files, source directories, pairs of raw objects, and their parameters."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pkvm_emu.elf.elements import NVHE_PREFIX
from pkvm_emu.elf.module_file import ModuleFile, read_input
from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.kernel.initramfs.module_directory import ModuleDirectory

_BUILD_FILES = ("Makefile", "Kbuild", "BUILD.bazel", "BUILD")


@dataclass(slots=True)
class GivenModule:
    """One module, and the ``name=value`` words that followed it.

    ``from_image``: it was named, and lies in the initramfs. ``path``: the ``.ko`` that was given.
    """

    file: ModuleFile
    parameters: list[tuple[str, str | None]] = field(default_factory=list)
    built_from: Path | None = None
    from_image: bool = False
    path: Path | None = None


def read_given_modules(
    words: list[str], android: str | None, system: str | None = None, image: ModuleDirectory | None = None
) -> list[GivenModule]:
    """The modules that positional arguments name, in order.

    Args:
        words: ``.ko`` files, source directories (built first), two ``.o`` files (EL1 and EL2 object of one module), and
            ``name=value`` parameters of the module before them.
        android: the generation to build sources for.
        system: ``kbuild`` or ``bazel``: which tree to build where a directory has both.
        image: the modules of the initramfs: a word that is no path may be the name of one.

    Raises:
        UsageError: a word that is none of these.
    """
    given: list[GivenModule] = []
    objects: list[Path] = []
    for word in words:
        path = Path(word)
        if path.is_dir():
            given.append(_build(path, android, system))
        elif path.suffix == ".o" and path.exists():
            objects.append(path)
            if len(objects) == 2:
                given.append(_combine(objects))
                objects = []
        elif "=" in word and not path.exists():
            if not given:
                raise UsageError(f"{word}: a parameter comes after the module that it is for")
            name, _, value = word.partition("=")
            given[-1].parameters.append((name, value))
        elif image is not None and not path.exists() and (found := image.module(word)) is not None:
            given.append(GivenModule(found, from_image=True))
        elif image is not None and not path.exists() and not path.suffix:
            raise UsageError(f"{word}: neither a file nor a module of the initramfs")
        else:
            given.append(GivenModule(ModuleFile.load(path), path=path))
    if objects:
        raise UsageError(f"{objects[0]}: a raw object needs its other half: give EL1 and EL2 object (el1.o kvm_nvhe.o)")
    if not given:
        raise UsageError("no module was given: a .ko, a source directory, or two objects")
    return given


def el2_exporters_beside(given: list[GivenModule]) -> list[tuple[GivenModule, GivenModule]]:
    """The modules whose EL2 code the given ones call, where they lie in the same directory and were not given.

    Only another module has that code, so nothing else could run; ``depends=`` says which module it is, as it does to ``modprobe``.

    Returns:
        Each with the module that needs it.
    """
    found: list[tuple[GivenModule, GivenModule]] = []
    queue = [module for module in given if module.path is not None]
    names = {_normal(module.file.name) for module in given}
    for module in queue:
        assert module.path is not None
        wanted = {one.name for one in module.file.undefined_symbols() if one.name.startswith(NVHE_PREFIX)}
        for name in module.file.depends if wanted else ():
            path = next((path for word in (name, _normal(name), name.replace("_", "-"))
                         if (path := module.path.with_name(f"{word}.ko")).is_file()), None)  # fmt: skip
            if path is None or _normal(name) in names:
                continue
            other = GivenModule(ModuleFile.load(path), path=path)
            if wanted & {export.name for export in other.file.exports}:
                names.add(_normal(name))
                found.append((other, module))
                queue.append(other)
    return found


def _normal(name: str) -> str:
    return name.replace("-", "_")


def _build(directory: Path, android: str | None, system: str | None) -> GivenModule:
    if not any((directory / name).exists() for name in _BUILD_FILES):
        raise UsageError(f"{directory}: neither a Makefile nor a BUILD.bazel is there")
    from pkvm_emu.build.builder import build_module

    with tempfile.TemporaryDirectory(prefix="pkvm-emu-") as place:
        result = build_module(directory, Path(place) / "module.ko", android, system=system)
        file = ModuleFile.parse(result.path.read_bytes(), f"{result.name}.ko")
    return GivenModule(file, built_from=directory)


def _combine(paths: list[Path]) -> GivenModule:
    contents = [read_input(path) for path in paths]
    # The EL2 object is the one whose symbols carry the prefix of the hypervisor's objects.
    prefix = f"\0{NVHE_PREFIX}".encode()
    is_hyp = [prefix in data and b"\0init_module\0" not in data for data in contents]
    if is_hyp == [True, False]:
        contents.reverse()
    elif is_hyp != [False, True]:
        is_named = [b"nvhe" in path.name.encode() for path in paths]
        if is_named == [True, False]:
            contents.reverse()
    return GivenModule(ModuleFile.from_objects(contents[0], contents[1], paths[0].parent.name or paths[0].stem))
