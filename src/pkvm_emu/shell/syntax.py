"""What the parser makes of a script: words and commands as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from pkvm_emu.errors import UsageError


class ShellSyntaxError(UsageError):
    """A script that does not parse.

    Attributes:
        incomplete: more lines could make it right (an open quote, an ``if`` without its ``fi``).
    """

    def __init__(self, message: str, line: int, incomplete: bool = False) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line
        self.incomplete = incomplete


# Words


@dataclass(frozen=True, slots=True)
class Text:
    """Characters as they are; ``quoted`` ones are neither split nor matched as patterns."""

    value: str
    quoted: bool


@dataclass(frozen=True, slots=True)
class Parameter:
    """``$name`` or ``${name<operator><argument>}``; the operator ``length`` is ``${#name}``."""

    name: str
    operator: str
    argument: Word | None
    quoted: bool


@dataclass(frozen=True, slots=True)
class Substitution:
    """``$(...)`` or backquotes."""

    body: CommandList
    quoted: bool


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """``$((...))``."""

    expression: Word
    quoted: bool


Part = Text | Parameter | Substitution | Arithmetic


@dataclass(frozen=True, slots=True)
class Word:
    """One word; its parts are put together when it is expanded."""

    parts: tuple[Part, ...]
    line: int = 0

    @property
    def plain(self) -> str | None:
        """Its text when nothing in it is quoted or expanded: what may be a keyword or a name."""
        if len(self.parts) == 1 and isinstance(self.parts[0], Text) and not self.parts[0].quoted:
            return self.parts[0].value
        return None


# Commands


@dataclass(slots=True)
class HereDocument:
    """The text below a ``<<`` line; filled when the lexer comes to it."""

    delimiter: str
    strip_tabs: bool
    raw: bool
    body: Word = field(default_factory=lambda: Word(()))


@dataclass(frozen=True, slots=True)
class Redirect:
    """``fd operator target``."""

    fd: int
    operator: str
    target: Word | HereDocument


@dataclass(frozen=True, slots=True)
class Simple:
    """``name=value ... word ... redirections``."""

    assignments: tuple[tuple[str, Word], ...]
    words: tuple[Word, ...]
    redirects: tuple[Redirect, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Pipeline:
    """``a | b``, ``! a``."""

    commands: tuple[Command, ...]
    negated: bool


@dataclass(frozen=True, slots=True)
class AndOr:
    """``a && b || c``: the first pipeline, then (operator, pipeline)."""

    first: Pipeline
    rest: tuple[tuple[str, Pipeline], ...]


@dataclass(frozen=True, slots=True)
class Item:
    """One command of a list; ``background`` after ``&``."""

    command: AndOr
    background: bool


@dataclass(frozen=True, slots=True)
class CommandList:
    """``a; b & c``."""

    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """``{ ...; }``, or ``( ... )`` with ``subshell``."""

    body: CommandList
    subshell: bool
    redirects: tuple[Redirect, ...] = ()


@dataclass(frozen=True, slots=True)
class If:
    """``if``/``elif`` branches as (condition, body), and the ``else`` part."""

    branches: tuple[tuple[CommandList, CommandList], ...]
    otherwise: CommandList | None
    redirects: tuple[Redirect, ...] = ()


@dataclass(frozen=True, slots=True)
class For:
    """``for name in words``; ``words`` is None for the positional parameters."""

    name: str
    words: tuple[Word, ...] | None
    body: CommandList
    redirects: tuple[Redirect, ...] = ()


@dataclass(frozen=True, slots=True)
class While:
    """``while`` or, with ``until``, its opposite."""

    condition: CommandList
    body: CommandList
    until: bool
    redirects: tuple[Redirect, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """``case subject in (patterns, body) ... esac``."""

    subject: Word
    arms: tuple[tuple[tuple[Word, ...], CommandList], ...]
    redirects: tuple[Redirect, ...] = ()


@dataclass(frozen=True, slots=True)
class Function:
    """``name() command``."""

    name: str
    body: Command


Command = Simple | Group | If | For | While | Case | Function
