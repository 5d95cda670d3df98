"""A DDK tree is read as data: rules, labels, globs and the dictionaries that choose sources."""

from __future__ import annotations

import pytest
from module_trees import WriteTree

from pkvm_emu.build.bazel import parse_label, read_bazel_tree
from pkvm_emu.build.plan import BuildPlan
from pkvm_emu.errors import BuildError, UsageError

MODULE = """\
load("@kleaf//build/kernel/kleaf:kernel.bzl", "ddk_module")

package(default_visibility = ["//visibility:private"])

DEFINES = ["ONE=1"]

ddk_module(
    name = "driver",
    out = "sample.ko",
    srcs = ["el1.c", "shared.h"] + glob(["more/*.c"], exclude = ["more/no.c"]),
    includes = ["include"],
    local_defines = DEFINES + ["TWO"],
    copts = ["-Wextra"],
    kernel_build = "//common:kernel_aarch64",
    deps = ["//hyp:el2", "//common:all_headers_aarch64"],
)
"""

LIBRARY = """\
ddk_headers(name = "api", hdrs = ["api.h"], includes = ["."])
ddk_library(
    name = "el2",
    srcs = ["el2.c", "el2.h"],
    local_defines = ["MODULE"],
    deps = [":api"],
    pkvm_el2 = True,
)
"""

FILES = {
    "BUILD.bazel": MODULE,
    "el1.c": "",
    "shared.h": "",
    "more/a.c": "",
    "more/no.c": "",
    "hyp/BUILD.bazel": LIBRARY,
    "hyp/el2.c": "",
    "hyp/el2.h": "",
    "hyp/api.h": "",
}


def read(write_tree: WriteTree, changes: dict[str, str] | None = None, **config: str) -> BuildPlan:
    return read_bazel_tree(write_tree(FILES | (changes or {})), config)


def test_a_ddk_module_and_its_el2_library_make_the_two_halves(write_tree: WriteTree) -> None:
    plan = read(write_tree)
    (module,) = plan.modules
    top = module.directory
    assert (module.name, module.file_name) == ("sample", "sample.ko")
    assert [source.path for source in module.el1] == [top / "el1.c", top / "more" / "a.c"]
    assert [source.path for source in module.el2] == [top / "hyp" / "el2.c"]


def test_flags_of_a_target_stay_with_it_and_exported_includes_travel(write_tree: WriteTree) -> None:
    (module,) = read(write_tree).modules
    top = module.directory
    assert module.el1[0].flags == (f"-I{top}/include", f"-I{top}/hyp", "-DONE=1", "-DTWO", "-Wextra")
    assert module.el2[0].flags == (f"-I{top}/hyp", "-DMODULE")


def test_a_dependency_outside_of_the_tree_is_noted_unless_it_is_the_kernels_headers(write_tree: WriteTree) -> None:
    text = MODULE.replace("deps = [", 'deps = ["//vendor/other:api", ')
    (note,) = read(write_tree, {"BUILD.bazel": text}).notes
    assert "BUILD.bazel:7: //vendor/other:api is outside of this tree" in note


def test_a_library_that_two_dependencies_lead_to_is_linked_once(write_tree: WriteTree) -> None:
    text = MODULE.replace("deps = [", 'deps = [":group", ') + 'ddk_headers(name = "group", hdrs = ["//hyp:el2"])\n'
    (module,) = read(write_tree, {"BUILD.bazel": text}).modules
    assert [source.path.name for source in module.el2] == ["el2.c"]


def test_submodules_are_built_and_the_module_that_gathers_them_is_not(write_tree: WriteTree) -> None:
    text = """
ddk_submodule(name = "one", out = "one.ko", srcs = ["one.c"], copts = ["-Iown", "-include", "$(location shared.h)"])
ddk_submodule(name = "two", out = "t%s.ko" % "wo", srcs = ["two.c"])
ddk_module(name = "all", deps = [":one", ":two"])
"""
    plan = read(write_tree, {"BUILD.bazel": text, "one.c": "", "two.c": ""})
    assert [module.file_name for module in plan.modules] == ["one.ko", "two.ko"]
    top = plan.modules[0].directory
    assert plan.modules[0].el1[0].flags == (f"-I{top}/own", "-include", f"{top}/shared.h")


