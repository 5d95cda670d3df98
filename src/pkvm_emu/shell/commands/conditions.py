"""``test`` and ``[``."""

from __future__ import annotations

from collections.abc import Callable

from pkvm_emu.kernel.fs import Directory, File, Node
from pkvm_emu.shell.command import CommandError, Context, command

_NUMERIC: dict[str, Callable[[int, int], bool]] = {
    "-eq": lambda a, b: a == b,
    "-ne": lambda a, b: a != b,
    "-lt": lambda a, b: a < b,
    "-le": lambda a, b: a <= b,
    "-gt": lambda a, b: a > b,
    "-ge": lambda a, b: a >= b,
}
_TEXTUAL: dict[str, Callable[[str, str], bool]] = {
    "=": lambda a, b: a == b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
}
_FILE: dict[str, Callable[[Node], bool]] = {
    "-e": lambda node: True,
    "-f": lambda node: isinstance(node, File) and node.type_letter == "-",
    "-d": lambda node: isinstance(node, Directory),
    "-c": lambda node: node.type_letter == "c",
    "-s": lambda node: node.size > 0,
    "-r": lambda node: bool(node.mode & 0o444) or not node.strict_mode,
    "-w": lambda node: bool(node.mode & 0o222) or not node.strict_mode,
    "-x": lambda node: bool(node.mode & 0o111),
}


@command("test", "EXPRESSION", "compare texts and numbers, look at files", builtin=True)
@command("[", "EXPRESSION ]", "the same as test", builtin=True)
def test(context: Context) -> int:
    """0 when the expression is true, 1 when not, 2 when it is none."""
    words = list(context.arguments)
    if context.name == "[" and (not words or words.pop() != "]"):
        raise CommandError("missing ]", 2)
    if not words:
        return 1
    reader = _Expression(context, words)
    value = reader.either()
    if reader.position != len(words):
        raise CommandError(f"{words[reader.position]}: unknown operand", 2)
    return 0 if value else 1


class _Expression:
    def __init__(self, context: Context, words: list[str]) -> None:
        self._context = context
        self._words = words
        self.position = 0

    def _left(self) -> int:
        return len(self._words) - self.position

    def _take(self) -> str:
        if not self._left():
            raise CommandError("argument expected", 2)
        self.position += 1
        return self._words[self.position - 1]

    def _next(self, ahead: int = 0) -> str:
        at = self.position + ahead
        return self._words[at] if at < len(self._words) else ""

    def either(self) -> bool:
        value = self._both()
        while self._next() == "-o":
            self._take()
            value = self._both() or value
        return value

    def _both(self) -> bool:
        value = self._single()
        while self._next() == "-a":
            self._take()
            value = self._single() and value
        return value

    def _single(self) -> bool:
        operator = self._next(1)
        if self._left() >= 3 and (operator in _TEXTUAL or operator in _NUMERIC):
            return self._compare()
        if self._next() == "!" and self._left() > 1:
            self._take()
            return not self._single()
        if self._next() == "(" and self._left() > 1:
            self._take()
            value = self.either()
            if self._take() != ")":
                raise CommandError("closing paren expected", 2)
            return value
        if self._left() >= 2 and self._next() in ("-n", "-z"):
            return bool(self._take() == "-n") == bool(self._take())
        if self._left() >= 2 and self._next() in _FILE:
            check = _FILE[self._take()]
            shell = self._context.shell
            node = shell.fs.find(shell.absolute(self._take()))
            return node is not None and check(node)
        if self._left() >= 2 and self._next() == "-t":
            self._take()
            self._take()
            return False
        return bool(self._take())

    def _compare(self) -> bool:
        left, operator, right = self._take(), self._take(), self._take()
        if operator in _TEXTUAL:
            return _TEXTUAL[operator](left, right)
        return _NUMERIC[operator](self._number(left), self._number(right))

    @staticmethod
    def _number(text: str) -> int:
        try:
            return int(text.strip(), 10)
        except ValueError:
            raise CommandError(f"{text}: bad number", 2) from None
