"""What the benchmark scripts share: a built sample module, timing, and how figures are printed."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pkvm_emu.build.builder import build_module

ROOT = Path(__file__).resolve().parent.parent


def sample(generation: str = "16") -> Path:
    """The documented sample module, built for a generation."""
    name = "pkvm_driver_a14" if generation == "14" else "pkvm_driver"
    place = Path(tempfile.mkdtemp(prefix="pkvm-emu-bench-"))
    return build_module(ROOT / "modules" / name, place / "pkvm_driver.ko", generation).path


_NOP_EL1 = """
#include <linux/init.h>
#include <linux/module.h>
#include <asm/kvm_pkvm_module.h>
int __kvm_nvhe_nop_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_nop_hvc(struct user_pt_regs *regs);
static unsigned long token;
static int __init nop_load(void)
{
	int ret = pkvm_load_el2_module(__kvm_nvhe_nop_init, &token);
	return ret ? ret : pkvm_register_el2_mod_call(__kvm_nvhe_nop_hvc, token) < 0;
}
module_init(nop_load);
MODULE_LICENSE("GPL");
"""
_NOP_EL2 = """
#include <asm/kvm_pkvm_module.h>
int nop_init(const struct pkvm_module_ops *ops) { return 0; }
void nop_hvc(struct user_pt_regs *regs) { regs->regs[0] = 0; regs->regs[1] = 0; }
"""
_MAKEFILE = """\
obj-m := {module}.o
{module}-y := el1.o hyp/kvm_nvhe.o
$(obj)/hyp/kvm_nvhe.o: FORCE
	$(Q)$(MAKE) $(build)=$(obj)/hyp $(obj)/hyp/kvm_nvhe.o
"""
_HYP_MAKEFILE = "hyp-obj-y := el2.o\ninclude $(srctree)/arch/arm64/kvm/hyp/nvhe/Makefile.module\n"


def nop_module() -> Path:
    """A module whose hypercall ``nop_hvc`` does nothing but succeed: what is left is the way there and back."""
    return module_of("nop", _NOP_EL1, _NOP_EL2)


def module_of(module: str, el1: str, el2: str) -> Path:
    """A module from the C of its two halves."""
    place = Path(tempfile.mkdtemp(prefix="pkvm-emu-bench-"))
    (place / "hyp").mkdir()
    for name, text in (
        ("Makefile", _MAKEFILE.format(module=module)),
        ("el1.c", el1),
        ("hyp/Makefile", _HYP_MAKEFILE),
        ("hyp/el2.c", el2),
    ):
        (place / name).write_text(text)
    return build_module(place, place / f"{module}.ko").path


def median_seconds(action: Callable[[], object], runs: int = 7) -> float:
    """Median wall time of ``action`` over ``runs`` runs, after one that is not counted."""
    action()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def show(what: str, value: float, unit: str, goal: str) -> None:
    """One figure on one line."""
    print(f"{what:<58} {value:10.3f} {unit:<6} (goal {goal})")
