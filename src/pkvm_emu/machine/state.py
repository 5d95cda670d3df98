"""Journalled state: everything that Python holds and that a snapshot has to bring back.

Services keep no mutable state of their own. What does not live in guest memory lives in objects of this module,
all owned by one :class:`Journal`. Each change appends one record (owner, key, old, new); going back to a snapshot
undoes the records since then, so a restore costs what changed and not what exists, and the records themselves are the
answer to "who changed this, and when".

>>> journal = Journal()
>>> class Uart(State):
...     def __init__(self, journal):
...         super().__init__(journal, "uart")
...         self.sent = 0
>>> uart = Uart(journal)
>>> mark = journal.mark()
>>> uart.sent = 3
>>> journal.undo_to(mark)
>>> uart.sent
0
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, MutableMapping, MutableSequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_ABSENT = object()


class Owner(Protocol):
    """What a journal record points at: something that can set one of its keys without recording it."""

    def _journal_apply(self, key: Any, value: Any) -> None: ...


class Change(NamedTuple):
    """One journal record; ``old`` or ``new`` is the module's private absent mark where there was no value."""

    owner: Owner
    key: Any
    old: Any
    new: Any


class Journal:
    """The list of changes since the current base, and the roots that a digest covers."""

    __slots__ = ("records", "roots")

    def __init__(self) -> None:
        self.records: list[Change] = []
        self.roots: dict[str, Any] = {}

    def add_root(self, name: str, value: Any) -> None:
        """Make ``value`` a root of the digest; going back to before this moment takes the root away again.

        Raises:
            ValueError: a root of that name exists.
        """
        if name in self.roots:
            raise ValueError(f"two state roots are named {name!r}")
        self.records.append(Change(self, name, _ABSENT, value))
        self.roots[name] = value

    def _journal_apply(self, key: str, value: Any) -> None:
        if value is _ABSENT:
            self.roots.pop(key, None)
        else:
            self.roots[key] = value

    def mark(self) -> int:
        """The present position; pass it to :meth:`undo_to`."""
        return len(self.records)

    def undo_to(self, mark: int) -> None:
        """Undo every change recorded after ``mark``, newest first, and forget the records."""
        records = self.records
        while len(records) > mark:
            owner, key, old, _ = records.pop()
            owner._journal_apply(key, old)

    def cut(self) -> list[Change]:
        """Hand over the records so far and begin anew (a snapshot owns the segment that led to it)."""
        segment, self.records = self.records, []
        return segment

    @staticmethod
    def replay(segment: list[Change]) -> None:
        """Apply a segment again, oldest first (going forward to a later snapshot)."""
        for owner, key, _, new in segment:
            owner._journal_apply(key, new)

    @staticmethod
    def rewind(segment: list[Change]) -> None:
        """Undo a whole segment, newest first (going back past an earlier snapshot)."""
        for owner, key, old, _ in reversed(segment):
            owner._journal_apply(key, old)

    def digest(self) -> str:
        """SHA-256 over the value of every root, by name: equal digests mean equal Python-side state."""
        out = hashlib.sha256()
        for name in sorted(self.roots):
            out.update(f"{name}={canonical(self.roots[name])}\n".encode())
        return out.hexdigest()


def canonical(value: Any) -> str:
    """A text of ``value`` that depends on nothing but its contents (no addresses, no hash order)."""
    if isinstance(value, State):
        fields = sorted(k for k in value.__dict__ if not k.startswith("_"))
        return f"{type(value).__name__}({', '.join(f'{k}={canonical(value.__dict__[k])}' for k in fields)})"
    if isinstance(value, (StateDict, dict)):
        return "{" + ", ".join(sorted(f"{canonical(k)}: {canonical(v)}" for k, v in value.items())) + "}"
    if isinstance(value, (StateList, list, tuple)):
        return "[" + ", ".join(canonical(v) for v in value) + "]"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(canonical(v) for v in value)) + "}"
    if value is None or isinstance(value, (int, str, bytes, float)):
        return repr(value)
    name = getattr(value, "__qualname__", None) or getattr(value, "name", None)
    return f"<{type(value).__name__} {name}>"


