"""A directory of kernel modules with the tables that ``depmod`` makes for it.

Source: modules.dep(5), modprobe.d(5); the tables that Android's first-stage init and ``modprobe`` read besides
(``modules.load``, ``modules.options``, ``modules.blocklist``): system/core/libmodprobe.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase

from pkvm_emu.elf.decompress import compression_of, decompress
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.errors import InputError
from pkvm_emu.kernel.initramfs.rootfs import RootFs
from pkvm_emu.kernel.module_names import MODULE_SUFFIXES, Soft, canonical, parse_soft

#: What one compressed module may unpack to, in bytes.
_MODULE_LIMIT = 256 << 20


class ModuleDirectory:
    """The modules below one directory of a root file system, and its tables.

    Attributes:
        path: the directory.
        load_list: ``modules.load``, in order.
        dependencies: ``modules.dep``: for a module the ones that it needs, the last of them to be loaded first.
        options: ``modules.options`` by module, each ``name=value`` or ``name``.
        blocklist: ``modules.blocklist``.
    """

    def __init__(self, root: RootFs, path: str) -> None:
        self.path = path
        self._root = root
        self._paths: dict[str, str] = {}
        for place, _ in root.files_below(path):
            if place.endswith(MODULE_SUFFIXES):
                self._paths.setdefault(canonical(place), place)
        self._parsed: dict[str, ModuleFile] = {}
        self.dependencies: dict[str, list[str]] = {}
        self.load_list: list[str] = []
        self.options: dict[str, list[str]] = {}
        self.blocklist: set[str] = set()
        self._aliases: list[tuple[str, str]] = []
        self._soft: dict[str, Soft] = {}
        self._read_tables()

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and canonical(name) in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._paths))

    def __len__(self) -> int:
        return len(self._paths)

    def file_path(self, name: str) -> str | None:
        """Where the module's file is in the root file system."""
        return self._paths.get(canonical(name))

    def contents(self, name: str) -> bytes | None:
        """The ``.ko`` of a module, unpacked; None where it is not here.

        Raises:
            InputError: it is compressed and damaged.
        """
        path = self.file_path(name)
        data = self._root.file(path) if path is not None else None
        if data is None or path is None:
            return None
        if compression_of(data) is None:
            return bytes(data)
        return decompress(data, _MODULE_LIMIT, path).data

    def module(self, name: str) -> ModuleFile | None:
        """The module's file, read when somebody first asks.

        Raises:
            InputError: it is not a sound module.
        """
        name = canonical(name)
        if name not in self._parsed:
            data = self.contents(name)
            if data is None:
                return None
            self._parsed[name] = ModuleFile.parse(data, self._paths[name].rpartition("/")[2])
        return self._parsed[name]

    def soft_dependencies(self, name: str) -> Soft | None:
        """What ``modules.softdep`` says about a module; None where it has no line."""
        return self._soft.get(name)

    def aliased(self, name: str) -> list[str]:
        """The modules that have ``name`` as an alias, in order of the table."""
        return [module for pattern, module in self._aliases if fnmatchcase(name, pattern)]

    def with_el2_code(self) -> list[str]:
        """The modules that load an EL2 half, by name."""
        found = []
        for name in self:
            with contextlib.suppress(InputError):
                if b"__pkvm_load_el2_module\0" in (self.contents(name) or b""):
                    file = self.module(name)
                    found += [name] if file is not None and file.has_el2 else []
        return found

    # Tables

    def _read_tables(self) -> None:
        readers: dict[str, Callable[[list[str]], None]] = {
            "modules.dep": self._read_dependency,
            "modules.load": lambda words: self.load_list.append(canonical(words[0])),
            "modules.options": self._read_option,
            "modules.softdep": self._read_soft,
            "modules.alias": self._read_alias,
            "modules.blocklist": self._read_block,
        }
        for table, read in readers.items():
            for words in self._lines(table):
                read(words)

    def _lines(self, table: str) -> Iterable[list[str]]:
        data = self._root.file(f"{self.path}/{table}")
        if data is None:
            return
        for line in bytes(data).decode("utf-8", "replace").splitlines():
            words = line.split()
            if words and not words[0].startswith("#"):
                yield words

    def _read_dependency(self, words: list[str]) -> None:
        if words[0].endswith(":"):
            self.dependencies[canonical(words[0][:-1])] = [canonical(word) for word in words[1:]]

    def _read_option(self, words: list[str]) -> None:
        if words[0] == "options" and len(words) > 2:
            self.options.setdefault(canonical(words[1]), []).extend(words[2:])

    def _read_soft(self, words: list[str]) -> None:
        if words[0] == "softdep" and len(words) > 2:
            found = parse_soft(words[2:])
            known = self._soft.setdefault(canonical(words[1]), Soft([], []))
            known.pre.extend(found.pre)
            known.post.extend(found.post)

    def _read_alias(self, words: list[str]) -> None:
        if words[0] == "alias" and len(words) == 3:
            self._aliases.append((words[1], canonical(words[2])))

    def _read_block(self, words: list[str]) -> None:
        if words[0] in ("blocklist", "blacklist") and len(words) == 2:
            self.blocklist.add(canonical(words[1]))


def _by_number(version: str) -> tuple[list[int], str]:
    return [int(digits[:9]) for digits in re.findall(r"[0-9]+", version)], version


def find_module_directory(root: RootFs) -> ModuleDirectory | None:
    """The directory that first-stage init uses: the one below ``lib/modules`` with the tables, else ``lib/modules`` itself.

    With several versions the newest one with a ``modules.load`` or ``modules.dep`` counts.
    """
    tables = ("modules.load", "modules.dep")
    base = root.resolve("lib/modules")
    if base is None:
        return None
    places = {path[len(base) + 1 :] for path, _ in root.files_below(base)}
    versions = sorted(
        {place.partition("/")[0] for place in places if place.partition("/")[2] in tables}, key=_by_number
    )
    has_own = any(table in places for table in tables)
    if versions and not has_own:
        return ModuleDirectory(root, f"{base}/{versions[-1]}")
    return ModuleDirectory(root, base) if places else None
