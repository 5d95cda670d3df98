"""Scripts mean what they mean in a POSIX shell."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shell_support import ShellRunner

SCRIPTS = {
    "x=1; echo $x ${x}2 '$x' \"$x\"": "1 12 $x 1\n",
    "x='a  b'; echo $x; echo \"$x\"": "a b\na  b\n",
    "echo ${n-u} ${n:=d} $n ${n:+s} ${#n}": "u d d s 1\n",
    "p=/a/b.c; echo ${p##*/} ${p%.*} ${p#/*/} ${p%%/*}x": "b.c /a/b b.c x\n",
    "echo $((1+2*3)) $((0x10 >> 2)) $((7/-2)) $((5>3 && 0))": "7 4 -3 0\n",
    "i=1; i=$((i+1)); echo $i; : $((i+=5)); echo $i": "2\n7\n",
    "echo a | cat | wc -c": "2\n",
    "false || echo no && echo yes": "no\nyes\n",
    "true && false; echo $?": "1\n",
    "! true; echo $?; ! false; echo $?": "1\n0\n",
    "for i in a 'b c'; do echo \"<$i>\"; done": "<a>\n<b c>\n",
    "if false; then echo 1; elif true; then echo 2; else echo 3; fi": "2\n",
    "i=0; while [ $i -lt 3 ]; do i=$((i+1)); [ $i = 2 ] && continue; echo $i; done": "1\n3\n",
    "for i in 1 2; do for j in 1 2; do break 2; done; done; echo $i$j": "11\n",
    "case abc in x|a*) echo hit;; *) echo miss;; esac": "hit\n",
    'f() { echo "$1:$#"; return 4; }; f a b; echo $?': "a:2\n4\n",
    "(x=2; cd /tmp; exit 3); echo $? $x $(pwd)": "3 /\n",
    "{ echo a; echo b; } > /tmp/f; cat < /tmp/f": "a\nb\n",
    "echo a > /tmp/f; echo b >> /tmp/f; cat /tmp/f": "a\nb\n",
    'x=$(echo a; echo; echo); echo "[$x]"': "[a]\n",
    "echo `echo \\`echo in\\``": "in\n",
    "cat <<E\n$((1+1)) \\$x\nE\necho after": "2 $x\nafter\n",
    "set -- a 'b c'; for i in \"$@\"; do echo $i; done; shift; echo $# $*": "a\nb c\n1 b c\n",
    "A=1 eval 'echo $A'; echo [$A]": "1\n[]\n",
    "x=$(false); echo $?": "1\n",
    "echo a b > /tmp/f; read x y < /tmp/f; echo $y $x": "b a\n",
    "printf '1\\n2\\n' | while read n; do echo n$n; done": "n1\nn2\n",
    "exec 3> /tmp/f; echo via >&3; exec 3>&-; cat /tmp/f": "via\n",
    "ls /nope 2>/dev/null; echo $?; ls /nope 2>&1 | wc -l": "1\n1\n",
    "touch /tmp/a1 /tmp/a2 /tmp/b; cd /tmp; echo a* /tmp/[!a]* z*": "a1 a2 /tmp/b z*\n",
    "echo \"/tmp/*\" '/d*' \\*": "/tmp/* /d* *\n",
    "IFS=:; x=a:b::c; for i in $x; do echo [$i]; done": "[a]\n[b]\n[]\n[c]\n",
    "echo x=$? # comment\n# another\necho y": "x=0\ny\n",
    "nope 2>/dev/null; echo $?": "127\n",
    "echo one \\\ntwo": "one two\n",
    "sh -c 'echo $# $1; exit 3' name a; echo $?": "1 a\n3\n",
    "echo 'echo sourced $1; return 2' > /tmp/s; . /tmp/s; echo $?; sh /tmp/s x": "sourced\n2\nsourced x\n",
    "(exec echo replaced; echo no); command exec; echo on": "replaced\non\n",
    "echo 'x=5' | sh; echo \"$x\" | tr a b 2>/dev/null; echo $?": "127\n",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_prints(sh: ShellRunner, script: str) -> None:
    sh(script)
    assert (sh.out, sh.err) == (SCRIPTS[script], "")


@pytest.mark.parametrize(
    ("script", "status", "message"),
    [
        ("nope", 127, "sh: nope: not found\n"),
        ("echo a > /none/f", 1, "sh: can't create /none/f: No such file or directory\n"),
        ("cat < /none", 1, "sh: can't open /none: No such file or directory\n"),
        ("echo a > /sys/new", 1, "sh: can't create /sys/new: Permission denied\n"),
        ("echo a > /proc/new", 1, "sh: can't create /proc/new: No such file or directory\n"),
        ("echo a > /tmp", 1, "sh: can't create /tmp: Is a directory\n"),
        ("echo a > /dev/full", 1, "sh: write error: No space left on device\n"),
        ("echo a | tee /dev/full > /dev/null", 1, "tee: /dev/full: No space left on device\n"),
        ("cat /none", 1, "cat: can't open '/none': No such file or directory\n"),
        ("cat /tmp/", 1, "cat: can't open '/tmp/': Is a directory\n"),
        ("ls /none", 1, "ls: /none: No such file or directory\n"),
        ("grep x /none", 2, "grep: /none: No such file or directory\n"),
        ("cd /none", 2, "cd: can't cd to /none: No such file or directory\n"),
        ("set -u; echo $missing; echo not reached", 2, "sh: missing: parameter not set\n"),
        ("echo ${x:?is needed}", 2, "sh: x: is needed\n"),
        ("echo $((1/0))", 2, "sh: division by zero\n"),
        ("fi", 2, 'sh: line 1: syntax error: unexpected "fi"\n'),
        ("[ a = ", 2, "[: missing ]\n"),
        ("test x -eq 1", 2, "test: x: bad number\n"),
        ("sleep x", 1, "sleep: invalid number 'x'\n"),
        ("f() { f; }; f", 2, "sh: functions and scripts call each other too deeply\n"),
        ("exit 7", 7, ""),
        ("false", 1, ""),
        ("false; true", 0, ""),
        ("", 0, ""),
    ],
)
def test_errors_and_statuses(sh: ShellRunner, script: str, status: int, message: str) -> None:
    assert sh(script) == status
    assert (sh.out, sh.err) == ("", message)


def test_a_failing_command_does_not_end_a_script(sh: ShellRunner) -> None:
    assert sh("false\necho on\nfalse") == 1
    assert sh.out == "on\n"


def test_errexit_ends_it_except_in_conditions(sh: ShellRunner) -> None:
    assert sh("set -e; if false; then :; fi; false || true; ! true; echo here; false; echo no") == 1
    assert sh.out == "here\n"


def test_lines_before_a_syntax_error_run(sh: ShellRunner) -> None:
    assert sh("echo a\n)\necho b") == 2
    assert sh.out == "a\n"


def test_xtrace_shows_the_expanded_command(sh: ShellRunner) -> None:
    sh("x=1; set -x; echo $x")
    assert sh.err == "+ echo 1\n"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]), max_size=20))
def test_a_quoted_variable_is_one_argument(sh: ShellRunner, value: str) -> None:
    sh.session.shell.variables["v"] = value
    sh('printf %s "$v"')
    assert sh.out == value


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.integers(-1000, 1000), min_size=1, max_size=6))
def test_arithmetic_is_that_of_c(sh: ShellRunner, numbers: list[int]) -> None:
    expression = " - ".join(f"({n})" for n in numbers)
    sh(f"echo $(({expression}))")
    assert int(sh.out) == numbers[0] - sum(numbers[1:])
