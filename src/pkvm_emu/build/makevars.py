"""A reader for the subset of GNU make that module Makefiles are written in.

Variables, conditionals, includes, functions and the heads of rules are understood; recipes are never run. What is not
understood is an error that names the file and the line, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pkvm_emu.build.makefunctions import FUNCTIONS, CallContext, UnsupportedFunction, split_arguments
from pkvm_emu.errors import BuildError

_PREFIX = re.compile(r"^\s*(?P<words>(?:(?:override|export|private)\s+)*)")
_OPERATOR = re.compile(r"::?:?=|\+=|\?=|=")
_CONDITIONAL = re.compile(r"^\s*(ifeq|ifneq|ifdef|ifndef)\b\s*(.*)$")
_INCLUDE = re.compile(r"^\s*(-include|sinclude|include)\s+(.*)$")
_IGNORED = re.compile(r"^\s*(export|unexport|vpath|undefine)\b")
_UNSUPPORTED = ("call", "eval", "file", "flavor", "guile", "join", "let", "origin", "suffix", "value", "wordlist")
_DEPTH_LIMIT = 100
_EXPANSION_LIMIT = 200_000
_LENGTH_LIMIT = 1 << 20
_COMMAND_LINE = "command line"


@dataclass
class Rule:
    """The head of a rule: ``targets: prerequisites``."""

    targets: tuple[str, ...]
    prerequisites: tuple[str, ...]
    where: str


@dataclass
class _Variable:
    value: str
    recursive: bool
    where: str


@dataclass
class _Condition:
    active: bool
    taken: bool
    where: str
    seen_else: bool = False


@dataclass
class Makefile:
    """The state after reading a Makefile: its variables and its rules.

    ``include_hook`` is asked first for each included path; it returns the text to read instead (``""`` to skip), or
    None to read the file itself.
    """

    include_hook: Callable[[str], str | None] = lambda path: None
    rules: list[Rule] = field(default_factory=list)
    _variables: dict[str, _Variable] = field(default_factory=dict)
    _directory: Path = Path()
    _expansions: int = 0

    def set(self, variables: Mapping[str, str]) -> None:
        """Define *variables* before reading, as a calling make does."""
        for name, value in variables.items():
            self._variables[name] = _Variable(value, False, _COMMAND_LINE)

    def get(self, name: str) -> str:
        """The expanded value of the variable *name*, ``""`` if it is not set."""
        variable = self._variables.get(name)
        if variable is None:
            return ""
        return self._expand(variable.value, variable.where, 0) if variable.recursive else variable.value

    def words(self, name: str) -> list[str]:
        """The expanded value of *name*, split at blanks."""
        return self.get(name).split()

    def names(self) -> list[str]:
        """All variables that are set, in order of their first assignment."""
        return list(self._variables)

    def where(self, name: str) -> str:
        """``file:line`` of the first assignment of *name*."""
        variable = self._variables.get(name)
        return variable.where if variable else "?"

    def read(self, path: Path) -> None:
        """Read the Makefile *path*. Raises BuildError with file and line for what cannot be understood."""
        try:
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise BuildError(f"cannot read {path}: {error.strerror}") from error
        self._directory = path.parent
        self._read_text(text, str(path), 0)

    def _read_text(self, text: str, file: str, depth: int) -> None:
        if depth > _DEPTH_LIMIT:
            raise BuildError(f"{file}: Makefiles include each other without end")
        conditions: list[_Condition] = []
        lines = text.split("\n")
        index = 0
        while index < len(lines):
            where = f"{file}:{index + 1}"
            line = lines[index]
            index += 1
            while line.endswith("\\") and index < len(lines):
                line = line[:-1].rstrip() + " " + lines[index].lstrip()
                index += 1
            if line.startswith("\t") and self.rules:
                continue
            line = _strip_comment(line)
            if line.strip() and not self._conditional(line.strip(), where, conditions) and _active(conditions):
                if re.match(r"^\s*define\b", line):
                    index = self._define(line, lines, index, where)
                else:
                    self._statement(line, where, depth)
        if conditions:
            raise BuildError(f"{conditions[-1].where}: this conditional has no endif")

    def _conditional(self, line: str, where: str, conditions: list[_Condition]) -> bool:
        match = _CONDITIONAL.match(line)
        if match:
            live = _active(conditions)
            result = live and self._test(match[1], match[2], where)
            conditions.append(_Condition(result, result or not live, where))
            return True
        if re.match(r"^else\b", line):
            if not conditions or conditions[-1].seen_else:
                raise BuildError(f"{where}: else without a conditional")
            current = conditions[-1]
            rest = line[4:].strip()
            match = _CONDITIONAL.match(rest)
            if rest and not match:
                raise BuildError(f"{where}: cannot read {line!r}")
            current.seen_else = not match
            outer = _active(conditions[:-1])
            wanted = outer and not current.taken and (not match or self._test(match[1], match[2], where))
            current.active = wanted
            current.taken = current.taken or wanted
            return True
        if re.match(r"^endif\b", line):
            if not conditions:
                raise BuildError(f"{where}: endif without a conditional")
            conditions.pop()
            return True
        return False

    def _test(self, kind: str, rest: str, where: str) -> bool:
        if kind in ("ifdef", "ifndef"):
            variable = self._variables.get(self._expand(rest, where, 0).strip())
            return (variable is not None and variable.value != "") == (kind == "ifdef")
        left, right = _two_operands(rest, where)
        equal = self._expand(left, where, 0) == self._expand(right, where, 0)
        return equal == (kind == "ifeq")

    def _define(self, line: str, lines: list[str], index: int, where: str) -> int:
        name = line.split()[1] if len(line.split()) > 1 else ""
        body: list[str] = []
        while index < len(lines):
            text = lines[index]
            index += 1
            if text.strip() == "endef":
                self._variables[name] = _Variable("\n".join(body), True, where)
                return index
            body.append(text)
        raise BuildError(f"{where}: this define has no endef")

    def _statement(self, line: str, where: str, depth: int) -> None:
        include = _INCLUDE.match(line)
        if include:
            self._include(include[1], self._expand(include[2], where, 0).split(), where, depth)
            return
        assignment = _split_assignment(line)
        if assignment:
            self._assign(*assignment, where)
            return
        if _IGNORED.match(line):
            return
        expanded = self._expand(line, where, 0).strip()
        if not expanded:
            return
        targets, colon, rest = expanded.partition(":")
        if not colon:
            raise BuildError(f"{where}: cannot read {line.strip()!r}")
        self.rules.append(Rule(tuple(targets.split()), tuple(rest.lstrip(":").partition(";")[0].split()), where))

    def _include(self, keyword: str, paths: list[str], where: str, depth: int) -> None:
        for name in paths:
            text = self.include_hook(name)
            if text is None:
                path = Path(name) if Path(name).is_absolute() else self._directory / name
                try:
                    text = path.read_text(encoding="utf-8", errors="surrogateescape")
                except OSError as error:
                    if keyword != "include":
                        continue
                    raise BuildError(f"{where}: cannot include {name}: {error.strerror}") from error
            self._read_text(text, name, depth + 1)

    def _assign(self, prefix: str, name: str, operator: str, value: str, where: str) -> None:
        name = self._expand(name, where, 0).strip()
        old = self._variables.get(name)
        if old is not None and old.where == _COMMAND_LINE and "override" not in prefix:
            return
        if operator == "?=":
            if old is None:
                self._variables[name] = _Variable(value, True, where)
        elif operator == "+=" and old is not None:
            added, deferred = (value, True) if old.recursive else self._expand_or_defer(value, where)
            before = old.value if old.recursive or not deferred else old.value.replace("$", "$$")
            self._variables[name] = _Variable(f"{before} {added}".strip(), deferred, old.where)
        elif operator in ("=", "+="):
            self._variables[name] = _Variable(value, True, where)
        else:
            text, deferred = self._expand_or_defer(value, where)
            self._variables[name] = _Variable(text, deferred, where)

    def _expand_or_defer(self, value: str, where: str) -> tuple[str, bool]:
        # `KVER := $(shell …)` stands at the top of many Makefiles and decides nothing: it fails only where it is used.
        try:
            return self._expand(value, where, 0), False
        except UnsupportedFunction:
            return value, True

    def _expand(self, text: str, where: str, depth: int) -> str:
        self._expansions += 1
        if depth > _DEPTH_LIMIT or self._expansions > _EXPANSION_LIMIT:
            raise BuildError(f"{where}: a variable refers to itself, or grows without end")
        result: list[str] = []
        position = 0
        while True:
            dollar = text.find("$", position)
            if dollar < 0 or dollar == len(text) - 1:
                value = "".join(result) + text[position:]
                if len(value) > _LENGTH_LIMIT:
                    raise BuildError(f"{where}: the value is too long")
                return value
            result.append(text[position:dollar])
            mark = text[dollar + 1]
            if mark == "$":
                result.append("$")
                position = dollar + 2
            elif mark in "({":
                end = _closing(text, dollar + 1, where)
                result.append(self._reference(text[dollar + 2 : end], where, depth + 1))
                position = end + 1
            else:
                result.append(self._value(mark, depth + 1))
                position = dollar + 2

    def _value(self, name: str, depth: int) -> str:
        variable = self._variables.get(name)
        if variable is None:
            return ""
        return self._expand(variable.value, variable.where, depth) if variable.recursive else variable.value

    def _reference(self, body: str, where: str, depth: int) -> str:
        word, blank, rest = body.partition(" ")
        if blank and word in FUNCTIONS:
            raw = split_arguments(rest.lstrip())
            return FUNCTIONS[word](raw, lambda text: self._expand(text, where, depth), self._call_context(where))
        if blank and word in _UNSUPPORTED:
            raise UnsupportedFunction(f"{where}: $({word} …) is not understood by pkvm-emu: write its result instead")
        name, colon, substitution = body.partition(":")
        if colon and "=" in substitution:
            old, _, new = substitution.partition("=")
            pattern = old if "%" in old else f"%{old}"
            replacement = new if "%" in old else f"%{new}"
            words = self._value(self._expand(name, where, depth), depth)
            parts = [self._expand(pattern, where, depth), self._expand(replacement, where, depth), words]
            return FUNCTIONS["patsubst"](parts, lambda text: text, self._call_context(where))
        return self._value(self._expand(body, where, depth), depth)

    def _call_context(self, where: str) -> CallContext:
        return CallContext(where, self._directory, self.get, self._set_temporary)

    def _set_temporary(self, name: str, value: str | None) -> None:
        if value is None:
            self._variables.pop(name, None)
        else:
            self._variables[name] = _Variable(value, False, "foreach")


def _active(conditions: list[_Condition]) -> bool:
    return all(condition.active for condition in conditions)


def _strip_comment(line: str) -> str:
    position = line.find("#")
    while position > 0 and line[position - 1] == "\\":
        line = line[: position - 1] + line[position:]
        position = line.find("#", position)
    return line if position < 0 else line[:position]


def _split_assignment(line: str) -> tuple[str, str, str, str] | None:
    """(prefix words, name, operator, value) of an assignment, None for any other line."""
    prefix = _PREFIX.match(line)
    assert prefix is not None
    depth, index = 0, prefix.end()
    while index < len(line):
        char = line[index]
        if char in "({":
            depth += 1
        elif char in ")}":
            depth -= 1
        elif depth == 0:
            operator = _OPERATOR.match(line, index)
            if operator:
                name = line[prefix.end() : index].strip()
                return (prefix["words"], name, operator[0], line[operator.end() :].strip()) if name else None
            if char == ":":
                return None
        index += 1
    return None


def _two_operands(rest: str, where: str) -> tuple[str, str]:
    text = rest.strip()
    if text.startswith("(") and text.endswith(")"):
        parts = split_arguments(text[1:-1])
        if len(parts) == 2:
            return parts[0].strip(), parts[1].strip()
    quoted = re.fullmatch(r"""(["'])(.*?)\1\s+(["'])(.*?)\3""", text)
    if quoted:
        return quoted[2], quoted[4]
    raise BuildError(f"{where}: cannot read the condition {text!r}")


def _closing(text: str, opening: int, where: str) -> int:
    pair = {"(": ")", "{": "}"}[text[opening]]
    depth = 0
    for index in range(opening, len(text)):
        if text[index] == text[opening]:
            depth += 1
        elif text[index] == pair:
            depth -= 1
            if depth == 0:
                return index
    raise BuildError(f"{where}: a {text[opening]!r} is never closed")
