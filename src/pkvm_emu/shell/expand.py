"""Words to arguments: parameters, command substitution, arithmetic, field splitting, file names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pkvm_emu.shell.arithmetic import BadExpression, evaluate
from pkvm_emu.shell.jobs import Steps
from pkvm_emu.shell.pattern import Piece, find_files, has_pattern, matches
from pkvm_emu.shell.syntax import Arithmetic, Parameter, Part, Substitution, Text, Word

if TYPE_CHECKING:
    from pkvm_emu.shell.environment import Environment

_BLANKS = " \t\n"


class ExpansionError(Exception):
    """A word that cannot be expanded; ends the script, as POSIX has it."""


#: Between two arguments of ``"$@"``.
_BREAK = Piece("\0", True)


class Expander:
    """Expands words in the environment of one shell."""

    def __init__(self, shell: Environment) -> None:
        self._shell = shell

    def words(self, words: tuple[Word, ...]) -> Steps[list[str]]:
        """All arguments that the words give."""
        out: list[str] = []
        for word in words:
            for field in (yield from self._fields(word)):
                out += self._file_names(field)
        return out

    def text(self, word: Word) -> Steps[str]:
        """One text, neither split nor matched: assignments, redirections, ``case``."""
        pieces = yield from self.pattern(word)
        return "".join(piece.text for piece in pieces)

    def pattern(self, word: Word) -> Steps[list[Piece]]:
        """The same, keeping what was quoted."""
        pieces: list[Piece] = []
        for part in word.parts:
            for piece, _ in (yield from self._part(part)):
                pieces.append(Piece(" ", True) if piece is _BREAK else piece)
        return pieces

    # Parts

    def _part(self, part: Part) -> Steps[list[tuple[Piece, bool]]]:
        """(piece, split it?) of one part."""
        if isinstance(part, Text):
            return [(Piece(part.value, part.quoted), False)]
        if isinstance(part, Substitution):
            text = yield from self._shell.capture(part.body)
            return [(Piece(text, part.quoted), not part.quoted)]
        if isinstance(part, Arithmetic):
            expression = yield from self.text(part.expression)
            try:
                value = evaluate(expression, self._shell.variables)
            except BadExpression as error:
                raise ExpansionError(f"{error}") from error
            return [(Piece(str(value), part.quoted), not part.quoted)]
        return (yield from self._parameter(part))

    def _parameter(self, part: Parameter) -> Steps[list[tuple[Piece, bool]]]:
        shell, split = self._shell, not part.quoted
        if part.name in "@*" and not part.operator:
            return self._all_arguments(part)
        value = shell.parameter(part.name)
        operator = part.operator
        if operator == "length":
            return [(Piece(str(len(value or "")), part.quoted), split)]
        if operator.lstrip(":") in ("-", "=", "?", "+") and operator:
            assert part.argument is not None
            missing = value is None or (operator.startswith(":") and not value)
            kind = operator[-1]
            if kind == "+":
                missing = not missing
            if missing and kind in "-+":
                pieces = yield from self._nested(part.argument, part.quoted)
                return pieces
            if missing and kind == "=":
                value = shell.variables[part.name] = yield from self.text(part.argument)
            if missing and kind == "?":
                reason = (yield from self.text(part.argument)) or "parameter not set"
                raise ExpansionError(f"{part.name}: {reason}")
            if kind == "+":
                value = ""
        elif operator in ("%", "%%", "#", "##"):
            assert part.argument is not None
            pattern = yield from self.pattern(part.argument)
            value = _remove(value or "", operator, pattern)
        if value is None:
            if shell.options["u"] and part.name not in "@*":
                raise ExpansionError(f"{part.name}: parameter not set")
            value = ""
        return [(Piece(value, part.quoted), split)]

    def _nested(self, word: Word, quoted: bool) -> Steps[list[tuple[Piece, bool]]]:
        found: list[tuple[Piece, bool]] = []
        for part in word.parts:
            for piece, split in (yield from self._part(part)):
                unquoted_text = isinstance(part, Text) and not part.quoted and not quoted
                found.append((piece, split or unquoted_text))
        return found or [(Piece("", quoted), False)]

    def _all_arguments(self, part: Parameter) -> list[tuple[Piece, bool]]:
        arguments = self._shell.arguments
        if part.name == "*" and part.quoted:
            return [(Piece(" ".join(arguments), True), False)]
        pieces: list[tuple[Piece, bool]] = []
        for position, argument in enumerate(arguments):
            if position:
                pieces.append((_BREAK, False))
            pieces.append((Piece(argument, part.quoted), not part.quoted))
        return pieces

    # Fields

    def _fields(self, word: Word) -> Steps[list[list[Piece]]]:
        fields: list[list[Piece]] = []
        current: list[Piece] | None = None
        for part in word.parts:
            for piece, split in (yield from self._part(part)):
                if piece is _BREAK:
                    fields.append(current or [])
                    current = []
                elif not split:
                    if piece.text or piece.quoted:
                        current = [*(current or []), piece]
                else:
                    current = self._split(piece, current, fields)
        if current is not None:
            fields.append(current)
        return fields

    def _split(self, piece: Piece, current: list[Piece] | None, fields: list[list[Piece]]) -> list[Piece] | None:
        separators = self._shell.variables.get("IFS", _BLANKS)
        if not separators:
            return [*(current or []), piece] if piece.text else current
        blanks = re.escape("".join(c for c in separators if c in _BLANKS))
        others = re.escape("".join(c for c in separators if c not in _BLANKS))
        expression = f"[{blanks}]+" if blanks else ""
        if others:
            space = f"[{blanks}]*" if blanks else ""
            expression = f"{space}[{others}]{space}" + (f"|{expression}" if expression else "")
        position = 0
        for match in re.finditer(expression, piece.text):
            head = piece.text[position : match.start()]
            position = match.end()
            if head or current is not None or match[0].strip(_BLANKS):
                fields.append([*(current or []), Piece(head, False)])
            current = None
        tail = piece.text[position:]
        return [*(current or []), Piece(tail, False)] if tail else current

    def _file_names(self, field: list[Piece]) -> list[str]:
        literal = "".join(piece.text for piece in field)
        if self._shell.options["f"] or not has_pattern(field):
            return [literal]
        return find_files(self._shell.fs, field, self._shell.cwd) or [literal]


def _remove(value: str, operator: str, pattern: list[Piece]) -> str:
    lengths = range(len(value) + 1)
    if operator == "##" or operator == "%":
        lengths = range(len(value), -1, -1)
    for cut in lengths:
        if operator[0] == "#" and matches(pattern, value[:cut]):
            return value[cut:]
        if operator[0] == "%" and matches(pattern, value[cut:]):
            return value[:cut]
    return value
