"""What a register may hold, as far as the analysis follows it.

A value is None (unknown), one atom, or a frozenset of atoms of one class:

* a number, or an address in the linked module: a plain ``int``;
* ``("s", offset)``: the function's stack pointer at entry plus ``offset``;
* ``("u", va)``: the address ``va`` plus or minus something unknown (``token + function - start``, ``table + 8 * index``);
* ``("l", offset)``: something loaded from ``offset`` bytes behind an unknown address;
* ``("o", offset)``: the ops pointer plus ``offset``; ``("f", offset)``: the op loaded from there. ``offset`` None: unknown.

Where paths meet, ordinary values that differ become unknown, but ``o`` and ``f`` win over everything: the analysis answers "may
this be an op?". That order (ordinary < unknown < ops) has no endless ascents, so the fixpoint ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

Atom = int | tuple[str, int | None]
Value = Atom | frozenset[Atom] | None

MASK64 = 0xFFFF_FFFF_FFFF_FFFF
MASK32 = 0xFFFF_FFFF
_ATOM_LIMIT = 16


def atoms(value: Value) -> Iterable[Atom]:
    """The atoms of a value; none for an unknown one."""
    if value is None:
        return ()
    return value if isinstance(value, frozenset) else (value,)


def pack(found: Iterable[Atom]) -> Value:
    """The value made of ``found``; unknown for nothing."""
    unique = frozenset(found)
    return next(iter(unique)) if len(unique) == 1 else unique or None


def is_ops_kind(value: Value) -> bool:
    """True for the ops pointer and for ops loaded from it."""
    if isinstance(value, frozenset):
        value = next(iter(value))
    return isinstance(value, tuple) and value[0] in "of"


def ops_only(value: Value) -> Value:
    """``value`` if it is of the ops kinds, else unknown."""
    return value if is_ops_kind(value) else None


def join(left: Value, right: Value, *, narrow: bool = False) -> Value:
    """The least value that covers both; ``narrow`` gives up sets of ordinary values at once (in loops)."""
    if left == right:
        return left
    left_ops, right_ops = is_ops_kind(left), is_ops_kind(right)
    if left_ops or right_ops:
        if not left_ops:
            return right
        return _limited(frozenset(atoms(left)) | frozenset(atoms(right))) if right_ops else left
    if left is None or right is None or narrow:
        return None
    union = frozenset(atoms(left)) | frozenset(atoms(right))
    return union if len(union) <= _ATOM_LIMIT else None


def _limited(union: frozenset[Atom]) -> Value:
    if len(union) <= _ATOM_LIMIT:
        return union
    return pack((atom[0], None) for atom in union if isinstance(atom, tuple))


def numbers(value: Value) -> list[int]:
    """The plain numbers and addresses that a value may be, ascending; none when it is unknown."""
    return sorted(atom for atom in atoms(value) if isinstance(atom, int))


def number(value: Value) -> int | None:
    """The one number that a value is, or None."""
    return value if isinstance(value, int) else None


def offsets(value: Value, kind: str) -> list[int | None]:
    """Offsets of the atoms of ``kind``, ascending, an unknown one last."""
    found = [atom[1] for atom in atoms(value) if isinstance(atom, tuple) and atom[0] == kind]
    return sorted(found, key=lambda offset: (offset is None, offset or 0))


def plus(value: Value, amount: int) -> Value:
    """``value`` + ``amount``."""
    if isinstance(value, int):
        return (value + amount) & MASK64
    if value is None:
        return None
    if isinstance(value, tuple):
        kind, offset = value
        if kind in "fl":
            return None
        return (kind, None if offset is None else offset + amount) if kind in "os" else value
    return pack(
        moved for atom in value if (moved := plus(atom, amount)) is not None and not isinstance(moved, frozenset)
    )


def add(left: Value, right: Value, is_address: Callable[[int], bool]) -> Value:
    """``left`` + ``right``; an address plus something unknown stays an address of class ``u``."""
    if isinstance(right, int) and not is_address(right):
        return plus(left, right)
    if isinstance(left, int) and not is_address(left):
        return plus(right, left)
    if isinstance(left, frozenset):
        return None if isinstance(right, frozenset) else _each(left, lambda atom: add(atom, right, is_address))
    if isinstance(right, frozenset):
        return _each(right, lambda atom: add(left, atom, is_address))
    for one, other in ((left, right), (right, left)):
        if isinstance(one, int) and (other is None or isinstance(other, tuple)):
            return ("u", one)
        if isinstance(one, tuple) and one[0] == "u":
            return one
        if isinstance(one, tuple) and one[0] == "o":
            return ("o", None)
    return None


def _each(value: frozenset[Atom], function: Callable[[Atom], Value]) -> Value:
    """``function`` of every atom; unknown as soon as one result is."""
    found: set[Atom] = set()
    for atom in value:
        result = function(atom)
        if result is None:
            return None
        found.update(atoms(result))
    return pack(found)


def subtract(left: Value, right: Value, is_address: Callable[[int], bool]) -> Value:
    """``left`` - ``right``; see :func:`add`."""
    if isinstance(left, frozenset):
        return _each(left, lambda atom: subtract(atom, right, is_address))
    if isinstance(right, int):
        if isinstance(left, int) or not is_address(right):
            return plus(left, -right)
        return left if isinstance(left, tuple) and left[0] == "u" else None
    if isinstance(left, int) and is_address(left):
        return ("u", left)
    return left if isinstance(left, tuple) and left[0] == "u" else None


def fold(value: Value, function: Callable[[int], int]) -> Value:
    """``function`` of every number; unknown as soon as something else may be meant."""
    if isinstance(value, int):
        return function(value)
    if isinstance(value, frozenset) and all(isinstance(atom, int) for atom in value):
        return pack(function(atom) for atom in value if isinstance(atom, int))
    return None
