"""Modules that use one mechanism each the way shipped binaries do, built with flags of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pkvm_emu.build.builder import build_module
from pkvm_emu.machine.profile import MachineProfile

#: Kernels by the spelling of their generation.
GENERATIONS = ("android14-5.15", "14", "15", "16")
SMALL = MachineProfile(ram_size=64 << 20)

_MAKEFILE = """\
obj-m := {name}.o
{name}-y := el1.o hyp/kvm_nvhe.o
ccflags-y := {el1_flags}
$(obj)/hyp/kvm_nvhe.o: FORCE
	$(Q)$(MAKE) $(build)=$(obj)/hyp $(obj)/hyp/kvm_nvhe.o
"""
_HYP_MAKEFILE = """\
hyp-obj-y := el2.o
ccflags-y := {el2_flags}
include $(srctree)/arch/arm64/kvm/hyp/nvhe/Makefile.module
"""
_EL1_HEAD = """\
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <asm/kvm_pkvm_module.h>
MODULE_LICENSE("GPL");
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_hyp_call(pkvm_handler_regs_t *regs);
static unsigned long token;
"""
_EL2_HEAD = """\
#include <asm/kvm_pkvm_module.h>
#include <linux/arm-smccc.h>
#include <linux/errno.h>
"""

Build = Callable[..., Path]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """``build(el1, el2, generation, el1_flags=..., el2_flags=...)``: a ``.ko``; the same sources are built once."""
    built: dict[tuple[str, ...], Path] = {}

    def run(
        el1: str, el2: str, generation: str = "16", *, name: str = "probe", el1_flags: str = "", el2_flags: str = ""
    ) -> Path:
        key = (el1, el2, generation, name, el1_flags, el2_flags)
        if key not in built:
            tree = tmp_path_factory.mktemp(name)
            (tree / "hyp").mkdir()
            (tree / "Makefile").write_text(_MAKEFILE.format(name=name, el1_flags=el1_flags))
            (tree / "hyp" / "Makefile").write_text(_HYP_MAKEFILE.format(el2_flags=el2_flags))
            (tree / "el1.c").write_text(_EL1_HEAD + el1)
            (tree / "hyp" / "el2.c").write_text(_EL2_HEAD + el2)
            built[key] = build_module(tree, tree / f"{name}.ko", generation).path
        return built[key]

    return run
