"""The root file system that initramfs archives unpack to, in memory and read-only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pkvm_emu.kernel.initramfs.cpio import Entry

#: Symbolic links that one path may lead through (MAXSYMLINKS).
_LINK_LIMIT = 40


class RootFs:
    """Files by path. Paths are relative to the root; a leading slash makes no difference."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        #: Directories that have something in them.
        self._filled: set[str] = set()

    def add(self, entries: Iterable[Entry]) -> None:
        """Unpack entries over what is there: the last one of a path counts, but a directory stays one."""
        for entry in entries:
            if not entry.path:
                continue
            old = self._entries.get(entry.path)
            # The kernel cannot remove a directory that has something in it, and leaves it.
            if old is not None and old.is_directory and not entry.is_directory and entry.path in self._filled:
                continue
            self._entries[entry.path] = entry
            self._filled.add(entry.path.rpartition("/")[0])

    def __len__(self) -> int:
        return len(self._entries)

    def resolve(self, path: str) -> str | None:
        """The path of what ``path`` leads to through symbolic links; None where it leads nowhere."""
        done: list[str] = []
        waiting = [part for part in reversed(path.split("/")) if part]
        links = 0
        while waiting:
            part = waiting.pop()
            if part == ".":
                continue
            if part == "..":
                del done[-1:]
                continue
            here = "/".join([*done, part])
            entry = self._entries.get(here)
            if entry is None or not entry.is_link:
                done.append(part)
                continue
            links += 1
            if links > _LINK_LIMIT:
                return None
            target = bytes(entry.data).decode("utf-8", "surrogateescape")
            if target.startswith("/"):
                done = []
            waiting += [piece for piece in reversed(target.split("/")) if piece]
        return "/".join(done)

    def file(self, path: str) -> memoryview | None:
        """The contents of a regular file, or None."""
        place = self.resolve(path)
        entry = self._entries.get(place) if place is not None else None
        return entry.data if entry is not None and entry.is_file else None

    def files_below(self, path: str) -> Iterator[tuple[str, memoryview]]:
        """Path and contents of the regular files below a directory, in order of their paths."""
        place = self.resolve(path)
        if place is None:
            return
        prefix = f"{place}/" if place else ""
        for name in sorted(self._entries):
            if name.startswith(prefix):
                data = self.file(name)
                if data is not None:
                    yield name, data
