"""The reader of Makefiles understands what module Makefiles say, and says where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pkvm_emu.build.makevars import Makefile
from pkvm_emu.errors import BuildError

BOMB = "".join(f"v{n} = $(v{n + 1})$(v{n + 1})\n" for n in range(40)) + "x := $(v0)\n"
WIDE = f"a := {'t' * 1000}\nx := {'$(a)' * 2000}\n"


def read(tmp_path: Path, text: str, **variables: str) -> Makefile:
    path = tmp_path / "Makefile"
    path.write_text(text)
    makefile = Makefile()
    makefile.set(variables)
    makefile.read(path)
    return makefile


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x := a b", "a b"),
        ("x = $(later)\nlater := c", "c"),
        ("y := 1\nx := $(y)\ny := 2", "1"),
        ("x := a\nx += b", "a b"),
        ("y := 1\nx = $(y)\nx += $(y)\ny := 2", "2 2"),
        ("x += a", "a"),
        ("x ?= a\nx ?= b", "a"),
        ("x := a \\\n  b \\\n\tc", "a b c"),
        ("x := a # a comment", "a"),
        ("x := a\\#b", "a#b"),
        ("x := $$HOME", "$HOME"),
        ("x := ${nothing}z", "z"),
        ("export x := a", "a"),
        ("n := x\n$(n) := a", "a"),
        ("s := a.c b.c\nx := $(s:.c=.o)", "a.o b.o"),
        ("s := a.c b.c\nx := $(patsubst %.c,%.o,$(s))", "a.o b.o"),
        ("x := $(addprefix hyp/,$(addsuffix .o,a b))", "hyp/a.o hyp/b.o"),
        ("x := $(filter-out %.h,a.c b.h)", "a.c"),
        ("x := $(if $(no),yes,no)$(or ,$(no),c)$(and a,b)", "nocb"),
        ("x := $(foreach m,a b,$(m)-y)", "a-y b-y"),
        ("x := $(sort b a b)$(words a b)$(word 2,a b)$(firstword p q)", "a b2bp"),
        ("x := $(subst a,b,banana)", "bbnbnb"),
        ("define x\na\nb\nendef", "a\nb"),
    ],
)
def test_a_variable_has_the_value_that_make_gives_it(tmp_path: Path, text: str, value: str) -> None:
    assert read(tmp_path, text).get("x") == value


@pytest.mark.parametrize(
    ("condition", "taken"),
    [
        ("ifneq ($(KERNELRELEASE),)", True),
        ("ifeq ($(KERNELRELEASE),)", False),
        ("ifeq ($(KERNELRELEASE),6.12.23)", True),
        ('ifeq "$(KERNELRELEASE)" "6.12.23"', True),
        ("ifdef KERNELRELEASE", True),
        ("ifndef KERNELRELEASE", False),
        ("ifdef NOTHING", False),
    ],
)
def test_a_conditional_chooses_the_branch_that_make_chooses(tmp_path: Path, condition: str, taken: bool) -> None:
    text = f"{condition}\nx := then\nelse\nx := else\nendif\n"
    assert read(tmp_path, text, KERNELRELEASE="6.12.23").get("x") == ("then" if taken else "else")


def test_conditionals_nest_and_chain(tmp_path: Path) -> None:
    text = """
ifeq ($(v),1)
x := one
else ifeq ($(v),2)
ifdef v
x := two
endif
else
x := many
endif
"""
    assert [read(tmp_path, text, v=v).get("x") for v in "123"] == ["one", "two", "many"]


def test_the_branch_that_is_not_taken_is_not_read(tmp_path: Path) -> None:
    assert read(tmp_path, "ifdef no\nx := $(shell date)\nthis is nonsense\nendif\ny := 1").get("y") == "1"


def test_rules_are_kept_and_recipes_are_not_run(tmp_path: Path) -> None:
    makefile = read(tmp_path, "$(o)/a.o: FORCE b\n\trm -rf /\nx := 1\n", o="/m")
    assert [(rule.targets, rule.prerequisites) for rule in makefile.rules] == [(("/m/a.o",), ("FORCE", "b"))]
    assert makefile.get("x") == "1"


def test_a_variable_given_by_the_caller_wins(tmp_path: Path) -> None:
    assert read(tmp_path, "x := file", x="caller").get("x") == "caller"
    assert read(tmp_path, "override x := file", x="caller").get("x") == "file"


def test_an_include_is_read_below_the_makefile(tmp_path: Path) -> None:
    (tmp_path / "more.mk").write_text("x := included")
    assert read(tmp_path, "include more.mk\n-include none.mk").get("x") == "included"


def test_a_shell_call_fails_only_where_its_result_is_used(tmp_path: Path) -> None:
    makefile = read(
        tmp_path, "x := $(shell git describe)\ny := $(shell pwd)\nz := $(shell uname -r)", KERNELRELEASE="6.6"
    )
    assert makefile.get("y") == str(tmp_path)
    assert makefile.get("z") == "6.6"
    for text in ("x := $(shell git describe)", "x := $$a\nx += $(shell git describe)"):
        with pytest.raises(BuildError, match=r"Makefile:1: \$\(shell git describe\)"):
            read(tmp_path, text).get("x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n???\n", "Makefile:2: cannot read"),
        ("x := $(y", "Makefile:1: a '\\(' is never closed"),
        ("ifeq (a,b)\n", "Makefile:1: this conditional has no endif"),
        ("endif\n", "Makefile:1: endif without a conditional"),
        ("else\n", "Makefile:1: else without a conditional"),
        ("ifeq a\nendif", "Makefile:1: cannot read the condition"),
        ("include gone.mk", "Makefile:1: cannot include gone.mk"),
        ("x = $(x)\ny := $(x)", "Makefile:1: a variable refers to itself"),
        (BOMB, "grows without end"),
        (WIDE, "the value is too long"),
        ("include Makefile", "include each other without end"),
        ("define x\n", "Makefile:1: this define has no endef"),
        ("x := $(patsubst a,b)", "Makefile:1: a function wants 3 arguments"),
        ("$(error no such board)", "Makefile:1: no such board"),
    ],
)
def test_what_cannot_be_read_is_reported_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        read(tmp_path, text)
