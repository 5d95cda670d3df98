"""Reading a Kbuild tree: the ``Makefile`` of the Android documentation and its relatives."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from pkvm_emu.build.generation import BuildGeneration
from pkvm_emu.build.makevars import Makefile
from pkvm_emu.build.plan import (
    BuildPlan,
    ModulePlan,
    SourceFile,
    anchor_include_paths,
    source_for_object,
)
from pkvm_emu.errors import BuildError, UsageError

NVHE_OBJECT = "kvm_nvhe.o"
MODULE_MAKEFILE = "arch/arm64/kvm/hyp/nvhe/Makefile.module"
_SRCTREE = "/pkvm-emu-has-no-kernel-tree"
_NAMES = ("Kbuild", "Makefile")


def makefile_of(directory: Path) -> Path | None:
    """The Kbuild file of *directory* (``Kbuild`` before ``Makefile``), or None."""
    return next((directory / name for name in _NAMES if (directory / name).is_file()), None)


def read_kbuild_tree(directory: Path, generation: BuildGeneration, config: Mapping[str, str]) -> BuildPlan:
    """The modules that the Makefile in *directory* describes.

    *config* gives the ``CONFIG_`` options (names without the prefix). Raises BuildError with file and line for what
    the Makefile says and nobody understands, UsageError if there is no Makefile or no module in it.
    """
    reader = _KbuildReader(directory, generation, config)
    reader.read_directory(directory, ())
    if not reader.plan.modules:
        path = makefile_of(directory)
        raise UsageError(f"{path}: obj-m names no module (is its CONFIG_ option given to the build?)")
    return reader.plan


class _KbuildReader:
    def __init__(self, top: Path, generation: BuildGeneration, config: Mapping[str, str]) -> None:
        self.top = top
        self.generation = generation
        self.config = config
        self.plan = BuildPlan()

    def read_directory(self, directory: Path, inherited: tuple[str, ...]) -> None:
        makefile = self._read(directory)
        self._clean_files(makefile, directory)
        subdir_flags = (*inherited, *self._flags(makefile, "subdir-ccflags-y", directory))
        for goal in dict.fromkeys(self._conditional_words(makefile, "obj-", ("m", "y"))):
            if goal.endswith("/"):
                self.read_directory(directory / goal.rstrip("/"), subdir_flags)
            elif goal.endswith(".o"):
                self.plan.modules.append(self._module(makefile, directory, goal.removesuffix(".o"), subdir_flags))
            else:
                raise BuildError(f"{makefile.where('obj-m')}: {goal} in obj-m is neither an object nor a directory")

    def _read(self, directory: Path) -> Makefile:
        path = makefile_of(directory)
        if path is None:
            raise UsageError(f"no Makefile, Kbuild or BUILD.bazel in {directory}")
        makefile = Makefile(include_hook=_include_hook)
        major, minor, patch = self.generation.kernel
        makefile.set(
            {
                "KERNELRELEASE": self.generation.release,
                "KERNELVERSION": f"{major}.{minor}.{patch}",
                "VERSION": str(major),
                "PATCHLEVEL": str(minor),
                "SUBLEVEL": str(patch),
                "ARCH": "arm64",
                "SRCARCH": "arm64",
                "LLVM": "1",
                "CONFIG_ARM64": "y",
                "CONFIG_MODULES": "y",
                "srctree": _SRCTREE,
                "objtree": _SRCTREE,
                "src": str(directory.absolute()),
                "obj": str(directory.absolute()),
                **dict.fromkeys(("M", "KBUILD_EXTMOD", "PWD", "CURDIR"), str(self.top.absolute())),
                **{f"CONFIG_{name}": value for name, value in self.config.items()},
            }
        )
        makefile.read(path)
        return makefile

    def _conditional_words(self, makefile: Makefile, prefix: str, values: tuple[str, ...]) -> Iterator[str]:
        for value in values:
            yield from makefile.words(prefix + value)

    def _flags(self, makefile: Makefile, name: str, directory: Path) -> tuple[str, ...]:
        text = makefile.get(name)
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise BuildError(f"{makefile.where(name)}: cannot split the flags {text!r}: {error}") from error
        # `-I$(srctree)/$(src)/…` is the module's own directory; other paths into a kernel tree lead nowhere here.
        own = [word.replace(f"{_SRCTREE}/{self.top.absolute()}", str(self.top.absolute())) for word in words]
        anchored = anchor_include_paths([word for word in own if _SRCTREE not in word], directory)
        return tuple(word.replace(str(self.top.absolute()), str(self.top)) for word in anchored)

    def _clean_files(self, makefile: Makefile, directory: Path) -> None:
        self.plan.clean_files += [directory / name for name in makefile.words("clean-files")]

    def _module(self, makefile: Makefile, directory: Path, name: str, subdir_flags: tuple[str, ...]) -> ModulePlan:
        objects = [
            *self._conditional_words(makefile, f"{name}-", ("y", "m", "objs")),
        ] or [f"{name}.o"]
        where = makefile.where(f"{name}-y") if f"{name}-y" in makefile.names() else makefile.where("obj-m")
        el1: list[SourceFile] = []
        el2: list[SourceFile] = []
        for item in dict.fromkeys(objects):
            relative = Path(os.path.relpath(item, directory.absolute())) if os.path.isabs(item) else Path(item)
            if relative.name == NVHE_OBJECT:
                self._expect_rule(makefile, directory, relative, where)
                el2 += self._hyp_sources(directory / relative.parent, subdir_flags)
            elif item.endswith(".o"):
                source = source_for_object(directory, str(relative), where)
                flags = (*subdir_flags, *self._object_flags(makefile, directory, relative))
                el1.append(SourceFile(source, flags))
            else:
                raise BuildError(f"{where}: {item} in {name}-y is not an object")
        symbols = tuple(self.top / word for word in makefile.words("KBUILD_EXTRA_SYMBOLS"))
        return ModulePlan(name, self.top, f"{name}.ko", tuple(el1), tuple(el2), symbols)

    def _object_flags(self, makefile: Makefile, directory: Path, relative: Path) -> tuple[str, ...]:
        prefix, common = ("CFLAGS", "ccflags-y")
        if source_for_object(directory, str(relative), "").suffix == ".S":
            prefix, common = ("AFLAGS", "asflags-y")
        flags = [
            *self._flags(makefile, common, directory),
            *(self._flags(makefile, "EXTRA_CFLAGS", directory) if prefix == "CFLAGS" else ()),
            *(self._flags(makefile, "KBUILD_CFLAGS", directory) if prefix == "CFLAGS" else ()),
            *self._flags(makefile, f"{prefix}_{relative}", directory),
        ]
        if str(relative) != relative.name:
            flags += self._flags(makefile, f"{prefix}_{relative.name}", directory)
        removed = {
            *self._flags(makefile, "ccflags-remove-y", directory),
            *self._flags(makefile, f"{prefix}_REMOVE_{relative}", directory),
        }
        return tuple(flag for flag in flags if flag not in removed)

    def _expect_rule(self, makefile: Makefile, directory: Path, relative: Path, where: str) -> None:
        wanted = {str(directory.absolute() / relative), str(relative)}
        if not any(wanted & set(rule.targets) for rule in makefile.rules):
            raise BuildError(
                f"{where}: no rule makes {relative}: the Makefile needs `$(obj)/{relative}: FORCE` with "
                f"`$(Q)$(MAKE) $(build)=$(obj)/{relative.parent} $(obj)/{relative}`"
            )

    def _hyp_sources(self, directory: Path, inherited: tuple[str, ...]) -> Iterator[SourceFile]:
        path = makefile_of(directory)
        if path is None:
            raise BuildError(f"no Makefile in {directory}: it names the EL2 sources in hyp-obj-y")
        makefile = self._read(directory)
        self._clean_files(makefile, directory)
        if not makefile.get("_pkvm_emu_module_rules"):
            raise BuildError(
                f"{path}: `include $(srctree)/{MODULE_MAKEFILE}` is missing, so nothing makes {NVHE_OBJECT}"
            )
        names = list(dict.fromkeys(makefile.words("hyp-obj-y")))
        if not names:
            raise BuildError(f"{path}: hyp-obj-y names no EL2 object")
        for name in names:
            source = source_for_object(directory, name, makefile.where("hyp-obj-y"))
            flags = self._object_flags(makefile, directory, Path(name))
            subdir = self._flags(makefile, "subdir-ccflags-y", directory)
            yield SourceFile(source, (*inherited, *subdir, *flags))


def _include_hook(path: str) -> str | None:
    if path.endswith(MODULE_MAKEFILE):
        return "_pkvm_emu_module_rules := y\n"
    return "" if path.startswith(_SRCTREE) else None
