"""Headers named by a path into a kernel tree that is not there.

A module with hypervisor events says ``#define HYP_EVENT_FILE ../../../../drivers/foo/hyp/events.h``, relative to a
header directory of the kernel. The header is looked up by the longest tail of that path which exists below the
module's own directory (``hyp/events.h``), and a forwarding header is put where the compiler will look.
"""

from __future__ import annotations

import posixpath
from pathlib import Path

from pkvm_emu.errors import BuildError


class MissingHeaders:
    """Finds such headers for one source; ``forwards`` is the directory that its forwarding headers go to."""

    def __init__(self, module: Path, forwards: Path) -> None:
        self.module = module
        self.forwards = forwards
        self._depths: dict[int, Path] = {}
        self._names: set[str] = set()

    def flags(self) -> list[str]:
        """Include-path flags, one for each depth of ``../`` met so far; behind all others."""
        return [f"-I{path}" for _, path in sorted(self._depths.items())]

    def provide(self, name: str, source: Path, where: str) -> bool:
        """Make the include of *name* from *source* work; False if *name* does not start with ``../``.

        *where* is the ``file:line`` of the include. Raises BuildError if no tail of the path exists, or several do.
        """
        parts = posixpath.normpath(name).split("/")
        ups = next((index for index, part in enumerate(parts) if part != ".."), len(parts))
        tail = parts[ups:]
        if ups == 0 or not tail or name in self._names:
            return False
        self._names.add(name)
        found = self._find(tail, source, where, name)
        root = self.forwards / f"up{ups}"
        start = root.joinpath(*(["x"] * ups))
        forward = root.joinpath(*tail)
        # Every directory that the path passes through must exist, also those that a later `..` leaves again.
        place = start
        place.mkdir(parents=True, exist_ok=True)
        for part in name.split("/")[:-1]:
            place = place.parent if part == ".." else place / part
            place.mkdir(parents=True, exist_ok=True)
        forward.parent.mkdir(parents=True, exist_ok=True)
        forward.write_bytes(f'#include "{found.absolute()}"\n'.encode("utf-8", "surrogateescape"))
        self._depths[ups] = start
        return True

    def _find(self, tail: list[str], source: Path, where: str, name: str) -> Path:
        for start in range(len(tail)):
            rest = Path(*tail[start:])
            for base in (self.module, source.parent):
                if (base / rest).is_file():
                    return base / rest
            matches = sorted(path for path in self.module.rglob(rest.name) if path.is_file() and _ends_with(path, rest))
            if len(matches) == 1:
                return matches[0]
            if matches:
                listed = ", ".join(str(path) for path in matches)
                raise BuildError(
                    f"{where}: {name} (included for {source}) can be any of {listed}: name more of its path"
                )
        raise BuildError(
            f"{where}: cannot find {name} (included for {source}): no file below {self.module} is called {tail[-1]}"
        )


def _ends_with(path: Path, tail: Path) -> bool:
    return path.parts[-len(tail.parts) :] == tail.parts
