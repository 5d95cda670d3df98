"""``modprobe``: a module by its name, with what it depends on, its options, and what its tables say.

The order is that of Android's libmodprobe (system/core/libmodprobe), which the kernel's usermode helper and first-stage init
run: hard dependencies, soft ones before, the module with its options, soft ones behind.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pkvm_emu.elf.elements import NVHE_PREFIX
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.errors import InputError
from pkvm_emu.kernel.module_names import Soft, canonical, parse_soft
from pkvm_emu.kernel.module_order import needed_modules
from pkvm_emu.kernel.modules import ModuleLoadError

if TYPE_CHECKING:
    from pkvm_emu.kernel.initramfs.module_directory import ModuleDirectory
    from pkvm_emu.kernel.kernel import Kernel

Parameter = tuple[str, str | None]
_EPERM, _ENOENT, _ENOEXEC, _EEXIST, _ELOOP = 1, 2, 8, 17, 40
#: Modules that one may depend on through others.
_DEPTH_LIMIT = 64
_SHOWN = 3


class Modprobe:
    """Loads modules by name.

    Modules that the user gave come before those of the directory.

    Args:
        kernel: where they are loaded.

    Attributes:
        given: the user's modules by name.
        directory: the modules of an initramfs.
        parameters: further parameters by module, behind those of ``modules.options`` and the command line.
        prepare: called with each file before it is loaded (the made-up board).
        told: receives a line about what was passed over.
        in_turn: names that are loaded one by one, as a ``modprobe`` without ``modules.dep`` does it: none of them is loaded
            because another one needs it, and one that is there already is -EEXIST.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.given: dict[str, ModuleFile] = {}
        self.directory: ModuleDirectory | None = None
        self.parameters: dict[str, Sequence[Parameter]] = {}
        self.prepare: Callable[[ModuleFile], None] = lambda file: None
        self.told: Callable[[str], None] = lambda text: None
        self.in_turn: frozenset[str] = frozenset()

    # What is there

    def find(self, name: str) -> ModuleFile | None:
        """The file of a module, or None.

        Raises:
            ModuleLoadError: what is there is no sound module (-ENOEXEC).
        """
        name = canonical(name)
        if name in self.given:
            return self.given[name]
        try:
            return self.directory.module(name) if self.directory is not None else None
        except InputError as error:
            raise ModuleLoadError(f"{error} (-ENOEXEC)", -_ENOEXEC, name, "lookup") from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (
            canonical(name) in self.given or (self.directory is not None and name in self.directory)
        )

    @property
    def names(self) -> list[str]:
        """Every module that can be loaded, the user's first."""
        return [*self.given, *(name for name in self.directory or () if name not in self.given)]

    def dependencies(self, name: str) -> list[str]:
        """The modules that have to be there before ``name``, in the order of loading, as far as they are known.

        From ``modules.dep``, else from ``depends=``; for a module that the user gave also from the symbols that it imports.
        """
        name = canonical(name)
        file = self.find(name)
        if file is None:
            return []
        table = self.directory.dependencies.get(name) if self.directory is not None else None
        listed = list(reversed(table or ()))
        if name in self.given:
            return list(dict.fromkeys([*listed, *needed_modules(file, self.given)]))
        return listed if table is not None else [canonical(word) for word in file.depends]

    def direct_needs(self) -> dict[str, list[str]]:
        """For every module at hand the ones that it takes symbols from, as ``depmod`` finds them.

        Raises:
            ModuleLoadError: a file that is no sound module.
        """
        files = {name: file for name in self.names if (file := self.find(name)) is not None}
        owners: dict[str, str] = {}
        for name, file in files.items():
            for export in file.exports:
                owners.setdefault(export.name, name)
        table: dict[str, list[str]] = {}
        for name, file in files.items():
            used = [owners[symbol.name] for symbol in file.undefined_symbols() if symbol.name in owners]
            stated = [word for word in map(canonical, file.depends) if word in files]
            table[name] = [other for other in dict.fromkeys([*stated, *used]) if other != name]
        return table

    def soft_dependencies(self, name: str) -> Soft:
        """The modules that ought to be loaded before and after: ``modules.softdep``, else ``softdep=`` of the file."""
        name = canonical(name)
        if name not in self.given and self.directory is not None:
            found = self.directory.soft_dependencies(name)
            if found is not None:
                return found
        file = self.find(name)
        pre_post = [parse_soft(text.split()) for text in (file.modinfo.get("softdep", []) if file is not None else [])]
        return Soft([word for one in pre_post for word in one.pre], [word for one in pre_post for word in one.post])

    def options(self, name: str) -> list[Parameter]:
        """The parameters that a module gets: ``modules.options``, the command line, then the user's."""
        name = canonical(name)
        words = self.directory.options.get(name, []) if self.directory is not None else []
        return [
            *parse_parameters(words),
            *self._kernel.command_line.module_parameters(name),
            *self.parameters.get(name, ()),
        ]

    def unserved(self, file: ModuleFile) -> list[str]:
        """The symbols that a module needs and that neither this kernel nor a module that can be loaded has."""
        symbols = self._kernel.symbols
        others = [*self._kernel.loader.modules.values()]
        exported = {export.name for module in others for export in module.file.exports}
        for name in file.depends:
            other = self.find(name)
            if other is not None:
                exported.update(export.name for export in other.exports)
        return [
            symbol.name
            for symbol in file.undefined_symbols()
            if not symbol.is_weak and symbol.name not in exported and not symbols.serves(symbol.name)
        ]

    # Loading

    def load(
        self, name: str, parameters: Sequence[Parameter] = (), blocklist: bool = False, careful: bool = False
    ) -> None:
        """Load a module with everything that its tables ask for; one that is loaded already is fine.

        Args:
            name: a module, or an alias of some.
            parameters: more of them, applied last.
            blocklist: pass over what ``modules.blocklist`` names, as first-stage init and ``modprobe -b`` do.
            careful: refuse a module that needs kernel functions which nothing serves; otherwise such a function ends the
                run when it is called.

        Raises:
            ModuleLoadError: with the module that failed, the step and the errno.
        """
        _Run(self, self._kernel, blocklist, careful).load(name, parameters, ())


