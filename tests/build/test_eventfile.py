"""A header named by a path into a kernel tree is found below the module, at both levels."""

from __future__ import annotations

from pathlib import Path

import pytest
from module_trees import EL1_C, EL2_C, WriteTree, kbuild_files

from pkvm_emu.build.builder import build_module
from pkvm_emu.errors import BuildError

USE = "#include <asm/kvm_define_hypevents.h>\n"


def tree(path: str, where: str = "hyp/events.h") -> dict[str, str]:
    define = f"#define HYP_EVENT_FILE {path}\n{USE}"
    return kbuild_files() | {
        "el1.c": EL1_C + define + "int el1_event = EVENT;\n",
        "hyp/el2.c": EL2_C + define + "int el2_event = EVENT;\n",
        where: "#define EVENT 5\n",
    }


@pytest.mark.parametrize(
    "path",
    [
        "../../../../relative/path/to/hyp/events.h",
        "../../../../../drivers/misc/sample/hyp/events.h",
        "../hyp/events.h",
        "../../vendor/../other/events.h",
    ],
)
def test_the_longest_tail_below_the_module_is_taken(write_tree: WriteTree, headers: Path, path: str) -> None:
    image = build_module(write_tree(tree(path))).path.read_bytes()
    assert b"el1_event" in image
    assert b"__kvm_nvhe_el2_event" in image


def test_a_longer_tail_wins_over_a_shorter_one(write_tree: WriteTree, headers: Path) -> None:
    files = tree("../../../../x/hyp/events.h") | {"events.h": "#error wrong file\n"}
    build_module(write_tree(files))


def test_the_header_is_found_anywhere_below_the_module_if_it_is_the_only_one(
    write_tree: WriteTree, headers: Path
) -> None:
    build_module(write_tree(tree("../../../../x/trace/events.h", where="deep/er/trace/events.h")))


def test_the_headers_of_a_plain_quoted_include_are_found_too(write_tree: WriteTree, headers: Path) -> None:
    files = kbuild_files() | {"el1.c": '#include "../../../tree/sample/hyp/api.h"\n' + EL1_C, "hyp/api.h": ""}
    build_module(write_tree(files))


def test_a_path_without_any_tail_is_reported_with_its_place(write_tree: WriteTree, headers: Path) -> None:
    files = tree("../../../../a/gone.h")
    with pytest.raises(
        BuildError, match=r"kvm_define_hypevents\.h:4: cannot find \.\./.*gone\.h \(included for .*el1\.c"
    ):
        build_module(write_tree(files))


def test_an_ambiguous_tail_is_reported_with_the_candidates(write_tree: WriteTree, headers: Path) -> None:
    files = tree("../../../../x/events.h", where="a/events.h") | {"b/events.h": ""}
    with pytest.raises(BuildError, match=r"can be any of .*a/events\.h, .*b/events\.h"):
        build_module(write_tree(files))


def test_a_missing_header_that_leads_nowhere_up_stays_an_error(write_tree: WriteTree, headers: Path) -> None:
    files = kbuild_files() | {"el1.c": '#include "events.h"\n', "hyp/events.h": ""}
    with pytest.raises(BuildError, match=r"el1\.c:1:10: 'events\.h' file not found"):
        build_module(write_tree(files))
