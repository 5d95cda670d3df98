"""The parser takes what POSIX calls a script, and says where something is none."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkvm_emu.shell.parser import Parser
from pkvm_emu.shell.syntax import (
    CommandList,
    For,
    Group,
    HereDocument,
    If,
    Parameter,
    ShellSyntaxError,
    Simple,
    Substitution,
    Text,
    Word,
)


def parse(text: str) -> list[CommandList]:
    parser, lines = Parser(text), []
    while (line := parser.next_line()) is not None:
        lines.append(line)
    return lines


def first_command(text: str) -> object:
    return parse(text)[0].items[0].command.first.commands[0]


def simple(text: str) -> Simple:
    command = first_command(text)
    assert isinstance(command, Simple)
    return command


def test_quotes_join_into_one_word() -> None:
    word = simple('a\'b c\'"d $x"\\ "e"').words[0]
    assert word.parts == (
        Text("a", False),
        Text("b cd ", True),
        Parameter("x", "", None, True),
        Text(" e", True),
    )


def test_a_comment_begins_only_at_a_word() -> None:
    assert [w.plain for w in simple("echo a#b # c").words] == ["echo", "a#b"]


def test_assignments_stand_before_the_command() -> None:
    command = simple("A=1 B= env C=3")
    assert [name for name, _ in command.assignments] == ["A", "B"]
    assert [w.plain for w in command.words] == ["env", "C=3"]


def test_redirections_keep_their_descriptor() -> None:
    command = simple("x 2>&1 >>f <g 3>h")
    assert [(r.fd, r.operator) for r in command.redirects] == [(2, ">&"), (1, ">>"), (0, "<"), (3, ">")]


def test_a_number_that_is_an_argument_is_no_descriptor() -> None:
    command = simple("echo 2 >f")
    assert [w.plain for w in command.words] == ["echo", "2"]
    assert command.redirects[0].fd == 1


def test_here_document_takes_the_lines_up_to_its_delimiter() -> None:
    lines = parse("cat <<A <<-'B'\none $x\nA\n\ttwo $x\n\tB\necho")
    command = lines[0].items[0].command.first.commands[0]
    assert isinstance(command, Simple)
    bodies = [r.target for r in command.redirects]
    assert isinstance(bodies[0], HereDocument)
    assert isinstance(bodies[1], HereDocument)
    assert bodies[0].body.parts[1] == Parameter("x", "", None, True)
    assert bodies[1].body.parts == (Text("two $x\n", True),)
    assert len(lines) == 2


def test_compound_commands_nest() -> None:
    command = first_command("for i in a b; do if x; then (y | z) & fi; done > out")
    assert isinstance(command, For)
    assert len(command.redirects) == 1
    inner = command.body.items[0].command.first.commands[0]
    assert isinstance(inner, If)
    assert inner.branches[0][1].items[0].background
    assert isinstance(inner.branches[0][1].items[0].command.first.commands[0], Group)


def test_substitution_holds_commands() -> None:
    part = simple("echo \"$(a $(b) ')')\"").words[1].parts[0]
    assert isinstance(part, Substitution)
    assert part.quoted


def test_lines_before_an_error_parse() -> None:
    parser = Parser("echo a\necho b; done\n")
    assert parser.next_line() is not None
    with pytest.raises(ShellSyntaxError, match=r'line 2: syntax error: unexpected "done"'):
        parser.next_line()


@pytest.mark.parametrize(
    "text",
    [
        "echo 'a",
        'echo "a',
        "if a; then b",
        "for x in 1; do",
        "( a",
        "{ a",
        "a |",
        "a &&",
        "echo $(a",
        "cat <<E\nx",
        "echo ${a",
    ],
)
def test_unfinished_text_asks_for_more(text: str) -> None:
    with pytest.raises(ShellSyntaxError) as caught:
        parse(text)
    assert caught.value.incomplete


@pytest.mark.parametrize(
    "text", ["a ;; b", "fi", "| a", "a > > b", "for 1 in x; do y; done", ") a", "if then fi", "a & & b"]
)
def test_wrong_text_is_refused(text: str) -> None:
    with pytest.raises(ShellSyntaxError) as caught:
        parse(text)
    assert not caught.value.incomplete


def test_deep_nesting_is_refused_with_one_line() -> None:
    for text in ("(" * 500 + "a" + ")" * 500, "echo " + "$(" * 500 + ")" * 500, "echo " + "${a:-" * 500 + "}" * 500):
        with pytest.raises(ShellSyntaxError, match="nested too deeply"):
            parse(text)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="abi $'\"\\`(){}|&;<>#\n=*?[]!-1fdo", max_size=40))
def test_any_text_parses_or_is_a_syntax_error(text: str) -> None:
    with contextlib.suppress(ShellSyntaxError):
        assert all(line.items for line in parse(text))


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]), max_size=12), min_size=1))
def test_single_quoted_words_come_back_as_they_were(words: list[str]) -> None:
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    found = simple(f"x {quoted}").words[1:]
    assert ["".join(p.value for p in w.parts if isinstance(p, Text)) for w in found] == words
    assert all(isinstance(w, Word) and all(isinstance(p, Text) and p.quoted for p in w.parts) for w in found)
