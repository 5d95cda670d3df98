"""Whether a module may use a symbol that another module exports: licence, version, namespace.

Source: ``resolve_symbol()`` and what it calls in ``kernel/module/{main,version}.c``. The checks are between modules only: what the
kernel itself exports has no versions here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.abi.errno import EINVAL, ENOENT
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.kernel.line_facts import line_facts

if TYPE_CHECKING:
    from pkvm_emu.elf.exports import Export
    from pkvm_emu.kernel.kernel import Kernel
    from pkvm_emu.kernel.modules import LoadedModule

_GPL_COMPATIBLE = (
    "GPL",
    "GPL v2",
    "GPL and additional rights",
    "Dual BSD/GPL",
    "Dual MIT/GPL",
    "Dual MPL/GPL",
)
_ERROR, _WARNING = 3, 4


class Refusal(NamedTuple):
    """Why a symbol was not linked: the errno (negative), and the reason for people."""

    errno: int
    reason: str


def licence_of(file: ModuleFile) -> str:
    """The module's licence as ``MODULE_LICENSE`` has it; ``unspecified`` without one."""
    return file.modinfo.get("license", ["unspecified"])[0]


def is_proprietary(file: ModuleFile) -> bool:
    """The licence is none that the kernel takes for compatible with the GPL (include/linux/license.h)."""
    return licence_of(file) not in _GPL_COMPATIBLE


def _has_versions(file: ModuleFile) -> bool:
    tables = (file.section(name) for name in ("__versions", "__version_ext_crcs"))
    return any(table is not None and table.size for table in tables)


class Imports:
    """The symbols that one module takes from others while it is being linked.

    Args:
        kernel: where it is loaded.
        file: the module.
        modules: the loaded modules by name, in the order of loading; the first that exports a name gives it.

    Attributes:
        refused: the symbols that were not linked, by name.
        proprietary: the module's licence is not compatible with the GPL, or it took such a module's symbols.
    """

    def __init__(self, kernel: Kernel, file: ModuleFile, modules: Mapping[str, LoadedModule]) -> None:
        self._kernel = kernel
        self._file = file
        self._namespaces = set(file.modinfo.get("import_ns", ()))
        self._uses_gpl_only = False
        self._told_no_version = False
        self._exports: dict[str, tuple[LoadedModule, Export]] = {}
        for module in modules.values():
            for export in module.file.exports:
                self._exports.setdefault(export.name, (module, export))
        self.refused: dict[str, Refusal] = {}
        self.proprietary = is_proprietary(file)

    def __contains__(self, name: object) -> bool:
        return name in self._exports

    def resolve(self, name: str) -> int | None:
        """The address of a symbol that another module exports; None where that module does not give it to this one."""
        module, export = self._exports[name]
        refusal = self._refusal(module, export)
        if refusal is not None:
            self.refused[name] = refusal
            return None
        return module.symbol(name)

    def duplicate(self) -> tuple[str, str] | None:
        """A symbol that this module exports and that a loaded one exports already, and that module's name."""
        for export in self._file.exports:
            if export.name in self._exports:
                return export.name, self._exports[export.name][0].name
        return None

    def _refusal(self, module: LoadedModule, export: Export) -> Refusal | None:
        # In the order of the kernel: a symbol may break several rules.
        return self._licence(module, export) or self._version(module, export) or self._namespace(module, export)

    def _licence(self, module: LoadedModule, export: Export) -> Refusal | None:
        file, log = self._file, self._kernel.log
        if export.gpl_only:
            if self.proprietary:
                licence = licence_of(file)
                return Refusal(-ENOENT, f"{module.name} exports it to GPL modules only, and the licence is {licence!r}")
            self._uses_gpl_only = True
        if not module.proprietary:
            return None
        named = line_facts(self._kernel.generation.kernel).inherited_taint_names_symbol
        symbols = f"symbols {export.name}" if named else "symbols"
        if self._uses_gpl_only:
            text = f"{file.name}: module using GPL-only symbols uses {symbols} from proprietary module {module.name}."
            log.write(text, _ERROR)
            return Refusal(-ENOENT, f"it uses GPL-only symbols too, and {module.name} is proprietary")
        if not self.proprietary:
            text = f"{file.name}: module uses {symbols} from proprietary module {module.name}, inheriting taint."
            log.write(text, _WARNING)
            self.proprietary = True
        return None

    def _version(self, module: LoadedModule, export: Export) -> Refusal | None:
        if export.crc is None or self._kernel.ignores_versions:
            return None
        file = self._file
        wanted = file.versions.get(export.name)
        if wanted == export.crc:
            return None
        if wanted is not None:
            self._kernel.log.write(f"{file.name}: disagrees about version of symbol {export.name}", _WARNING)
            return Refusal(
                -EINVAL,
                f"built against another {module.name}: version {wanted:#010x}, exported is {export.crc:#010x} "
                "(--ignore-versions links it all the same)",
            )
        if not _has_versions(file):
            # The kernel of a phone is built without CONFIG_MODULE_FORCE_LOAD.
            return Refusal(
                -EINVAL,
                f"{module.name} exports it with a version and this module was built without (--ignore-versions)",
            )
        if not self._told_no_version:
            self._told_no_version = True
            extended = "extended " if file.section("__version_ext_crcs") is not None else ""
            self._kernel.log.write(f"{file.name}: no {extended}symbol version for {export.name}", _WARNING)
        return None

    def _namespace(self, module: LoadedModule, export: Export) -> Refusal | None:
        if not export.namespace or export.namespace in self._namespaces:
            return None
        name, space = self._file.name, export.namespace
        text = f"{name}: module uses symbol ({export.name}) from namespace {space}, but does not import it."
        self._kernel.log.write(text, _ERROR)
        return Refusal(-EINVAL, f"it is in the namespace {space} of {module.name}: MODULE_IMPORT_NS is missing")
