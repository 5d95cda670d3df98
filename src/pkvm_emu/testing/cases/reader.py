"""Reading a case file: TOML, checked against the schema that ships for editors; what is wrong is said with its line."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from pkvm_emu.errors import InputError
from pkvm_emu.testing.cases.each import BadRow, expand
from pkvm_emu.testing.cases.model import Case, CaseFile, Step
from pkvm_emu.testing.recipe import generations

SUFFIX = ".pkvm.toml"
_SCHEMA = Path(__file__).with_name("schema.json")
_MAX_BYTES = 4 << 20


class CaseFileError(InputError):
    """A case file that says something wrong: ``FILE:LINE: what``."""

    def __init__(self, path: Path, line: int, message: str) -> None:
        super().__init__(f"{path}:{line}: {message}")
        self.line = line
        self.message = message


def read_case_file(path: Path) -> CaseFile:
    """Read and check one file.

    Raises:
        CaseFileError: it says something wrong.
        InputError: it cannot be read.
    """
    try:
        raw = path.read_bytes()
        text = raw[:_MAX_BYTES].decode("utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise CaseFileError(path, line, "not UTF-8 text") from error
    if len(raw) > _MAX_BYTES:
        raise InputError(f"{path}: larger than {_MAX_BYTES >> 20} MiB")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line, message = _syntax(text, error)
        raise CaseFileError(path, line, f"{message}") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply") from error
    locate = Locator(text)
    given = data.get("case")
    origins: list[int] = []
    if isinstance(given, list):
        try:
            data["case"], origins = expand(given)
        except BadRow as error:
            raise CaseFileError(path, locate.line(["case", error.index, "each"]), str(error)) from error
    _check(path, data, locate, origins)
    return _file(path, data, Locator(text, {"case": given}), origins)


_HEADER = re.compile(r"^\s*\[\[\s*case\s*(\.\s*step\s*)?\]\]")


class Locator:
    """Finds the line on which something in a TOML text is said.

    Args:
        text: the text.
        data: what it says, once it is known to be right: where cases and steps have headers, as they mostly do, counting
            those is enough.
    """

    def __init__(self, text: str, data: dict[str, Any] | None = None) -> None:
        self._lines = text.splitlines(keepends=True)
        #: Line of each case, and of each of its steps.
        self._headers: list[tuple[int, list[int]]] = []
        if data is not None:
            self._count_headers(data)

    def _count_headers(self, data: dict[str, Any]) -> None:
        found: list[tuple[int, list[int]]] = []
        for number, line in enumerate(self._lines, 1):
            header = _HEADER.match(line)
            if header is not None and header[1] is None:
                found.append((number, []))
            elif header is not None and found:
                found[-1][1].append(number)
        # A header inside of a string of several lines would be counted too: then the numbers differ.
        if [len(steps) for _, steps in found] == [len(case.get("step", ())) for case in data["case"]]:
            self._headers = found

    def line(self, place: Sequence[str | int]) -> int:
        """The line (from 1) of the statement after which ``place`` is there.

        The parser has no positions, so it is asked with the beginning of the text, cut shorter and shorter.
        """
        if self._headers and place[0] == "case":
            if len(place) == 2:
                return self._headers[int(place[1])][0]
            if len(place) == 4 and place[2] == "step":
                return self._headers[int(place[1])][1][int(place[3])]
        low, high = 0, len(self._lines)
        while low < high:
            middle = (low + high) // 2
            if self._has(self._parses(middle), place):
                high = middle
            else:
                low = middle + 1
        # The cut that parses may end a statement of several lines: it begins after the cut before it.
        first = low
        while first > 1 and self._parses(first - 1, exact=True) is None:
            first -= 1
        return max(first, 1)

    def _parses(self, count: int, exact: bool = False) -> Any:
        """The text's first lines as data; cut at the end of a statement, further up if need be."""
        while count:
            try:
                return tomllib.loads("".join(self._lines[:count]))
            except tomllib.TOMLDecodeError:
                if exact:
                    return None
                count -= 1
        return {}

    @staticmethod
    def _has(data: Any, place: Sequence[str | int]) -> bool:
        for key in place:
            if isinstance(data, dict) and key in data:
                data = data[str(key)]
            elif isinstance(data, list) and isinstance(key, int) and key < len(data):
                data = data[key]
            else:
                return False
        return True


_POSITION = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


def _syntax(text: str, error: tomllib.TOMLDecodeError) -> tuple[int, str]:
    """The line and the words of a syntax error."""
    message = str(error)
    found = _POSITION.search(message)
    line = int(found[1]) if found is not None and found[1] else max(text.count("\n"), 1)
    return line, _POSITION.sub("", message)


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(_SCHEMA.read_text()))


def _check(path: Path, data: Any, locate: Locator, origins: Sequence[int]) -> None:
    from jsonschema.exceptions import best_match

    error = best_match(_validator().iter_errors(data))
    if error is None:
        return
    place = list(error.absolute_path)
    if len(place) > 1 and place[0] == "case":
        place[1] = origins[int(place[1])]
    line = locate.line(place)
    raise CaseFileError(path, line, f"{_words(error, place)}")


def _words(error: Any, place: list[str | int]) -> str:
    where = "".join(f"[{key + 1}]" if isinstance(key, int) else f".{key}" for key in place).lstrip(".")
    prefix = f"{where}: " if where else ""
    if error.validator == "oneOf" and "step" in place:
        actions = [rule["required"][0] for rule in error.validator_value]
        given = [action for action in actions if action in error.instance]
        what = f"{' and '.join(given)} in one step" if given else "no action"
        return f"{prefix}{what}: a step has exactly one of {', '.join(actions)}"
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = error.schema.get("properties", {})
        unknown = sorted(set(error.instance) - set(known))
        return f"{prefix}{', '.join(unknown)} is not known here (known: {', '.join(known)})"
    if error.validator == "dependentRequired":
        return f"{prefix}{error.message.replace(' is a dependency of ', ' is needed with ')}"
    return f"{prefix}{error.message}"


def _file(path: Path, data: dict[str, Any], locate: Locator, origins: Sequence[int]) -> CaseFile:
    cases = []
    names: dict[str, int] = {}
    for number, entry in zip(origins, data["case"], strict=True):
        line = locate.line(["case", number])
        name = entry["name"]
        if name in names:
            raise CaseFileError(path, line, f"there is a case {name!r} already (line {names[name]})")
        names[name] = line
        place: list[str | int] = ["case", number, "android"] if "android" in entry else ["android"]
        try:
            wanted = generations(entry.get("android", data.get("android")))
        except Exception as error:
            raise CaseFileError(path, locate.line(place), f"{error}") from error
        steps = tuple(
            Step(locate.line(["case", number, "step", index]), step) for index, step in enumerate(entry.get("step", []))
        )
        cases.append(Case(name, line, wanted, steps, {**data, **entry}, partial(_line_in, locate, number)))
    return CaseFile(path, tuple(cases))


def _line_in(locate: Locator, number: int, *place: str | int) -> int:
    """The line of something in the case with this number."""
    return locate.line(["case", number, *place])
