"""What a snapshot does not bring back: how the parts of a system are wired, as far as a test can change it from Python.

Functions that were replaced (``system.machine.core.on_smc = ...``, a patched method), services, handlers, observers and models that
were added, hooks of the engine, entries of the registries: all of it is compared with what it was, which takes some twenty
microseconds, and put back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pkvm_emu.hyp import registry as hyp_registry
from pkvm_emu.kernel import registry as kernel_registry
from pkvm_emu.machine.state import State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.system import System

_PACKAGE = "pkvm_emu."
#: Values and tables that nobody hangs anything on, and what the snapshot is made of.
_PLAIN = tuple(
    f"{_PACKAGE}{name}" for name in ("abi", "arch", "elf", "machine.engine", "machine.snapshot", "machine.state")
)
_TOLD = (f"{_PACKAGE}machine", f"{_PACKAGE}devices")
#: Counts that only go up.
_COUNTS = frozenset(("restores",))
_LARGE = 4096
_ABSENT = object()
_SCALARS = (int, float, str, bytes, tuple, type(None))
Container = dict[Any, Any] | list[Any] | set[Any]


class Wiring:
    """The wiring of one system at the moment at which this is made.

    Args:
        system: a system between two calls.
    """

    def __init__(self, system: System) -> None:
        self._engine = system.machine.engine
        self._hooks = frozenset(self._engine.observing)
        self._objects: list[tuple[Any, dict[str, Any]]] = []
        self._containers: list[tuple[Container, Container]] = []
        seen: dict[int, Any] = {}
        waiting: list[tuple[Any, str]] = [(system, "")]
        while waiting:
            found, owner = waiting.pop()
            if id(found) not in seen:
                # What is held here keeps its id.
                seen[id(found)] = found
                owner = type(found).__module__ if hasattr(found, "__dict__") else owner
                waiting += [(each, owner) for each in self._look_at(found, owner)]

    def _look_at(self, found: Any, owner: str) -> list[Any]:
        """Keep what ``found``, which a class of the module ``owner`` holds, is now; what it leads to."""
        if isinstance(found, (StateDict, StateList)):
            # Their contents come back with the snapshot; what is in them is wired too.
            return list(found.values() if isinstance(found, StateDict) else found)
        if isinstance(found, (dict, list, set)):
            if len(found) > _LARGE:
                return []
            items = list(found.values() if isinstance(found, dict) else found)
            # Addresses that the engine has been told of stay so.
            if not owner.startswith(_TOLD) or not all(isinstance(item, _SCALARS) for item in items):
                self._containers.append((found, found.copy()))
            return items
        if isinstance(found, (tuple, frozenset)):
            return list(found)
        kind = type(found)
        if not kind.__module__.startswith(_PACKAGE) or kind.__module__.startswith(_PLAIN) or isinstance(found, type):
            return []
        held = getattr(found, "__dict__", None)
        if held is None:
            return []
        self._objects.append((found, dict(held)))
        return list(held.values())

    def put_back(self) -> None:
        """Make everything as it was. The system's state has been restored before."""
        for hook in sorted(self._engine.observing - self._hooks):
            self._engine.unhook(hook)
        for owner, held in self._objects:
            now = vars(owner)
            if now.keys() != held.keys() or any(now[name] is not value for name, value in held.items()):
                _put_back(owner, now, held)
        for container, held_items in self._containers:
            # Equal is not enough: a method of an object that was replaced may equal the first one's.
            if container != held_items:
                _refill(container, held_items)


def _put_back(owner: Any, now: dict[str, Any], held: dict[str, Any]) -> None:
    is_state = isinstance(owner, State)
    for name in now.keys() | held.keys():
        before, after = held.get(name, _ABSENT), now.get(name, _ABSENT)
        if before is after or (is_state and not name.startswith("_")):
            continue
        # What a part counts for itself and remembers between calls is its own affair.
        own = name.startswith("_") or name in _COUNTS
        if own and isinstance(before, _SCALARS) and (isinstance(after, _SCALARS) or after is _ABSENT):
            continue
        if before is _ABSENT:
            del now[name]
        else:
            now[name] = before


def _refill(container: Any, items: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(items)
    else:
        container.update(items)


class Registries:
    """The ops, hypercalls and kernel symbols that there are before the first test; those that tests add go away again."""

    _TABLES: tuple[dict[str, Any], ...] = (
        kernel_registry.FUNCTIONS,
        kernel_registry.VARIABLES,
        hyp_registry.OPS,
        hyp_registry.HYPERCALLS,
    )

    def __init__(self) -> None:
        self._before = [dict(table) for table in self._TABLES]

    def put_back(self) -> None:
        """Remove what was added or replaced; parts of the emulator that were needed meanwhile stay."""
        for table, before in zip(self._TABLES, self._before, strict=True):
            if len(table) == len(before) and all(table.get(name) is entry for name, entry in before.items()):
                continue
            for name, entry in list(table.items()):
                if before.get(name) is entry:
                    continue
                if name in before:
                    table[name] = before[name]
                elif _is_foreign(entry):
                    del table[name]
                else:
                    before[name] = entry


def _is_foreign(entry: Any) -> bool:
    function = getattr(entry, "function", None)
    return function is not None and not str(getattr(function, "__module__", "")).startswith(_PACKAGE)
