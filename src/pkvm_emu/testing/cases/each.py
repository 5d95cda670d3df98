"""Cases written as tables: ``each`` has rows, and one case is made of each row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pkvm_emu.errors import UsageError

_PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_KEY = "each"


def expand(cases: list[Any]) -> tuple[list[Any], list[int]]:
    """The cases with one for each row of their ``each``, and the index in ``cases`` that each came from.

    ``"{name}"`` becomes the value that the row has for ``name``, of whatever type; inside a longer text, its text.

    Raises:
        BadRow: a row that is no table, or a name that a row does not have.
    """
    found, origins = [], []
    for index, case in enumerate(cases):
        rows = case.get(_KEY) if isinstance(case, Mapping) else None
        if rows is None:
            found.append(case)
            origins.append(index)
            continue
        if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
            raise BadRow(index, "each is an array of tables, one for each case: each = [{ pfn = 0x48000 }, ...]")
        body = {name: value for name, value in case.items() if name != _KEY}
        for row in rows:
            try:
                found.append(_filled(body, row))
            except KeyError as error:
                known = ", ".join(row)
                raise BadRow(index, f"a row of each has no {error.args[0]!r} (it has {known})") from error
            origins.append(index)
    return found, origins


class BadRow(UsageError):
    """What is wrong with the ``each`` of the case at ``index``."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def _filled(value: Any, row: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {_filled_key(name, row): _filled(each, row) for name, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, row) for each in value]
    if not isinstance(value, str):
        return value
    whole = _PLACE.fullmatch(value)
    return row[whole[1]] if whole is not None else _filled_key(value, row)


def _filled_key(text: str, row: Mapping[str, Any]) -> str:
    return _PLACE.sub(lambda found: _text(row[found[1]]), text)


def _text(value: Any) -> str:
    # Addresses of pages are looked up by their text, and names are read by people.
    return f"{value:#x}" if isinstance(value, int) and not isinstance(value, bool) and value > 9 else str(value)