class _Run:
    """One ``modprobe`` process."""

    def __init__(self, store: Modprobe, kernel: Kernel, blocklist: bool, careful: bool) -> None:
        self._store = store
        self._kernel = kernel
        self._blocked = store.directory.blocklist if blocklist and store.directory is not None else set()
        self._careful = careful

    def load(self, name: str, parameters: Sequence[Parameter], above: tuple[str, ...]) -> None:
        store, wanted = self._store, canonical(name)
        if wanted in self._kernel.loader.modules:
            if wanted in store.in_turn:
                raise ModuleLoadError(f"{wanted} is loaded already (-EEXIST)", -_EEXIST, wanted, "lookup")
            return
        aliases = store.directory.aliased(name) if store.directory is not None else []
        targets = [target for target in sorted({wanted, *aliases}) if target in store]
        if not targets:
            place = f" and none is in /{store.directory.path}" if store.directory is not None else ""
            raise ModuleLoadError(f"{name}: no such module was given{place} (-ENOENT)", -_ENOENT, wanted, "lookup")
        allowed = [target for target in targets if target not in self._blocked]
        if not allowed:
            raise ModuleLoadError(f"{wanted}: modules.blocklist names it", -_EPERM, wanted, "blocklist")
        errors: list[ModuleLoadError] = []
        for target in allowed:
            try:
                self._with_dependencies(target, parameters, above)
            except ModuleLoadError as error:
                errors.append(error)
        if len(errors) == len(allowed):
            raise errors[0]

    def _with_dependencies(self, name: str, parameters: Sequence[Parameter], above: tuple[str, ...]) -> None:
        if name in self._kernel.loader.modules:
            return
        above = (*above, name)
        if len(above) > _DEPTH_LIMIT:
            raise ModuleLoadError(f"{name}: more than {_DEPTH_LIMIT} dependencies deep", -_ELOOP, name, "dependencies")
        file = self._store.find(name)
        assert file is not None
        if self._careful:
            self._refuse_unserved(file)
        for needed in self._store.dependencies(name):
            self._dependency(needed, file, above)
        soft = self._store.soft_dependencies(name)
        self._soft(name, soft.pre, above)
        if file.name in self._kernel.loader.modules:
            return
        self._store.prepare(file)
        try:
            self._kernel.loader.load(file, [*self._store.options(file.name), *parameters])
        except InputError as error:
            # A file of the user's is a mistake on the command line; one of the image fails as on a device.
            if name in self._store.given:
                raise
            raise ModuleLoadError(f"{error} (-ENOEXEC)", -_ENOEXEC, name, "link") from None
        self._soft(name, soft.post, above)

    def _dependency(self, needed: str, file: ModuleFile, above: tuple[str, ...]) -> None:
        if needed in above:
            circle = " -> ".join([*above[above.index(needed) :], needed])
            raise ModuleLoadError(
                f"{above[-1]}: dependencies in a circle: {circle}", -_ELOOP, above[-1], "dependencies"
            )
        # One that is nowhere: the link of the module says which of its symbols are missing, or Python serves them.
        if needed in self._store.in_turn:
            return
        if needed in self._store and not self._is_stood_in(needed, file):
            self.load(needed, (), above)

    def _is_stood_in(self, needed: str, file: ModuleFile) -> bool:
        """Python serves what ``file`` uses of a module which itself could not run here."""
        if needed in self._kernel.loader.modules or needed in self._store.given:
            return False
        other = self._store.find(needed)
        assert other is not None
        exported = {export.name for export in other.exports}
        used = [symbol.name for symbol in file.undefined_symbols() if symbol.name in exported]
        if any(name.startswith(NVHE_PREFIX) or not self._kernel.symbols.serves(name) for name in used):
            return False
        missing = self._store.unserved(other)
        if missing:
            self._store.told(
                f"{other.name} is left out: it needs {_listed(missing)}, which nothing serves; what is used of it is served "
                "from Python"
            )
        return bool(missing)

    def _soft(self, name: str, wanted: Sequence[str], above: tuple[str, ...]) -> None:
        for soft in wanted:
            if soft in above or soft in self._kernel.loader.modules:
                continue
            run = _Run(self._store, self._kernel, False, careful=True)
            run._blocked = self._blocked
            try:
                run.load(soft, (), above)
            except ModuleLoadError as error:
                self._store.told(f"soft dependency {soft} of {name} is not loaded: {error}")

    def _refuse_unserved(self, file: ModuleFile) -> None:
        missing = self._store.unserved(file)
        if missing:
            raise ModuleLoadError(
                f"{file.name}: needs {_listed(missing)}, which nothing serves here (-ENOENT)", -_ENOENT, file.name
            )


def parse_parameters(words: Sequence[str]) -> list[Parameter]:
    """``name=value`` and ``name`` words as pairs; quotes around a value go away.

    >>> parse_parameters(["a=1", 'b="x"', "c"])
    [('a', '1'), ('b', 'x'), ('c', None)]
    """
    pairs: list[Parameter] = []
    for word in words:
        name, equals, value = word.partition("=")
        try:
            value = "".join(shlex.split(value)) if '"' in value else value
        except ValueError:
            value = value.strip('"')
        pairs.append((name, value if equals else None))
    return pairs


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
