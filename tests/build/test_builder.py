"""From a source tree to a ``.ko``: what is built, from which description, and how failures are told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from finished_module import Module
from module_trees import EL1_C, EL2_C, HYP_MAKEFILE, WriteTree, kbuild_files

from pkvm_emu.build.builder import BuildResult, build_module, build_modules
from pkvm_emu.build.report import ToolError
from pkvm_emu.errors import BuildError, UsageError


def test_the_same_sources_give_the_same_bytes(sample: Path, tmp_path: Path) -> None:
    images = [build_module(sample, tmp_path / f"{n}.ko", jobs=n).path.read_bytes() for n in (1, 2)]
    assert images[0] == images[1]
    assert b"pkvm-emu-build-" not in images[0]


def test_options_reach_the_sources(write_tree: WriteTree, headers: Path) -> None:
    check = "#if CONFIG_DEPTH != 4 || defined(CONFIG_OF) || !defined(CONFIG_M_MODULE)\n#error wrong options\n#endif\n"
    top = write_tree(kbuild_files() | {"el1.c": check + EL1_C, "hyp/el2.c": check + EL2_C})
    build_module(top, None, None, {"DEPTH": "4", "CONFIG_OF": "n", "M": "m"})
    with pytest.raises(BuildError, match="wrong options"):
        build_module(top)


def test_options_of_the_headers_and_of_the_caller_choose_sources(write_tree: WriteTree, headers: Path) -> None:
    files = {"Makefile": "obj-m := m.o\nm-y := a.o\nm-$(CONFIG_OF) += b.o\n", "b.c": "int b = 1;\n"}
    files["a.c"] = '#include <linux/module.h>\nMODULE_LICENSE("GPL");\n'
    top = write_tree(files)
    assert "b" in Module(build_module(top).path).symbols()
    assert "b" not in Module(build_module(top, config={"OF": "n"}).path).symbols()


def test_a_compiler_error_is_one_line_with_its_place_and_the_whole_output_beside_it(
    write_tree: WriteTree, headers: Path
) -> None:
    top = write_tree(kbuild_files() | {"hyp/el2.c": "int good;\nint bad = undeclared;\nint worse = 1 +;\n"})
    with pytest.raises(ToolError) as caught:
        build_module(top)
    message = str(caught.value)
    assert message.startswith(f"{top}/hyp/el2.c:2:11: ")
    assert "undeclared" in message
    assert "\n" not in message
    assert f"{top}/hyp/el2.c:3:16: error:" in caught.value.output


def test_an_error_in_a_header_names_the_source_too(write_tree: WriteTree, headers: Path) -> None:
    top = write_tree(kbuild_files() | {"el1.c": '#include "bad.h"\n', "bad.h": "int x = ;\n"})
    with pytest.raises(ToolError, match=r"bad\.h:1:9: .* \[compiling .*el1\.c\]$"):
        build_module(top)


def test_an_option_that_has_no_value_is_named(write_tree: WriteTree, headers: Path) -> None:
    top = write_tree(kbuild_files() | {"hyp/el2.c": "int depth = CONFIG_DEPTH;\n" + EL2_C})
    with pytest.raises(ToolError, match=r"el2\.c:1:13: .*'CONFIG_DEPTH' \(.* give it with --config DEPTH=VALUE\)$"):
        build_module(top)
    build_module(top, config={"DEPTH": "0x18"})


@pytest.mark.parametrize("generation", ["15", "16"])
def test_el2_sources_may_name_the_trace_headers_without_directory(write_tree: WriteTree, generation: str) -> None:
    files = {
        "el1.c": "#include <asm/kvm_pkvm_module.h>\n"
        + EL1_C.replace("__pkvm_load_el2_module(&__this_module, ", "(int)(long)("),
        "hyp/el2.c": "#include <trace.h>\n#include <asm/alternative-macros.h>\n#include <asm/kvm_pkvm_module.h>\n"
        "int sample_hyp_init(const struct pkvm_module_ops *ops) { return 0; }\n",
    }
    build_module(write_tree(kbuild_files() | files), None, generation)


def test_warnings_are_in_the_log(write_tree: WriteTree, headers: Path) -> None:
    top = write_tree(kbuild_files() | {"el1.c": EL1_C + "#warning mind the gap\n"})
    assert "mind the gap" in build_module(top).log


def test_a_linker_error_says_where_both_definitions_are(write_tree: WriteTree, headers: Path) -> None:
    top = write_tree(
        {
            "Makefile": "obj-m := m.o\nm-y := a.o b.o\n",
            "a.c": '#include <linux/module.h>\nMODULE_LICENSE("GPL");\nint twice(void) { return 1; }\n',
            "b.c": "int twice(void) { return 2; }\n",
        }
    )
    with pytest.raises(ToolError, match=r"duplicate symbol: twice \(defined at .*a\.c:3.*, defined at .*b\.c:1"):
        build_module(top)


def test_a_module_without_a_license_is_refused(write_tree: WriteTree, headers: Path) -> None:
    top = write_tree(kbuild_files() | {"el1.c": EL1_C.replace('MODULE_LICENSE("GPL");', "")})
    with pytest.raises(BuildError, match=r"sample: missing MODULE_LICENSE\(\)"):
        build_module(top)


def test_absolute_addresses_in_el2_code_are_refused_by_the_name_of_the_relocation(
    write_tree: WriteTree, headers: Path
) -> None:
    text = EL2_C + "extern int far; int *bad(void); int *bad(void)\n"
    text += '{ int *p; __asm__("movz %0, #:abs_g0_nc:sample_names" : "=r"(p)); return p; }\n'
    top = write_tree(kbuild_files() | {"hyp/el2.c": text})
    with pytest.raises(BuildError, match=r"R_AARCH64_MOVW_UABS_G0_NC at \.hyp\.text\+0x"):
        build_module(top)


def test_what_el2_calls_and_nobody_defines_is_a_build_error(write_tree: WriteTree, headers: Path) -> None:
    text = EL2_C.replace("return 0;", "return missing_helper();")
    top = write_tree(kbuild_files() | {"hyp/el2.c": "int missing_helper(void);\n" + text})
    with pytest.raises(BuildError, match="sample: __kvm_nvhe_missing_helper undefined"):
        build_module(top)
    result = build_module(top, config={"KBUILD_MODPOST_WARN": "1"})
    assert "warning: sample: __kvm_nvhe_missing_helper undefined" in result.log


EXPORTER = kbuild_files() | {
    "el1.c": EL1_C + "int __kvm_nvhe_shared(void);\nEXPORT_SYMBOL(__kvm_nvhe_shared);\n",
    "hyp/el2.c": EL2_C + "int shared(void);\nint shared(void) { return 7; }\n",
}
IMPORTER = {
    "Makefile": kbuild_files()["Makefile"].replace("sample", "importer"),
    "el1.c": EL1_C,
    "hyp/Makefile": HYP_MAKEFILE,
    "hyp/el2.c": "int shared(void);\n" + EL2_C.replace("return 0;", "return shared();"),
}


@pytest.mark.parametrize("form", ["ko", "symvers"])
def test_a_symbol_of_another_module_gives_a_dependency(
    write_tree: WriteTree, headers: Path, tmp_path: Path, form: str
) -> None:
    top = write_tree(
        {f"exp/{name}": text for name, text in EXPORTER.items()}
        | {f"imp/{name}": text for name, text in IMPORTER.items()}
        | {"Module.symvers": "0x0\t__kvm_nvhe_shared\tvendor/sample\tEXPORT_SYMBOL\t\n"}
    )
    exporter = build_module(top / "exp", tmp_path / "sample.ko")
    assert exporter.exports == ("__kvm_nvhe_shared",)
    assert Module(exporter.path).section("__ksymtab")["sh_size"] == 12
    symbols = exporter.path if form == "ko" else top / "Module.symvers"
    importer = Module(build_module(top / "imp", tmp_path / "importer.ko", symbols=[symbols]).path)
    assert "depends=sample" in importer.modinfo()
    assert (283, "__kvm_nvhe_shared") in [(kind, name) for _, kind, name, _ in importer.relocations(".hyp.text")]


def test_modules_of_one_tree_see_each_other(write_tree: WriteTree, headers: Path) -> None:
    source = '#include <linux/module.h>\nMODULE_LICENSE("GPL");\n'
    top = write_tree(
        {
            "Makefile": "obj-m := user.o giver.o\n",
            "giver.c": source + "int gift;\nEXPORT_SYMBOL(gift);\n",
            "user.c": source + "extern int gift;\nint init_module(void) { return gift; }\n",
        }
    )
    results = build_modules(top)
    assert [result.path for result in results] == [top / "build-out" / "user.ko", top / "build-out" / "giver.ko"]
    assert "depends=giver" in Module(results[0].path).modinfo()
    with pytest.raises(UsageError, match="several modules \\(user, giver\\)"):
        build_module(top)
    assert build_module(top, module="giver").name == "giver"
    with pytest.raises(UsageError, match="builds no module other"):
        build_module(top, module="other")


def test_the_result_says_what_was_done(sample: Path, tmp_path: Path) -> None:
    result = build_module(sample, work=tmp_path / "work")
    assert dataclasses.replace(result, log="", commands=()) == BuildResult(
        sample / "build-out" / "sample.ko", "", (), "sample", "android16-6.12"
    )
    assert [line.split()[0] for line in result.log.splitlines()] == ["CC", "HYPCC", "HYPREL", "LD"]
    assert len(result.commands) == 5
    assert all(" -c " in line or " -r " in line for line in result.commands)
    assert (tmp_path / "work" / "sample" / "kvm_nvhe.o").is_file()


def test_nothing_but_the_result_is_written_into_the_tree(sample: Path, tmp_path: Path) -> None:
    before = sorted(sample.rglob("*"))
    build_module(sample, tmp_path / "out.ko")
    assert sorted(sample.rglob("*")) == before


def test_a_ddk_tree_builds_to_the_name_in_out(write_tree: WriteTree, headers: Path) -> None:
    top = write_tree(
        {
            "BUILD.bazel": 'ddk_module(name = "m", out = "vendor-mod.ko", srcs = ["el1.c"], deps = ["//hyp:el2"])\n',
            "el1.c": EL1_C,
            "hyp/BUILD.bazel": 'ddk_library(name = "el2", srcs = ["el2.c"], pkvm_el2 = True)\n',
            "hyp/el2.c": EL2_C,
        }
    )
    result = build_module(top)
    assert result.path == top / "build-out" / "vendor-mod.ko"
    module = Module(result.path)
    assert "name=vendor_mod" in module.modinfo()
    assert "__kvm_nvhe_sample_hyp_init" in module.symbols()


def test_a_tree_with_both_descriptions_builds_by_the_makefile_unless_told(write_tree: WriteTree, headers: Path) -> None:
    top = write_tree(
        kbuild_files()
        | {
            "BUILD.bazel": 'ddk_module(name = "m", out = "ddk.ko", srcs = ["el1.c"], deps = ["//hyp:el2"])\n',
            "hyp/BUILD.bazel": 'ddk_library(name = "el2", srcs = ["el2.c"], pkvm_el2 = True)\n',
        }
    )
    assert [build_module(top, system=system).name for system in (None, "kbuild", "bazel")] == [
        "sample",
        "sample",
        "ddk",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"directory": Path("nowhere")}, "nowhere is not a directory"),
        ({"generation_name": "android99"}, "unknown Android generation 'android99': use one of android14-5.15"),
        ({"symbols": [Path("gone.ko")]}, "no symbol list gone.ko"),
        ({"system": "ninja"}, "no build system called 'ninja': use one of kbuild, bazel"),
    ],
)
def test_a_wrong_call_is_one_line(sample: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_module(**({"directory": sample} | arguments))