@pytest.mark.parametrize(
    "label", [":el2", "el2", "//hyp:el2", "//hyp", "@ddk//hyp:el2", "//build/kernel/ddk_examples/pkvm/hyp:el2"]
)
def test_every_form_of_a_label_finds_the_library(write_tree: WriteTree, label: str) -> None:
    library = LIBRARY if "hyp" in label else ""
    text = MODULE.replace("//hyp:el2", label) + ("" if library else LIBRARY.replace('"el2.c", "el2.h"', '"hyp/el2.c"'))
    hyp = LIBRARY.replace('name = "el2"', 'name = "hyp"') if label == "//hyp" else LIBRARY
    (module,) = read(write_tree, {"BUILD.bazel": text, "hyp/BUILD.bazel": hyp, "api.h": ""}).modules
    assert [source.path.name for source in module.el2] == ["el2.c"]


def test_labels_start_at_the_nearest_workspace_root(write_tree: WriteTree) -> None:
    top = write_tree({f"vendor/mod/{name}": text for name, text in FILES.items()} | {"MODULE.bazel": ""})
    build = top / "vendor/mod/BUILD.bazel"
    build.write_text(build.read_text().replace("//hyp:el2", "//vendor/mod/hyp:el2"))
    (module,) = read_bazel_tree(top / "vendor/mod", {}).modules
    assert [source.path.name for source in module.el2] == ["el2.c"]


def test_conditional_sources_follow_the_configuration(write_tree: WriteTree) -> None:
    text = MODULE.replace(
        "copts =", 'conditional_srcs = {"CONFIG_FOO": {True: ["yes.c"], False: ["not.c"]}},\n    copts ='
    )
    changes = {"BUILD.bazel": text, "yes.c": "", "not.c": ""}
    names = [[s.path.name for s in read(write_tree, changes, **c).modules[0].el1][-1] for c in ({}, {"FOO": "y"})]
    assert names == ["not.c", "yes.c"]


def test_a_select_takes_its_default_branch(write_tree: WriteTree) -> None:
    text = MODULE.replace('["-Wextra"]', 'select({"//x:y": ["-DY"], "//conditions:default": ["-DDEFAULT"]})')
    assert read(write_tree, {"BUILD.bazel": text}).modules[0].el1[0].flags[-1] == "-DDEFAULT"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ddk_module(", "BUILD.bazel:1: "),
        ("def f():\n    pass\n", "BUILD.bazel:1: only rules and assignments"),
        ("x = open('/etc/passwd')", r"BUILD.bazel:1: open\(\) cannot be read as data"),
        ("x = __import__", "BUILD.bazel:1: __import__ is not defined"),
        ("x = [1 for a in b]", "BUILD.bazel:1: cannot read this expression"),
        ("x = '%s' % ['a', 'b']", "BUILD.bazel:1: % formats a string"),
        ("x = " + "-" * 5000 + "1", "BUILD.bazel"),
        ("x = 'a' + ['b']", r"BUILD.bazel:1: \+ joins"),
        ("\nddk_module(out = 'x.ko')", "BUILD.bazel:2: ddk_module"),
        ("ddk_module(name = 'a', srcs = 'el1.c')", "BUILD.bazel:1: srcs of a must be a list"),
        ("ddk_module(name = 'a', srcs = ['no.c'])", "BUILD.bazel:1: a names the file no.c, which does not exist"),
        ("ddk_module(name = 'a', srcs = ['el1.c'], deps = [':no'])", "BUILD.bazel:1: a depends on :no"),
        ("ddk_module(name = 'a', srcs = [])", "BUILD.bazel:1: a has no C or assembly file"),
        ("ddk_module(name = 'a', srcs = ['el1.c'], out = 'a.o')", "must end with .ko"),
        ("ddk_library(name = 'a', deps = [':a'])\nddk_module(name = 'm', deps = [':a'])", "a depends on itself"),
        ("ddk_module(name = 'a', srcs = select({'//x': ['el1.c']}))", "has no //conditions:default"),
        ("ddk_headers(name = 'a')\nddk_headers(name = 'a')", "BUILD.bazel:2: the name a is taken by .*BUILD.bazel:1"),
    ],
)
def test_what_cannot_be_read_is_reported_with_its_line(write_tree: WriteTree, text: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        read(write_tree, {"BUILD.bazel": text})


def test_a_file_without_a_module_is_a_usage_error(write_tree: WriteTree) -> None:
    with pytest.raises(UsageError, match="no ddk_module in it"):
        read(write_tree, {"BUILD.bazel": "ddk_headers(name = 'h')"})


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        (":a", (None, "a")),
        ("a.c", (None, "a.c")),
        ("//p/q:a", ("p/q", "a")),
        ("//p/q", ("p/q", "q")),
        ("@repo//p:a", ("p", "a")),
        ("//:a", ("", "a")),
    ],
)
def test_a_label_has_a_package_and_a_name(label: str, parts: tuple[str | None, str]) -> None:
    assert parse_label(label) == parts
