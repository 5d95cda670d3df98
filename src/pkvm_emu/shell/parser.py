"""Tokens to commands: the grammar of the POSIX shell, one complete line at a time."""

from __future__ import annotations

import re

from pkvm_emu.shell.lexer import MAX_DEPTH, Lexer, Token
from pkvm_emu.shell.syntax import (
    AndOr,
    Case,
    Command,
    CommandList,
    For,
    Function,
    Group,
    HereDocument,
    If,
    Item,
    Pipeline,
    Redirect,
    ShellSyntaxError,
    Simple,
    Text,
    While,
    Word,
)

_REDIRECTIONS = {"<": 0, "<&": 0, "<<": 0, "<<-": 0, "<>": 0, ">": 1, ">>": 1, ">|": 1, ">&": 1, "&>": 1}
_RESERVED = frozenset(
    ("if", "then", "elif", "else", "fi", "for", "in", "do", "done", "while", "until", "case", "esac", "{", "}", "!")
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=")


class Parser:
    """Parses a script.

    Args:
        text: the script, or a lexer to go on with (inside ``$(``).
    """

    def __init__(self, text: str | Lexer) -> None:
        self._lexer = Lexer(text, _substitution) if isinstance(text, str) else text
        self._token: Token | None = None
        self._depth = 0

    def next_line(self) -> CommandList | None:
        """The commands up to the next newline outside of everything; None at the end of the script.

        Raises:
            ShellSyntaxError: the text is not shell.
        """
        while self._peek().kind == "newline":
            self._take()
        if self._peek().kind == "end":
            return None
        items: list[Item] = []
        while True:
            items.append(self._item())
            token = self._peek()
            if token.kind == "newline":
                self._take()
                break
            if token.kind == "end":
                break
            if not self._separated:
                raise self._unexpected(token)
        return CommandList(tuple(items))

    def substitution(self) -> CommandList:
        """A list up to the ``)`` of ``$(``, which is taken."""
        body = self._list(frozenset({")"}), allow_empty=True)
        self._expect(")")
        return body

    # Tokens

    def _peek(self) -> Token:
        if self._token is None:
            self._token = self._lexer.next()
        return self._token

    def _take(self) -> Token:
        token = self._peek()
        self._token = None
        return token

    def _keyword(self) -> str | None:
        """The next token as an operator or an unquoted word."""
        token = self._peek()
        if token.kind == "op":
            return token.text
        return token.word.plain if token.word is not None else None

    def _expect(self, wanted: str) -> None:
        if self._keyword() != wanted:
            raise self._unexpected(self._peek(), wanted)
        self._take()

    def _unexpected(self, token: Token, wanted: str = "") -> ShellSyntaxError:
        shown = _shown(token.word) if token.word is not None else token.text
        quoted = shown if token.kind in ("newline", "end") else f'"{shown}"'
        expecting = f' (expecting "{wanted}")' if wanted else ""
        return ShellSyntaxError(
            f"syntax error: unexpected {quoted}{expecting}", token.line, incomplete=token.kind == "end"
        )

    def _skip_newlines(self) -> None:
        while self._peek().kind == "newline":
            self._take()

    # Lists

    def _list(self, ends: frozenset[str], allow_empty: bool = False) -> CommandList:
        items: list[Item] = []
        self._skip_newlines()
        while self._keyword() not in ends:
            items.append(self._item())
            if self._peek().kind == "newline":
                self._skip_newlines()
            elif not self._separated and self._keyword() not in ends:
                raise self._unexpected(self._peek())
        if not items and not allow_empty:
            raise self._unexpected(self._peek())
        return CommandList(tuple(items))

    def _item(self) -> Item:
        command = self._and_or()
        token = self._peek()
        self._separated = token.kind == "op" and token.text in (";", "&")
        if self._separated:
            self._take()
        return Item(command, self._separated and token.text == "&")

    _separated = False

    def _and_or(self) -> AndOr:
        first = self._pipeline()
        rest: list[tuple[str, Pipeline]] = []
        while self._peek().kind == "op" and self._peek().text in ("&&", "||"):
            operator = self._take().text
            self._skip_newlines()
            rest.append((operator, self._pipeline()))
        return AndOr(first, tuple(rest))

    def _pipeline(self) -> Pipeline:
        negated = False
        while self._peek().kind == "word" and self._keyword() == "!":
            self._take()
            negated = not negated
        commands = [self._command()]
        while self._peek().kind == "op" and self._peek().text == "|":
            self._take()
            self._skip_newlines()
            commands.append(self._command())
        return Pipeline(tuple(commands), negated)

    # Commands

    def _command(self) -> Command:
        self._depth += 1
        if self._depth + self._lexer.depth > MAX_DEPTH:
            raise ShellSyntaxError("syntax error: nested too deeply", self._peek().line)
        try:
            return self._inner_command()
        finally:
            self._depth -= 1

    def _inner_command(self) -> Command:
        token = self._peek()
        if token.kind == "op" and token.text == "(":
            self._take()
            body = self._list(frozenset({")"}))
            self._expect(")")
            return Group(body, True, self._redirects())
        keyword = self._keyword() if token.kind == "word" else None
        if keyword == "{":
            self._take()
            body = self._list(frozenset({"}"}))
            self._expect("}")
            return Group(body, False, self._redirects())
        if keyword == "if":
            return self._if()
        if keyword in ("while", "until"):
            self._take()
            condition = self._list(frozenset({"do"}))
            return While(condition, self._do_group(), keyword == "until", self._redirects())
        if keyword == "for":
            return self._for()
        if keyword == "case":
            return self._case()
        if keyword in _RESERVED:
            raise self._unexpected(token)
        return self._simple()

    def _if(self) -> If:
        branches: list[tuple[CommandList, CommandList]] = []
        otherwise = None
        self._take()
        while True:
            condition = self._list(frozenset({"then"}))
            self._expect("then")
            branches.append((condition, self._list(frozenset({"elif", "else", "fi"}))))
            if self._keyword() != "elif":
                break
            self._take()
        if self._keyword() == "else":
            self._take()
            otherwise = self._list(frozenset({"fi"}))
        self._expect("fi")
        return If(tuple(branches), otherwise, self._redirects())

    def _do_group(self) -> CommandList:
        self._expect("do")
        body = self._list(frozenset({"done"}))
        self._expect("done")
        return body

    def _for(self) -> For:
        self._take()
        token = self._take()
        name = token.word.plain if token.word is not None else None
        if name is None or not _NAME.match(name):
            raise self._unexpected(token) if token.kind != "word" else self._bad_name(token)
        self._skip_newlines()
        words: list[Word] | None = None
        if self._keyword() == "in" and self._peek().kind == "word":
            self._take()
            words = []
            while self._peek().kind == "word":
                word = self._take().word
                assert word is not None
                words.append(word)
            if self._peek().kind != "newline" and self._keyword() != ";":
                raise self._unexpected(self._peek())
        if self._keyword() == ";":
            self._take()
        self._skip_newlines()
        return For(name, None if words is None else tuple(words), self._do_group(), self._redirects())

    def _bad_name(self, token: Token) -> ShellSyntaxError:
        return ShellSyntaxError("syntax error: bad for loop variable", token.line)

    def _case(self) -> Case:
        self._take()
        token = self._take()
        if token.word is None:
            raise self._unexpected(token)
        self._skip_newlines()
        self._expect("in")
        self._skip_newlines()
        arms: list[tuple[tuple[Word, ...], CommandList]] = []
        while self._keyword() != "esac":
            if self._keyword() == "(":
                self._take()
            patterns = [self._pattern()]
            while self._keyword() == "|":
                self._take()
                patterns.append(self._pattern())
            self._expect(")")
            arms.append((tuple(patterns), self._list(frozenset({";;", "esac"}), allow_empty=True)))
            if self._keyword() != ";;":
                break
            self._take()
            self._skip_newlines()
        self._expect("esac")
        return Case(token.word, tuple(arms), self._redirects())

    def _pattern(self) -> Word:
        token = self._take()
        if token.word is None:
            raise self._unexpected(token)
        return token.word

    def _simple(self) -> Command:
        assignments: list[tuple[str, Word]] = []
        words: list[Word] = []
        redirects: list[Redirect] = []
        line = self._peek().line
        while True:
            token = self._peek()
            if token.kind == "op" and token.text in _REDIRECTIONS:
                redirects.append(self._redirect())
                continue
            if token.kind == "op" and token.text == "(" and len(words) == 1 and not assignments and not redirects:
                return self._function(words[0])
            if token.word is None:
                break
            self._take()
            assignment = None if words else _assignment(token.word)
            if assignment is not None:
                assignments.append(assignment)
            else:
                words.append(token.word)
        if not (assignments or words or redirects):
            raise self._unexpected(self._peek())
        return Simple(tuple(assignments), tuple(words), tuple(redirects), line)

    def _function(self, word: Word) -> Function:
        token = self._take()
        name = word.plain
        if name is None or not _NAME.match(name):
            raise self._unexpected(token)
        self._expect(")")
        self._skip_newlines()
        return Function(name, self._command())

    # Redirections

    def _redirects(self) -> tuple[Redirect, ...]:
        found: list[Redirect] = []
        while self._peek().kind == "op" and self._peek().text in _REDIRECTIONS:
            found.append(self._redirect())
        return tuple(found)

    def _redirect(self) -> Redirect:
        operator = self._take()
        target = self._take()
        if target.word is None:
            raise self._unexpected(target)
        fd = _REDIRECTIONS[operator.text] if operator.fd is None else operator.fd
        if operator.text not in ("<<", "<<-"):
            return Redirect(fd, operator.text, target.word)
        delimiter = "".join(part.value for part in target.word.parts if isinstance(part, Text))
        raw = any(isinstance(part, Text) and part.quoted for part in target.word.parts)
        document = HereDocument(delimiter, operator.text == "<<-", raw)
        self._lexer.heredocs.append(document)
        return Redirect(fd, operator.text, document)


def _assignment(word: Word) -> tuple[str, Word] | None:
    first = word.parts[0] if word.parts else None
    if not isinstance(first, Text) or first.quoted:
        return None
    match = _ASSIGNMENT.match(first.value)
    if match is None:
        return None
    rest = first.value[match.end() :]
    parts = ((Text(rest, False),) if rest else ()) + word.parts[1:]
    return match[1], Word(parts, word.line)


def _shown(word: Word) -> str:
    return "".join(part.value if isinstance(part, Text) else "$" for part in word.parts)


def _substitution(lexer: Lexer) -> CommandList:
    return Parser(lexer).substitution()
