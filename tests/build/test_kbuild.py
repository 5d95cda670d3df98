"""A Kbuild tree says which sources make which module, and with which flags."""

from __future__ import annotations

from pathlib import Path

import pytest
from module_trees import HYP_MAKEFILE, WriteTree, kbuild_files

from pkvm_emu.build.generation import find_generation
from pkvm_emu.build.kbuild import read_kbuild_tree
from pkvm_emu.build.plan import BuildPlan
from pkvm_emu.errors import BuildError, UsageError

RULE = "$(obj)/hyp/kvm_nvhe.o: FORCE\n\t$(Q)$(MAKE) $(build)=$(obj)/hyp $(obj)/hyp/kvm_nvhe.o\n"


def read(write_tree: WriteTree, files: dict[str, str], **config: str) -> BuildPlan:
    return read_kbuild_tree(write_tree(files), find_generation(None), config)


@pytest.mark.parametrize("target", ["$(obj)/hyp/kvm_nvhe.o", "$(PWD)/hyp/kvm_nvhe.o", "$(M)/hyp/kvm_nvhe.o"])
def test_the_documented_makefiles_give_one_module_of_two_halves(write_tree: WriteTree, target: str) -> None:
    plan = read(write_tree, kbuild_files(target))
    (module,) = plan.modules
    top = module.directory
    assert (module.name, module.file_name) == ("sample", "sample.ko")
    assert [source.path for source in module.el1] == [top / "el1.c"]
    assert [source.path for source in module.el2] == [top / "hyp" / "el2.c"]
    assert plan.clean_files == [top / "hyp/hyp.lds", top / "hyp/hyp-reloc.S"]


def test_a_module_of_one_source_has_no_el2_half(write_tree: WriteTree) -> None:
    (module,) = read(write_tree, {"Makefile": "obj-m += plain.o\n", "plain.c": ""}).modules
    assert [source.path.name for source in module.el1] == ["plain.c"]
    assert module.el2 == ()


def test_one_makefile_can_make_several_modules_from_shared_directories(write_tree: WriteTree) -> None:
    files = {
        "Makefile": f"obj-m := one.o two.o\none-objs := a.o\none-objs += hyp/kvm_nvhe.o\ntwo-y := b.o\n{RULE}",
        "a.c": "",
        "b.S": "",
        "hyp/Makefile": "hyp-obj-y := x.o sub/y.o\n" + HYP_MAKEFILE.splitlines()[1] + "\n",
        "hyp/x.S": "",
        "hyp/sub/y.c": "",
    }
    one, two = read(write_tree, files).modules
    assert [source.path.name for source in one.el2] == ["x.S", "y.c"]
    assert [source.path.name for source in two.el1] == ["b.S"]


def test_a_subdirectory_in_obj_m_is_read_with_the_flags_for_subdirectories(write_tree: WriteTree) -> None:
    files = {
        "Kbuild": "obj-m := drivers/\nsubdir-ccflags-y := -DALL\nccflags-y := -DTOP\n",
        "Makefile": "nonsense that nobody reads",
        "drivers/Makefile": "obj-m := deep.o\n",
        "drivers/deep.c": "",
    }
    (module,) = read(write_tree, files).modules
    assert module.el1[0].flags == ("-DALL",)


def test_flags_go_to_the_sources_that_they_name(write_tree: WriteTree) -> None:
    files = kbuild_files() | {
        "Makefile": f"obj-m := m.o\nm-y := a.o b.o hyp/kvm_nvhe.o\nccflags-y := -DEL1 -I$(src)/include -Iown -DDROP\n"
        f"CFLAGS_a.o := -DA '-DTEXT=\"x y\"'\nCFLAGS_REMOVE_b.o := -DDROP\n{RULE}",
        "a.c": "",
        "b.c": "",
        "hyp/Makefile": "ccflags-y := -I$(src)/../include -I$(srctree)/drivers/foo -DEL2\n" + HYP_MAKEFILE,
    }
    (module,) = read(write_tree, files).modules
    top = module.directory
    common = ("-DEL1", f"-I{top}/include", f"-I{top}/own")
    assert module.el1[0].flags == (*common, "-DDROP", "-DA", '-DTEXT="x y"')
    assert module.el1[1].flags == common
    assert module.el2[0].flags == (f"-I{top}/hyp/../include", "-DEL2")


def test_the_modules_own_directory_is_found_through_every_name_that_it_has(
    write_tree: WriteTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = write_tree(
        {
            "Makefile": "obj-m := m.o\nccflags-y := -I$(src)/a -I$(srctree)/$(src)/b -I$(obj)/c\n"
            "ccflags-y += -I$(PWD)/d -I$(M)/e -If\n",
            "m.c": "",
        }
    )
    monkeypatch.chdir(top.parent)
    (module,) = read_kbuild_tree(Path("sample"), find_generation(None), {}).modules
    assert module.el1[0].path == Path("sample/m.c")
    assert module.el1[0].flags == tuple(f"-Isample/{name}" for name in "abcdef")


def test_a_configuration_option_chooses_modules_and_sources(write_tree: WriteTree) -> None:
    files = {
        "Makefile": "obj-$(CONFIG_FOO) += foo.o\nfoo-y := a.o\nfoo-$(CONFIG_BAR) += b.o\n",
        "a.c": "",
        "b.c": "",
    }
    (module,) = read(write_tree, files, FOO="m").modules
    assert [source.path.name for source in module.el1] == ["a.c"]
    (module,) = read(write_tree, files, FOO="m", BAR="y").modules
    assert [source.path.name for source in module.el1] == ["a.c", "b.c"]
    with pytest.raises(UsageError, match="Makefile: obj-m names no module"):
        read(write_tree, files)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"Makefile": "obj-m := m.o\nm-y := gone.o\n"},
            r"Makefile:2: no source for gone.o: expected .*gone.c or .*gone.S",
        ),
        ({"Makefile": "obj-m := m.o\nm-y := el1.o hyp/kvm_nvhe.o\n"}, "Makefile:2: no rule makes hyp/kvm_nvhe.o"),
        ({"Makefile": "obj-m := m.ko\n"}, "Makefile:1: m.ko in obj-m is neither"),
        ({"Makefile": "obj-m := m.o\nm-y := el1.c\n"}, "Makefile:2: el1.c in m-y is not an object"),
        ({"hyp/Makefile": "hyp-obj-y := el2.o\n"}, "hyp/Makefile: `include .*Makefile.module` is missing"),
        ({"hyp/Makefile": "hyp-obj-y :=\n" + HYP_MAKEFILE.splitlines()[1]}, "hyp-obj-y names no EL2 object"),
        ({"Makefile": "obj-m := el1.o\nccflags-y := '-Dopen\n"}, "Makefile:2: cannot split the flags"),
    ],
)
def test_a_mistake_is_reported_with_its_place(write_tree: WriteTree, changes: dict[str, str], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        read(write_tree, kbuild_files() | changes)


def test_a_directory_without_a_makefile_is_a_usage_error(write_tree: WriteTree) -> None:
    with pytest.raises(UsageError, match=r"no Makefile, Kbuild or BUILD\.bazel in"):
        read(write_tree, {"el1.c": ""})