class State:
    """Base of services: public attributes assigned on an instance are journalled.

    Args:
        journal: the journal that owns the object.
        name: the name under which the object is a root of the digest; None for objects inside another one.

    Attributes that begin with an underscore are wiring (references to other services) and are not journalled.
    Mutable attribute values must be :class:`State`, :class:`StateDict` or :class:`StateList`.
    """

    def __init__(self, journal: Journal, name: str | None = None) -> None:
        object.__setattr__(self, "_journal", journal)
        if name is not None:
            journal.add_root(name, self)

    def __setattr__(self, key: str, value: Any) -> None:
        if key[0] != "_":
            fields = self.__dict__
            fields["_journal"].records.append(Change(self, key, fields.get(key, _ABSENT), value))
        object.__setattr__(self, key, value)

    def _journal_apply(self, key: str, value: Any) -> None:
        if value is _ABSENT:
            del self.__dict__[key]
        else:
            self.__dict__[key] = value


class StateDict(MutableMapping[K, V], Generic[K, V]):
    """A dict whose changes are journalled. Iteration is in insertion order; a digest sorts."""

    __slots__ = ("_data", "_journal")

    def __init__(self, journal: Journal, name: str | None = None) -> None:
        self._journal = journal
        self._data: dict[K, V] = {}
        if name is not None:
            journal.add_root(name, self)

    def __getitem__(self, key: K) -> V:
        return self._data[key]

    def __setitem__(self, key: K, value: V) -> None:
        data = self._data
        self._journal.records.append(Change(self, key, data.get(key, _ABSENT), value))
        data[key] = value

    def __delitem__(self, key: K) -> None:
        old = self._data.pop(key)
        self._journal.records.append(Change(self, key, old, _ABSENT))

    def __iter__(self) -> Iterator[K]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __contains__(self, key: object) -> bool:
        return key in self._data

    def __repr__(self) -> str:
        return repr(self._data)

    def _journal_apply(self, key: K, value: Any) -> None:
        if value is _ABSENT:
            self._data.pop(key, None)
        else:
            self._data[key] = value


class StateList(MutableSequence[V], Generic[V]):
    """A list whose changes are journalled; appending costs one record, inserting and deleting one copy."""

    __slots__ = ("_data", "_journal")

    def __init__(self, journal: Journal, name: str | None = None, initial: Iterable[V] = ()) -> None:
        self._journal = journal
        self._data: list[V] = list(initial)
        if name is not None:
            journal.add_root(name, self)

    def __getitem__(self, index: Any) -> Any:
        return self._data[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        if not isinstance(index, int):
            data = list(self._data)
            data[index] = value
            self._replace(data)
            return
        index = range(len(self._data))[index]
        self._journal.records.append(Change(self, index, self._data[index], value))
        self._data[index] = value

    def __delitem__(self, index: Any) -> None:
        data = list(self._data)
        del data[index]
        self._replace(data)

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[V]:
        return iter(self._data)

    def __repr__(self) -> str:
        return repr(self._data)

    def insert(self, index: int, value: V) -> None:
        """Insert before ``index`` (one copy of the list goes to the journal)."""
        data = list(self._data)
        data.insert(index, value)
        self._replace(data)

    def append(self, value: V) -> None:
        """Append one value (one small record)."""
        self._journal.records.append(Change(self, len(self._data), _ABSENT, value))
        self._data.append(value)

    def clear(self) -> None:
        """Remove everything."""
        self._replace([])

    def _replace(self, data: list[V]) -> None:
        self._journal.records.append(Change(self, None, self._data, data))
        self._data = data

    def _journal_apply(self, key: int | None, value: Any) -> None:
        if key is None:
            self._data = value
        elif value is _ABSENT:
            # Appends are undone newest first, so the value to drop is always the last one.
            del self._data[key:]
        elif key == len(self._data):
            self._data.append(value)
        else:
            self._data[key] = value
