"""``$((...))``: 64-bit integer expressions of the shell."""

from __future__ import annotations

import re
from collections.abc import Callable, MutableMapping

_TOKEN = re.compile(
    r"\s*(?:(0[xX][0-9a-fA-F]+|[0-9]+)|([A-Za-z_]\w*)|(<<=|>>=|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=|[-+*/%<>=!~&^|?:()]))"
)
_LEVELS: tuple[tuple[str, ...], ...] = (
    ("||",), ("&&",), ("|",), ("^",), ("&",), ("==", "!="), ("<", ">", "<=", ">="), ("<<", ">>"), ("+", "-"),
    ("*", "/", "%"),
)  # fmt: skip
_ASSIGNING = ("=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=", ">>=")


class BadExpression(Exception):
    """An expression that has no value; the text says why."""


def to_number(text: str) -> int:
    """A number of the shell: decimal, ``0x`` hexadecimal, leading ``0`` octal.

    Raises:
        BadExpression: it is none.
    """
    text = text.strip() or "0"
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("+-")
    try:
        octal = len(digits) > 1 and digits.isdigit() and digits[0] == "0"
        return sign * (int(digits, 8) if octal else int(digits, 0))
    except ValueError:
        raise BadExpression(f"arithmetic syntax error: {text!r} is no number") from None


def evaluate(text: str, variables: MutableMapping[str, str]) -> int:
    """The value of an expression; assignments change ``variables``.

    Raises:
        BadExpression: a syntax error, or a division by zero.
    """
    tokens: list[str] = []
    position = 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise BadExpression("arithmetic syntax error")
        tokens.append(match[0].strip())
        position = match.end()
    if not tokens:
        return 0
    reader = _Reader(tokens, variables)
    value = reader.expression()
    if reader.position != len(tokens):
        raise BadExpression("arithmetic syntax error")
    return value


def _wrap(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _divide(a: int, b: int) -> int:
    if b == 0:
        raise BadExpression("division by zero")
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


_BINARY: dict[str, Callable[[int, int], int]] = {
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
    "&": lambda a, b: a & b,
    "==": lambda a, b: int(a == b),
    "!=": lambda a, b: int(a != b),
    "<": lambda a, b: int(a < b),
    ">": lambda a, b: int(a > b),
    "<=": lambda a, b: int(a <= b),
    ">=": lambda a, b: int(a >= b),
    "<<": lambda a, b: a << (b & 63),
    ">>": lambda a, b: a >> (b & 63),
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": _divide,
    "%": lambda a, b: a - b * _divide(a, b),
}


class _Reader:
    def __init__(self, tokens: list[str], variables: MutableMapping[str, str]) -> None:
        self._tokens = tokens
        self._variables = variables
        self.position = 0
        self._skipping = 0

    def _next(self) -> str:
        return self._tokens[self.position] if self.position < len(self._tokens) else ""

    def _take(self, wanted: str) -> bool:
        found = self._next() == wanted
        self.position += found
        return found

    def expression(self) -> int:
        name = self._next()
        following = self._tokens[self.position + 1] if self.position + 1 < len(self._tokens) else ""
        if re.match(r"[A-Za-z_]", name) and following in _ASSIGNING:
            self.position += 2
            value = self.expression()
            if following != "=" and not self._skipping:
                value = _wrap(_BINARY[following[:-1]](self._value_of(name), value))
            if not self._skipping:
                self._variables[name] = str(value)
            return value
        return self._conditional()

    def _conditional(self) -> int:
        condition = self._binary(0)
        if not self._take("?"):
            return condition
        chosen = self._maybe(bool(condition), self.expression)
        if not self._take(":"):
            raise BadExpression("arithmetic syntax error")
        other = self._maybe(not condition, self.expression)
        return chosen if condition else other

    def _maybe(self, wanted: bool, read: Callable[[], int]) -> int:
        """Read a part whose effects count only if it is ``wanted``."""
        self._skipping += not wanted
        try:
            return read()
        finally:
            self._skipping -= not wanted

    def _binary(self, level: int) -> int:
        if level == len(_LEVELS):
            return self._unary()
        left = self._binary(level + 1)
        while self._next() in _LEVELS[level]:
            operator = self._next()
            self.position += 1
            if operator in ("&&", "||"):
                decided = bool(left) == (operator == "||")
                right = self._maybe(not decided, lambda: self._binary(level + 1))
                left = int(bool(left) if decided else bool(right))
            else:
                right = self._binary(level + 1)
                left = 0 if self._skipping else _wrap(_BINARY[operator](left, right))
        return left

    def _unary(self) -> int:
        for operator, apply in (
            ("-", lambda v: -v),
            ("+", lambda v: v),
            ("!", lambda v: int(not v)),
            ("~", lambda v: ~v),
        ):
            if self._take(operator):
                return _wrap(apply(self._unary()))
        if self._take("("):
            value = self.expression()
            if not self._take(")"):
                raise BadExpression("arithmetic syntax error")
            return value
        token = self._next()
        self.position += 1
        if re.match(r"[0-9]", token):
            return _wrap(to_number(token))
        if re.match(r"[A-Za-z_]", token):
            return self._value_of(token)
        raise BadExpression("arithmetic syntax error")

    def _value_of(self, name: str) -> int:
        return _wrap(to_number(self._variables.get(name, "0")))
