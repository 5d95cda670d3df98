"""``/sys/module``: the loaded modules and their parameters, made from the loader's list at each look.

Sources: ``kernel/module/main.c``, ``kernel/params.c``, ``fs/kernfs/file.c`` (root is bound by the permission bits here).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pkvm_emu.kernel.fs.memory_fs import MemoryDirectory
from pkvm_emu.kernel.fs.node import Directory, Node, TextFile
from pkvm_emu.kernel.fs.procfs import module_size, module_taint
from pkvm_emu.kernel.fs.registry import node
from pkvm_emu.kernel.parameters import ModuleParameter
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel
    from pkvm_emu.kernel.modules import LoadedModule

_STATES = {"coming": "coming", "live": "live", "stopped": "coming", "gone": "going"}


class SysfsFile(TextFile):
    """A text file of sysfs: the permission bits bind root too, and a write is one call of ``store``."""

    def __init__(
        self,
        show: Callable[[], str | bytes | int] | None,
        store: Callable[[bytes], int] | None = None,
        mode: int = 0o444,
    ) -> None:
        super().__init__(show, store, mode, strict=True)

    @property
    def size(self) -> int:
        return 4096


class ParameterFile(SysfsFile):
    """``/sys/module/NAME/parameters/PARAMETER``: reads and writes run the parameter's own ops in the module."""

    def __init__(self, kernel: Kernel, parameter: ModuleParameter) -> None:
        self._kernel = kernel
        self._parameter = parameter
        super().__init__(self._get, self._set, parameter.mode & 0o777)

    def _get(self) -> str | int:
        return self._kernel.parameters.get(self._parameter)

    def _set(self, data: bytes) -> int:
        # The op gets a C string, newline included; its answer above zero counts as success, as in the kernel.
        text = data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
        return min(self._kernel.parameters.set(self._parameter, text), 0)


class ParametersDirectory(Directory):
    """The parameters of a module that have a file (mode other than 0)."""

    def __init__(self, kernel: Kernel, module: LoadedModule) -> None:
        self._kernel = kernel
        self._module = module

    def _visible(self) -> dict[str, ModuleParameter]:
        return {p.name: p for p in self._kernel.parameters.of(self._module) if p.mode & 0o777}

    def entries(self) -> Iterable[str]:
        return self._visible()

    def lookup(self, name: str) -> Node | None:
        parameter = self._visible().get(name)
        return ParameterFile(self._kernel, parameter) if parameter is not None else None


class HoldersDirectory(Directory):
    """``/sys/module/NAME/holders``: the directories of the modules that use this one's symbols."""

    def __init__(self, kernel: Kernel, module: LoadedModule) -> None:
        self._kernel = kernel
        self._module = module

    def entries(self) -> Iterable[str]:
        return list(self._module.users)

    def lookup(self, name: str) -> Node | None:
        module = self._kernel.loader.modules.get(name) if name in self._module.users else None
        return ModuleDirectory(self._kernel, module) if module is not None else None


class ModuleDirectory(Directory):
    """``/sys/module/NAME``."""

    def __init__(self, kernel: Kernel, module: LoadedModule) -> None:
        self._kernel = kernel
        self._module = module

    def _texts(self) -> dict[str, str]:
        module = self._module
        texts = {
            "coresize": str(module_size(module)),
            "initstate": _STATES.get(module.status, module.status),
            "refcnt": str(module.references),
            "taint": module_taint(module),
        }
        for key in ("version", "srcversion"):
            if module.file.modinfo.get(key):
                texts[key] = module.file.modinfo[key][0]
        return texts

    def _parameters(self) -> ParametersDirectory | None:
        directory = ParametersDirectory(self._kernel, self._module)
        return directory if any(True for _ in directory.entries()) else None

    @property
    def extra(self) -> MemoryDirectory:
        """What the module itself put into its directory (attributes of ``THIS_MODULE->mkobj.kobj``)."""
        return self._kernel.part(ModuleExtras).of(self._module.name)

    def entries(self) -> Iterable[str]:
        yield from self._texts()
        yield "holders"
        if self._parameters() is not None:
            yield "parameters"
        known = self._kernel.part(ModuleExtras).directories.get(self._module.name)
        if known is not None:
            yield from known.entries()

    def lookup(self, name: str) -> Node | None:
        if name == "parameters":
            return self._parameters()
        if name == "holders":
            return HoldersDirectory(self._kernel, self._module)
        if name not in self._texts():
            known = self._kernel.part(ModuleExtras).directories.get(self._module.name)
            return known.lookup(name) if known is not None else None
        return SysfsFile(lambda: self._texts()[name] + "\n")


@kernel_part
class ModuleExtras(State):
    """Entries that modules added below ``/sys/module/NAME``, by module name."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.sysfs.modules")
        self._own_journal = kernel.machine.journal
        self.directories: StateDict[str, MemoryDirectory] = StateDict(
            kernel.machine.journal, "kernel.sysfs.modules.directories"
        )

    def of(self, name: str) -> MemoryDirectory:
        """The entries of one module."""
        found = self.directories.get(name)
        if found is None:
            found = self.directories[name] = MemoryDirectory(self._own_journal, writable=False)
        return found


@node("/sys/module")
class ModulesDirectory(Directory):
    """One directory a loaded module."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def entries(self) -> Iterable[str]:
        return list(self._kernel.loader.modules)

    def lookup(self, name: str) -> Node | None:
        module = self._kernel.loader.modules.get(name)
        return ModuleDirectory(self._kernel, module) if module is not None else None
