"""Reading BUILD.bazel files as data.

Starlark's syntax is Python's, so the file is parsed with ``ast`` and evaluated here: constants, lists, dictionaries,
concatenation, variables, ``glob`` and ``select``. Nothing in it is executed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pkvm_emu.errors import BuildError

Value = str | int | bool | None | list["Value"] | dict["Value", "Value"]
"""What an expression in a BUILD file can be."""

_PLACEHOLDER = re.compile(r"%[sd]")
_DEFAULT_CONDITION = "//conditions:default"
_IGNORED_CALLS = frozenset({"load", "package", "exports_files", "licenses", "package_group", "workspace", "print"})


@dataclass(frozen=True)
class Target:
    """One rule call: ``rule(name = …, …)`` with its evaluated attributes and the ``file:line`` that it stands at."""

    rule: str
    name: str
    attributes: Mapping[str, Value]
    where: str

    def strings(self, attribute: str) -> list[str]:
        """The list *attribute*, empty if it is absent. Raises BuildError if it is no list of strings."""
        value = self.attributes.get(attribute)
        if value is None:
            return []
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return [item for item in value if isinstance(item, str)]
        raise BuildError(f"{self.where}: {attribute} of {self.name} must be a list of strings")

    def string(self, attribute: str) -> str | None:
        """The string attribute called *attribute*, or None."""
        value = self.attributes.get(attribute)
        return value if isinstance(value, str) else None


@dataclass
class BuildFile:
    """A BUILD file after reading: its targets by name, in order."""

    path: Path
    targets: dict[str, Target] = field(default_factory=dict)
    _names: dict[str, Value] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> BuildFile:
        """Read *path*. Raises BuildError with file and line for what cannot be read as data."""
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise BuildError(f"cannot read {path}: {error.strerror}") from error
        except (SyntaxError, ValueError, RecursionError) as error:
            line = getattr(error, "lineno", None) or 1
            raise BuildError(f"{path}:{line}: {getattr(error, 'msg', None) or error}") from error
        file = cls(path)
        try:
            for statement in tree.body:
                file._statement(statement)
        except RecursionError as error:
            raise BuildError(f"{path}: an expression is nested too deeply") from error
        return file

    def _where(self, node: ast.AST) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}"

    def _statement(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Expr):
            if isinstance(statement.value, ast.Constant):
                return
            if isinstance(statement.value, ast.Call):
                self._rule(statement.value)
                return
        if isinstance(statement, ast.Assign) and all(isinstance(target, ast.Name) for target in statement.targets):
            value = self._value(statement.value)
            for target in statement.targets:
                assert isinstance(target, ast.Name)
                self._names[target.id] = value
            return
        if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
            name = ast.Name(statement.target.id, ast.Load(), lineno=statement.lineno, col_offset=0)
            joined = ast.BinOp(name, statement.op, statement.value, lineno=statement.lineno, col_offset=0)
            self._names[statement.target.id] = self._value(joined)
            return
        raise BuildError(f"{self._where(statement)}: only rules and assignments can stand in a BUILD file")

    def _rule(self, call: ast.Call) -> None:
        where = self._where(call)
        if not isinstance(call.func, ast.Name):
            raise BuildError(f"{where}: cannot read this call")
        rule = call.func.id
        if rule in _IGNORED_CALLS:
            return
        attributes = {keyword.arg: self._value(keyword.value) for keyword in call.keywords if keyword.arg}
        name = attributes.get("name")
        if call.args or not isinstance(name, str):
            raise BuildError(f'{where}: {rule}() needs name = "…" and no positional arguments')
        if name in self.targets:
            raise BuildError(f"{where}: the name {name} is taken by {self.targets[name].where}")
        self.targets[name] = Target(rule, name, attributes, where)

    def _value(self, node: ast.expr) -> Value:
        where = self._where(node)
        if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, str | int)):
            return node.value
        if isinstance(node, ast.List | ast.Tuple):
            return [self._value(item) for item in node.elts]
        if isinstance(node, ast.Dict):
            return {
                _key(self._value(k), where): self._value(v) for k, v in zip(node.keys, node.values) if k is not None
            }
        if isinstance(node, ast.Name):
            if node.id not in self._names:
                raise BuildError(f"{where}: {node.id} is not defined in this file (a loaded value cannot be read)")
            return self._names[node.id]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return _add(self._value(node.left), self._value(node.right), where)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            return _format(self._value(node.left), self._value(node.right), where)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._call(node, node.func.id, where)
        raise BuildError(f"{where}: cannot read this expression as data: {ast.unparse(node)}")

    def _call(self, node: ast.Call, name: str, where: str) -> Value:
        arguments = [self._value(argument) for argument in node.args]
        options = {keyword.arg: self._value(keyword.value) for keyword in node.keywords if keyword.arg}
        if name == "glob":
            return self._glob(arguments, options, where)
        if name == "select" and arguments and isinstance(arguments[0], dict):
            if _DEFAULT_CONDITION not in arguments[0]:
                raise BuildError(f"{where}: this select() has no {_DEFAULT_CONDITION} branch, which is the one built")
            return arguments[0][_DEFAULT_CONDITION]
        if name == "Label" and len(arguments) == 1 and isinstance(arguments[0], str):
            return arguments[0]
        raise BuildError(f"{where}: {name}() cannot be read as data")

    def _glob(self, arguments: list[Value], options: Mapping[str, Value], where: str) -> Value:
        include = arguments[0] if arguments else options.get("include", [])
        exclude = arguments[1] if len(arguments) > 1 else options.get("exclude", [])
        if not isinstance(include, list) or not isinstance(exclude, list):
            raise BuildError(f"{where}: glob() wants lists of patterns")
        base = self.path.parent
        dropped = {path for pattern in exclude for path in base.glob(str(pattern))}
        found = {path for pattern in include for path in base.glob(str(pattern)) if path.is_file()} - dropped
        return [path.relative_to(base).as_posix() for path in sorted(found)]


def _key(value: Value, where: str) -> str | int | bool | None:
    if isinstance(value, list | dict):
        raise BuildError(f"{where}: a list cannot be a key")
    return value


def _add(left: Value, right: Value, where: str) -> Value:
    if isinstance(left, str) and isinstance(right, str):
        return left + right
    if isinstance(left, list) and isinstance(right, list):
        return left + right
    if isinstance(left, int) and isinstance(right, int):
        return left + right
    raise BuildError(f"{where}: + joins two strings or two lists")


def _format(left: Value, right: Value, where: str) -> Value:
    values = [str(item) for item in (right if isinstance(right, list) else [right])]
    if not isinstance(left, str) or len(_PLACEHOLDER.findall(left)) != len(values):
        raise BuildError(f"{where}: % formats a string, with one value for each %s or %d")
    return _PLACEHOLDER.sub(lambda match: values.pop(0), left)
