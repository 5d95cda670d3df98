"""What a module imports and nothing serves: calls, variables, function pointers and static keys, each by its name."""

from __future__ import annotations

import re

import pytest

import pkvm_emu
from pkvm_emu.elf.imports import ImportUse, import_uses
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.kernel.symbols import UnservedSymbol
from pkvm_emu.machine.profile import MachineProfile

SMALL = MachineProfile(ram_size=64 << 20)
GENERATIONS = ("android14-5.15", "android14-6.1", "android15-6.6", "android16-6.12")
HEAD = """
#include <linux/jump_label.h>
#include <linux/string.h>
extern u64 acme_limit;
extern struct { u64 first, second; } acme_table;
extern void acme_reset(void *data);
void acme_halt(int how, long why);
extern struct static_key_false acme_feature, acme_default_on;
"""
#: A branch on a key as the kernel's ``static_branch_likely`` makes it for a key that is true by definition.
LIKELY = """
static __always_inline bool on_by_default(struct static_key *const key)
{
	asm goto("1: nop\\n.pushsection __jump_table, \\"aw\\"\\n.align 3\\n.long 1b - ., %l[yes] - .\\n"
		".quad %c0 - . + 1\\n.popsection" : : "i"(key) : : yes);
	return true;
yes:
	return false;
}
"""


@pytest.fixture
def start(c_module):
    """``start(body, generation)``: boots with a module whose init function has this body; what it logged with ``=``."""

    def run(body: str, generation: str = "android16-6.12", more: str = "") -> list[str]:
        source = f"{HEAD}{more}\nstatic int __init start(void)\n{{\n{body}\n\treturn 0;\n}}\nmodule_init(start);\n"
        module = c_module(source, None, name="needy", generation=generation)
        system = pkvm_emu.boot(generation, modules=[module], profile=SMALL)
        return [record.text.partition("=")[2] for record in system.kernel.log if "=" in record.text]

    return run


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('pr_info("=%llu", acme_limit);', "reads acme_limit, which this kernel does not serve"),
        ("acme_table.second = 3;", r"writes acme_table\+0x8, which this kernel does not serve"),
        ("acme_halt(2, 3);", r"calls acme_halt\(\), which this kernel does not serve \(x0=0x2, x1=0x3, "),
        ('pr_info("=%d", (int)strlen((char *)&acme_limit));', r"lets strlen\(\) access acme_limit, which this kernel"),
    ],
    ids=["read", "write", "call", "argument"],
)
def test_the_run_stops_with_the_name_of_what_is_missing(start, generation: str, body: str, message: str) -> None:
    with pytest.raises(UnservedSymbol, match=message) as raised:
        start(body, generation)
    assert re.search(r"(init_module|start)\+0x\w+/0x\w+ \[needy\]", str(raised.value))
    assert "--kernel FILE" in str(raised.value)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_pointer_to_a_missing_function_may_be_passed_on_and_not_called(start, generation: str) -> None:
    pointer = 'void (*volatile reset)(void *) = acme_reset;\n\tpr_info("=%pS\\n", reset);\n'
    assert start(pointer, generation)[-1] == "acme_reset"
    with pytest.raises(UnservedSymbol, match=r"calls acme_reset\(\), which this kernel does not serve \(x0=0x5, "):
        start(pointer + "reset((void *)5);", generation)


def test_a_key_that_nobody_knows_is_as_the_module_was_compiled_for(start) -> None:
    said = start('pr_info("=%d\\n", static_branch_unlikely(&acme_feature));')
    assert said[-1] == "0"


def test_such_a_key_can_be_switched_on(start) -> None:
    look = 'pr_info("=%d\\n", static_branch_unlikely(&acme_feature));'
    body = f"for (int i = 0; i < 2; i++) {{ {look} static_branch_enable(&acme_feature); }}"
    assert start(body)[-2:] == ["0", "1"]


def test_a_key_that_is_on_by_definition_stays_so_until_it_is_switched_off(start) -> None:
    look = 'pr_info("=%d\\n", on_by_default(&acme_default_on.key));'
    body = f"for (int i = 0; i < 2; i++) {{ {look} static_branch_disable(&acme_default_on); }}"
    assert start(body, more=LIKELY)[-2:] == ["1", "0"]


def test_uses_are_told_apart(c_module) -> None:
    body = "return acme_limit + static_branch_unlikely(&acme_feature) + (acme_halt(1, 2), 0);"
    source = (
        f"{HEAD}static int __init start(void) {{ static_branch_enable(&acme_feature); {body} }} module_init(start);"
    )
    uses = import_uses(ModuleFile.load(c_module(source, None, name="needy")))
    assert uses["acme_limit"] is ImportUse.ADDRESS
    assert uses["acme_halt"] is ImportUse.CALL
    assert uses["acme_feature"] is ImportUse.STATIC_KEY


def test_is_pkvm_initialized_comes_true_with_deprivilege(c_module) -> None:
    source = """
#include <linux/jump_label.h>
extern struct static_key_false kvm_protected_mode_initialized;
static int look(char *buffer, const struct kernel_param *param)
{
	return sprintf(buffer, "%d", static_branch_unlikely(&kvm_protected_mode_initialized));
}
static const struct kernel_param_ops ops = { .get = look };
module_param_cb(ready, &ops, NULL, 0444);
static int __init start(void)
{
	pr_info("=%d\\n", static_branch_unlikely(&kvm_protected_mode_initialized));
	return 0;
}
module_init(start);
"""
    system = pkvm_emu.boot(modules=[c_module(source, None, name="ready")], profile=SMALL)
    assert "ready: =0" in system.dmesg
    assert system.fs.read("/sys/module/ready/parameters/ready").strip() == "1"
