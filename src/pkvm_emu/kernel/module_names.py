"""Names of modules, and the lists of names in their tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

MODULE_SUFFIXES = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")


class Soft(NamedTuple):
    """A ``softdep`` line: modules that ought to be loaded before and after."""

    pre: list[str]
    post: list[str]


def canonical(name: str) -> str:
    """The name of a module for a path, a file name or a name with dashes.

    >>> canonical("kernel/drivers/foo-bar.ko.gz")
    'foo_bar'
    """
    base = name.rpartition("/")[2]
    for suffix in MODULE_SUFFIXES:
        base = base.removesuffix(suffix)
    return base.replace("-", "_")


def parse_soft(words: Iterable[str]) -> Soft:
    """The modules of a ``softdep``: ``pre: a b post: c``.

    >>> parse_soft("pre: a b post: c".split())
    Soft(pre=['a', 'b'], post=['c'])
    """
    found = Soft([], [])
    current: list[str] | None = None
    for word in words:
        if word in ("pre:", "post:"):
            current = found.pre if word == "pre:" else found.post
        elif current is not None:
            current.append(canonical(word))
    return found
