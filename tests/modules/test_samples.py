"""The sample modules compile for their generations, in both documented trees, and every header stands alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from header_snippets import A14, A14_515, A15, A16, GENERATIONS, INCLUDE, MODULES, Compile, Generation, check_all

SAMPLES = [("pkvm_driver", A15), ("pkvm_driver", A16), ("pkvm_driver_a14", A14), ("pkvm_driver_a14", A14_515)]
# read once for each thing that an event needs, so they have no guard and need HYP_EVENT_FILE
EVENT_HEADERS = {"asm/kvm_define_hypevents.h", "nvhe/define_events.h", "nvhe/define_emitters.h"}
HEADERS = sorted(
    name
    for path in INCLUDE.rglob("*.h")
    if (name := path.relative_to(INCLUDE).as_posix()) not in EVENT_HEADERS and "_ops_android" not in name
)


@pytest.mark.parametrize(("sample", "generation"), SAMPLES, ids=str)
def test_the_el1_half_needs_only_the_kernel_and_the_el2_half(
    compile_c: Compile, sample: str, generation: Generation
) -> None:
    built = compile_c(MODULES / sample / "el1.c", generation)
    assert built.undefined == {
        *("__this_module", "_printk", "kstrtoull", "__pkvm_load_el2_module", "__pkvm_register_el2_call"),
        *("__kvm_nvhe_pkvm_driver_hyp_init", "__kvm_nvhe_pkvm_driver_hyp_hvc"),
    }
    assert built.section_of("init_module") == ".init.text"


@pytest.mark.parametrize(("sample", "generation"), SAMPLES, ids=str)
def test_the_el2_half_needs_nothing(compile_c: Compile, sample: str, generation: Generation) -> None:
    built = compile_c(MODULES / sample / "hyp" / "el2.c", generation, level=2)
    assert built.undefined == set()
    assert {"pkvm_driver_hyp_init", "pkvm_driver_hyp_hvc"} <= built.defined.keys()


@pytest.mark.parametrize("sample", ["pkvm_driver", "pkvm_driver_a14"])
def test_both_trees_name_the_same_sources(sample: str) -> None:
    tree = MODULES / sample
    makefile, bazel = (tree / "Makefile").read_text(), (tree / "BUILD.bazel").read_text()
    assert "pkvm_driver-y := el1.o hyp/kvm_nvhe.o" in makefile
    assert 'srcs = ["el1.c"]' in bazel
    assert f'"//modules/{sample}/hyp"' in bazel
    hyp_makefile, hyp_bazel = (tree / "hyp/Makefile").read_text(), (tree / "hyp/BUILD.bazel").read_text()
    assert "hyp-obj-y := el2.o" in hyp_makefile
    assert 'srcs = ["el2.c"]' in hyp_bazel
    assert "pkvm_el2 = True" in hyp_bazel


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("generation", GENERATIONS, ids=str)
def test_all_headers_go_together(compile_c: Compile, generation: Generation, level: int) -> None:
    names = [name for name in HEADERS if level == 2 or not name.startswith("nvhe/")]
    compile_c("".join(f"#include <{name}>\n" for name in names), generation, level)


def test_every_header_can_be_the_first(tmp_path: Path) -> None:
    sources = []
    for number, name in enumerate(HEADERS):
        sources.append(tmp_path / f"first{number}.c")
        sources[-1].write_text(f"#include <{name}>\n")
    check_all(sources, tmp_path, A16, level=2)


def test_every_header_carries_the_licence_and_no_word_of_another(tmp_path: Path) -> None:
    for path in INCLUDE.rglob("*.h"):
        text = path.read_text()
        assert text.startswith("/* SPDX-License-Identifier: Apache-2.0 */\n"), path
        assert not re.search(r"GPL-2\.0|Copyright", text), path


def test_lines_are_no_longer_than_120_columns() -> None:
    for path in [*INCLUDE.rglob("*.h"), *MODULES.glob("pkvm_driver*/**/*.[ch]")]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert len(line.expandtabs(8)) <= 120, f"{path}:{number}"
