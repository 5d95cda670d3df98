"""Expressions of the built-in view: ``$x0``, symbols, numbers, ``*`` for 8 bytes of memory, and C's operators."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from pkvm_emu.debug.places import find_symbol
from pkvm_emu.debug.registers import BY_NAME
from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.debug.debugger import Debugger

_TOKEN = re.compile(r"\s*(0[xX][0-9a-fA-F]+|\d+|\$\w+|[A-Za-z_.][\w.>-]*|<<|>>|[-+*/%&|^~()])")
_MASK64 = (1 << 64) - 1
_LEVELS = (("|",), ("^",), ("&",), ("<<", ">>"), ("+", "-"), ("*", "/", "%"))
_APPLY: dict[str, Callable[[int, int], int]] = {
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
    "&": lambda a, b: a & b,
    "<<": lambda a, b: a << (b & 63),
    ">>": lambda a, b: a >> (b & 63),
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b,
    "%": lambda a, b: a % b,
}
_DEEPEST = 100
_ALIASES = {"$lr": "$x30", "$fp": "$x29", "$pstate": "$cpsr"}


def evaluate(debugger: Debugger, cpu: int, text: str) -> int:
    """The value of an expression, 64 bits.

    Raises:
        UsageError: it cannot be read, names nothing that is known, or reads memory that is not there.
    """
    return _Parser(debugger, cpu, text).result()


class _Parser:
    def __init__(self, debugger: Debugger, cpu: int, text: str) -> None:
        self._debugger = debugger
        self._cpu = cpu
        self._text = text
        self._tokens: list[str] = []
        self._depth = 0
        at = 0
        text = text.strip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise UsageError(f"{self._text}: what is {text[at:].strip()[:20]!r}?")
            self._tokens.append(match[1])
            at = match.end()

    def result(self) -> int:
        value = self._binary(0)
        if self._tokens:
            raise UsageError(f"{self._text}: {self._tokens[0]!r} is not expected there")
        return value & _MASK64

    def _binary(self, level: int) -> int:
        if level == len(_LEVELS):
            return self._unary()
        value = self._binary(level + 1)
        while self._tokens and self._tokens[0] in _LEVELS[level]:
            operator = self._tokens.pop(0)
            other = self._binary(level + 1)
            if operator in "/%" and not other:
                raise UsageError(f"{self._text}: a division by zero")
            value = _APPLY[operator](value, other) & _MASK64
        return value

    def _unary(self) -> int:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise UsageError("the expression is nested too deeply")
        if not self._tokens:
            raise UsageError(f"{self._text or 'the expression'}: something is missing at its end")
        token = self._tokens.pop(0)
        try:
            if token == "(":
                value = self._binary(0)
                if not self._tokens or self._tokens.pop(0) != ")":
                    raise UsageError(f"{self._text}: a parenthesis is not closed")
                return value
            if token in ("-", "~", "&"):
                value = self._unary()
                return {"-": -value, "~": ~value, "&": value}[token] & _MASK64
            if token == "*":
                address = self._unary()
                data = self._debugger.memory.read(address, 8)
                if len(data) < 8:
                    raise UsageError(f"no memory at {address:#x}")
                return int.from_bytes(data, "little")
            return self._word(token)
        finally:
            self._depth -= 1

    def _word(self, token: str) -> int:
        if token[0].isdigit():
            return int(token, 16 if token[:2] in ("0x", "0X") else 10)
        token = _ALIASES.get(token, token)
        if token[0] == "$":
            for name in (token[1:], token[1:].upper()):
                if name in BY_NAME:
                    return self._debugger.registers.read(self._cpu, name)
            raise UsageError(f"no register {token}")
        found = find_symbol(self._debugger, token)
        if not found:
            raise UsageError(f"no symbol {token!r} is loaded")
        here = self._debugger.memory.current_regime()
        return next((va for regime, va in found if regime == here), found[0][1])
