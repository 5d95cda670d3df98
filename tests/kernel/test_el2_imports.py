"""EL2 calls from one module into another: what android16 relocates, what it refuses, and what it gets wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import pkvm_emu
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.elf.relocation import R_AARCH64_CALL26
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System

SMALL = MachineProfile(ram_size=64 << 20)
Make = Callable[..., Path]
EL1 = """
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_hyp_call(pkvm_handler_regs_t *regs);
static unsigned long token;
static int __init half_init(void)
{
	int ret = pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);
	return ret ? ret : pkvm_register_el2_mod_call(__kvm_nvhe_hyp_call, token) < 0;
}
module_init(half_init);
"""
LAZY = "static int __init lazy_init(void) { return 0; }\nmodule_init(lazy_init);\n"
EXPORT = "u64 __kvm_nvhe_twice(u64 a);\nEXPORT_SYMBOL(__kvm_nvhe_twice);\n"
INIT = "int hyp_init(const struct pkvm_module_ops *ops) { return 0; }\n"
TWICE = "u64 twice(u64 a) { return 2 * a; }\n"
CALL = "void hyp_call(pkvm_handler_regs_t *regs) { u64 *x = (u64 *)regs; x[0] = 0; x[1] = twice(x[1]) + 1; }\n"
NO_CALL = "void hyp_call(pkvm_handler_regs_t *regs) { ((u64 *)regs)[0] = 0; }\n"


def lines(system: System) -> list[str]:
    return [re.sub(r"^\[[ 0-9.]*\] ", "", line) for line in system.dmesg.splitlines()]


@pytest.fixture
def modules(c_module: Make) -> Callable[..., list[Path]]:
    def make(
        giver: str = INIT + TWICE + NO_CALL,
        taker: str = INIT + "u64 twice(u64 a);\n" + CALL,
        android: str = "16",
        el1: str = EL1,
    ):
        first = c_module(EXPORT + el1, giver, name="giver", generation=android)
        return [first, c_module(EL1, taker, name="taker", generation=android, symbols=(first,))]

    return make


def test_a_call_reaches_the_other_modules_el2_function(modules) -> None:
    system = pkvm_emu.boot("16", modules(), profile=SMALL)
    giver, taker = system.modules["giver"], system.modules["taker"]
    assert taker.token > giver.token
    assert system.hvc(taker.hypercalls["hyp_call"], 21).x1 == 43
    (entry,) = taker.image.hyp_imports
    assert (entry.name, entry.type) == ("__kvm_nvhe_twice", R_AARCH64_CALL26)


def test_the_order_given_makes_no_difference(modules) -> None:
    giver, taker = modules()
    system = pkvm_emu.boot("16", [taker, giver], profile=SMALL)
    assert list(system.modules) == ["giver", "taker"]
    assert system.hvc(system.modules["taker"].hypercalls["hyp_call"], 4).x1 == 9


def test_a_function_of_an_el2_half_that_is_not_loaded_fails_the_load(modules) -> None:
    system = pkvm_emu.boot("16", modules(el1=LAZY), profile=SMALL)
    failed = system.boot_report.outcomes[1]
    assert (failed.name, failed.errno, failed.step) == ("taker", -22, "EL2 imports")
    assert failed.reason.endswith("its init function returned -22 (-EINVAL), after its EL2 imports failed (-EINVAL)")
    assert "pKVM symbol __kvm_nvhe_twice not exported by any module" in lines(system)
    assert not system.is_secure


def test_the_first_function_of_the_text_is_not_found(modules) -> None:
    # The kernel leaves the first byte of the section out of its check.
    first = (
        '__asm__(".text; .globl twice; .type twice, %function; twice: add x0, x0, x0; ret; .size twice, . - twice");\n'
    )
    system = pkvm_emu.boot("16", modules(giver=first + INIT + NO_CALL), profile=SMALL)
    giver = system.modules["giver"]
    assert giver.symbol("__kvm_nvhe_twice") == giver.image.section_va(".hyp.text")
    assert system.boot_report.outcomes[1].step == "EL2 imports"
    assert "pKVM symbol __kvm_nvhe_twice not part of giver .text section" in lines(system)


def test_an_exported_variable_is_no_text(modules) -> None:
    giver = INIT + NO_CALL + "u64 twice = 5;\n"
    system = pkvm_emu.boot("16", modules(giver=giver), profile=SMALL)
    assert "pKVM symbol __kvm_nvhe_twice not part of giver .text section" in lines(system)


def test_only_bl_is_relocated(modules) -> None:
    branch = '__asm__(".text; .globl again; .type again, %function; again: b twice; .size again, . - again");\n'
    tail = INIT + NO_CALL + branch
    paths = modules(taker=tail)
    assert [entry.type for entry in _imports(paths[1])] != [R_AARCH64_CALL26]
    system = pkvm_emu.boot("16", paths, profile=SMALL)
    assert "Unknown relocation type for imported symbol __kvm_nvhe_twice" in lines(system)
    text = "pkvm_emu: taker: the EL2 call of __kvm_nvhe_twice at __kvm_nvhe_again+0x0/0x4 [taker] goes astray"
    assert any(line.startswith(text) for line in lines(system))
    assert [outcome.status for outcome in system.boot_report.outcomes] == ["loaded", "loaded"]


def _imports(path: Path):
    file = ModuleFile.load(path)
    text = file.section(".hyp.text")
    assert text is not None
    return [e for e in file.object.relocations_of(text.index) if file.symbols[e.symbol].name == "__kvm_nvhe_twice"]


@pytest.mark.parametrize("android", ["14", "15"])
def test_older_generations_leave_the_call_alone(modules, android: str) -> None:
    system = pkvm_emu.boot(android, modules(android=android), profile=SMALL)
    assert [outcome.status for outcome in system.boot_report.outcomes] == ["loaded", "loaded"]
    assert any("this kernel does not relocate EL2 calls between modules" in line for line in lines(system))


def test_a_symbol_that_nobody_exports_is_unknown_at_el1(modules) -> None:
    system = pkvm_emu.boot("16", modules()[1:], profile=SMALL)
    failed = system.boot_report.outcomes[0]
    assert (failed.errno, failed.step) == (-2, "link")
    assert "taker: Unknown symbol __kvm_nvhe_twice (err -2)" in lines(system)
