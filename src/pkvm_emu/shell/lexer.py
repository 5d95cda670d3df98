"""Characters to tokens: words with their quotes and expansions, operators, comments, here-documents."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from pkvm_emu.shell.syntax import (
    Arithmetic,
    CommandList,
    HereDocument,
    Parameter,
    Part,
    ShellSyntaxError,
    Substitution,
    Text,
    Word,
)

_OPERATORS = ("<<-", "&&", "||", ";;", "<<", ">>", "<&", ">&", "<>", ">|", "&>", "&", "|", ";", "<", ">", "(", ")")
_WORD_END = frozenset(" \t\n&|;<>()")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SPECIAL_PARAMETERS = frozenset("?#@*$!-0123456789")
_PARAMETER_OPERATORS = (":-", ":=", ":?", ":+", "-", "=", "?", "+", "%%", "%", "##", "#")
_QUOTED_ESCAPES = frozenset('$`"\\')
#: Deeper nesting than this is refused instead of exhausting Python's stack.
MAX_DEPTH = 40


@dataclass(frozen=True, slots=True)
class Token:
    """``kind`` is ``word``, ``op``, ``newline`` or ``end``; ``fd`` is the number written before a redirection."""

    kind: str
    text: str
    line: int
    word: Word | None = None
    fd: int | None = None


class Lexer:
    """Tokens of one script.

    Args:
        text: the script.
        parse_substitution: parses a list up to the ``)`` that ends a ``$(``, and leaves the lexer behind that.
        line: number of the first line.
        depth: how deep this text is nested in others.
    """

    def __init__(
        self, text: str, parse_substitution: Callable[[Lexer], CommandList], line: int = 1, depth: int = 0
    ) -> None:
        self._text = text.replace("\0", "")
        self._parse_substitution = parse_substitution
        self.position = 0
        self.line = line
        self.depth = depth
        self.heredocs: list[HereDocument] = []

    def fail(self, message: str, incomplete: bool = False) -> ShellSyntaxError:
        """The error for this place."""
        return ShellSyntaxError(f"syntax error: {message}", self.line, incomplete)

    def next(self) -> Token:
        """The next token."""
        self._skip_blanks()
        text, position, line = self._text, self.position, self.line
        if position >= len(text):
            if self.heredocs:
                raise self.fail(f"here-document has no end ({self.heredocs[0].delimiter})", incomplete=True)
            return Token("end", "end of file", line)
        if text[position] == "\n":
            self.position += 1
            self.line += 1
            self._read_heredocs()
            return Token("newline", "newline", line)
        number = re.compile(r"[0-9]+(?=[<>])").match(text, position)
        fd = None
        if number:
            fd = int(number[0]) if len(number[0]) < 4 else 10
            self.position = position = number.end()
        for operator in _OPERATORS:
            if text.startswith(operator, position):
                self.position += len(operator)
                return Token("op", operator, line, fd=fd)
        return Token("word", "", line, word=Word(tuple(self._word()), line))

    def _skip_blanks(self) -> None:
        text = self._text
        while self.position < len(text):
            if text[self.position] in " \t\r":
                self.position += 1
            elif text.startswith("\\\n", self.position):
                self.position += 2
                self.line += 1
            elif text[self.position] == "#":
                end = text.find("\n", self.position)
                self.position = len(text) if end < 0 else end
            else:
                return

    # Words

    def _word(self) -> list[Part]:
        parts: list[Part] = []
        text = self._text
        while self.position < len(text) and text[self.position] not in _WORD_END:
            letter = text[self.position]
            if letter == "'":
                parts.append(Text(self._single_quoted(), True))
            elif letter == '"':
                self.position += 1
                inside = self._double_quoted('"')
                parts += inside or [Text("", True)]
            elif letter == "\\":
                self.position += 1
                self._escape(parts, quoted_only=None)
            elif letter in "$`":
                self._dollar(parts, False)
            else:
                start = self.position
                while self.position < len(text) and text[self.position] not in " \t\n&|;<>()'\"\\$`":
                    self.position += 1
                parts.append(Text(text[start : self.position], False))
        return _merge(parts)

    def _escape(self, parts: list[Part], quoted_only: frozenset[str] | None) -> None:
        text = self._text
        if self.position >= len(text):
            if quoted_only is not None:
                raise self.fail("unterminated quoted string", incomplete=True)
            parts.append(Text("\\", True))
            return
        letter = text[self.position]
        self.position += 1
        if letter == "\n":
            self.line += 1
        elif quoted_only is not None and letter not in quoted_only:
            parts.append(Text("\\" + letter, True))
        else:
            parts.append(Text(letter, True))

    def _single_quoted(self) -> str:
        start = self.position + 1
        end = self._text.find("'", start)
        if end < 0:
            raise self.fail("unterminated quoted string", incomplete=True)
        self.position = end + 1
        value = self._text[start:end]
        self.line += value.count("\n")
        return value

    def _double_quoted(self, closing: str | None) -> list[Part]:
        """Text with expansions up to ``closing`` (None: to the end, for here-documents), all quoted."""
        parts: list[Part] = []
        text = self._text
        escapes = _QUOTED_ESCAPES if closing else _QUOTED_ESCAPES - {'"'}
        while self.position < len(text):
            letter = text[self.position]
            if letter == closing:
                self.position += 1
                return _merge(parts)
            if letter == "\\":
                self.position += 1
                self._escape(parts, escapes)
            elif letter in "$`":
                self._dollar(parts, True)
            else:
                self.line += letter == "\n"
                parts.append(Text(letter, True))
                self.position += 1
        if closing is not None:
            raise self.fail("unterminated quoted string", incomplete=True)
        return _merge(parts)

    # Expansions

    def _dollar(self, parts: list[Part], quoted: bool) -> None:
        text = self._text
        if text[self.position] == "`":
            parts.append(self._backquoted(quoted))
            return
        self.position += 1
        following = text[self.position : self.position + 1]
        if text.startswith("((", self.position):
            found = self._arithmetic(quoted)
            if found is not None:
                parts.append(found)
                return
        if following == "(":
            self.position += 1
            self._enter()
            parts.append(Substitution(self._parse_substitution(self), quoted))
            self.depth -= 1
        elif following == "{":
            self.position += 1
            self._enter()
            parts.append(self._braced(quoted))
            self.depth -= 1
        elif following and following in _SPECIAL_PARAMETERS:
            self.position += 1
            parts.append(Parameter(following, "", None, quoted))
        else:
            name = _NAME.match(text, self.position)
            if name:
                self.position = name.end()
                parts.append(Parameter(name[0], "", None, quoted))
            else:
                parts.append(Text("$", quoted))

    def _enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.fail("nested too deeply")

    def _braced(self, quoted: bool) -> Parameter:
        text = self._text
        if text.startswith("#", self.position) and not text.startswith("#}", self.position):
            self.position += 1
            name = self._parameter_name()
            self._expect_brace()
            return Parameter(name, "length", None, quoted)
        name = self._parameter_name()
        for operator in _PARAMETER_OPERATORS:
            if text.startswith(operator, self.position):
                self.position += len(operator)
                return Parameter(name, operator, Word(tuple(self._brace_word(quoted)), self.line), quoted)
        self._expect_brace()
        return Parameter(name, "", None, quoted)

    def _parameter_name(self) -> str:
        match = _NAME.match(self._text, self.position) or re.compile(r"[0-9]+|[?#@*$!-]").match(
            self._text, self.position
        )
        if match is None:
            raise self.fail("bad substitution", incomplete=self.position >= len(self._text))
        self.position = match.end()
        return match[0]

    def _expect_brace(self) -> None:
        if not self._text.startswith("}", self.position):
            raise self.fail("bad substitution", incomplete=self.position >= len(self._text))
        self.position += 1

    def _brace_word(self, quoted: bool) -> list[Part]:
        parts: list[Part] = []
        text = self._text
        while self.position < len(text):
            letter = text[self.position]
            if letter == "}":
                self.position += 1
                return _merge(parts)
            if letter == "'" and not quoted:
                parts.append(Text(self._single_quoted(), True))
            elif letter == '"':
                self.position += 1
                parts += self._double_quoted('"') or [Text("", True)]
            elif letter == "\\":
                self.position += 1
                self._escape(parts, _QUOTED_ESCAPES | {"}"} if quoted else None)
            elif letter in "$`":
                self._dollar(parts, quoted)
            else:
                self.line += letter == "\n"
                parts.append(Text(letter, quoted))
                self.position += 1
        raise self.fail("missing '}'", incomplete=True)

    def _arithmetic(self, quoted: bool) -> Arithmetic | None:
        """``$((...))`` from its first parenthesis; None where it turns out to be ``$( (...) ...)``."""
        text, level, end = self._text, 0, self.position
        while end < len(text):
            level += (text[end] == "(") - (text[end] == ")")
            end += 1
            if level == 0:
                break
        else:
            raise self.fail("missing '))'", incomplete=True)
        if text[end - 2] != ")":
            return None
        body = text[self.position + 2 : end - 2]
        self._enter()
        inner = Lexer(body, self._parse_substitution, self.line, self.depth)
        expression = Word(tuple(inner._double_quoted(None)), self.line)
        self.depth -= 1
        self.position = end
        self.line += body.count("\n")
        return Arithmetic(expression, quoted)

    def _backquoted(self, quoted: bool) -> Substitution:
        text, end = self._text, self.position + 1
        while end < len(text) and text[end] != "`":
            end += 2 if text[end] == "\\" else 1
        if end >= len(text):
            raise self.fail("unterminated backquote", incomplete=True)
        inside = text[self.position + 1 : end]
        body = re.sub(r"\\([$`\\])", r"\1", inside)
        self._enter()
        inner = Lexer(body + "\n)", self._parse_substitution, self.line, self.depth)
        parsed = self._parse_substitution(inner)
        self.depth -= 1
        self.position = end + 1
        self.line += inside.count("\n")
        return Substitution(parsed, quoted)

    # Here-documents

    def _read_heredocs(self) -> None:
        pending, self.heredocs = self.heredocs, []
        for document in pending:
            lines: list[str] = []
            start_line = self.line
            while True:
                if self.position >= len(self._text):
                    raise self.fail(f"here-document has no end ({document.delimiter})", incomplete=True)
                end = self._text.find("\n", self.position)
                end = len(self._text) if end < 0 else end
                line = self._text[self.position : end]
                self.position = min(end + 1, len(self._text))
                self.line += 1
                if document.strip_tabs:
                    line = line.lstrip("\t")
                if line == document.delimiter:
                    break
                lines.append(line + "\n")
            body = "".join(lines)
            if document.raw:
                document.body = Word((Text(body, True),), start_line)
            else:
                inner = Lexer(body, self._parse_substitution, start_line, self.depth)
                document.body = Word(tuple(inner._double_quoted(None)), start_line)


def _merge(parts: list[Part]) -> list[Part]:
    """Join neighbouring texts of the same kind."""
    merged: list[Part] = []
    for part in parts:
        last = merged[-1] if merged else None
        if isinstance(part, Text) and isinstance(last, Text) and part.quoted == last.quoted:
            merged[-1] = Text(last.value + part.value, part.quoted)
        else:
            merged.append(part)
    return merged
