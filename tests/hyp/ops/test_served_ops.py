"""Every op of every generation is served, and what is not there is reported by name."""

from __future__ import annotations

import pytest
from ops_caller import GENERATIONS

from pkvm_emu.abi.generation import generation
from pkvm_emu.hyp.hypervisor import register_all
from pkvm_emu.hyp.op_table import FIRMWARE_OPS
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.hyp.registry import OPS
from pkvm_emu.machine.calling import signature_of
from pkvm_emu.system import boot


@pytest.mark.parametrize("name", GENERATIONS)
def test_every_member_of_the_table_has_an_implementation(name: str) -> None:
    register_all()
    missing = [slot.name for slot in generation(name).ops.served if slot.name not in OPS.keys() | FIRMWARE_OPS.keys()]
    assert missing == []


def test_every_op_says_what_it_does_and_takes_no_more_than_its_prototype() -> None:
    register_all()
    for name, served in OPS.items():
        assert served.function.__doc__, name
        prototypes = [
            g.ops[name].prototype for g in map(generation, GENERATIONS) if name in g.ops and g.ops[name].prototype
        ]
        assert prototypes, name
        assert signature_of(served.function).registers <= max(text.count(",") + 1 for text in prototypes), name


EMPTY_SLOT = """
static const struct pkvm_module_ops *o;
int hyp_init(const struct pkvm_module_ops *ops) { o = ops; return 0; }
%s void hyp_call(pkvm_handler_regs_t *regs) { ((u64 (*const *)(u64))o)[%d](1); }
"""


@pytest.mark.parametrize(
    ("name", "offset", "others"),
    [
        ("14", 0x1A8, ["hyp_smp_processor_id on android15-6.6", "pkvm_unuse_dma on android16-6.12"]),
        ("15", 0x1D8, ["hyp_smp_processor_id on android16-6.12"]),
        ("16", 0x2E0, []),
    ],
)
@pytest.mark.parametrize("checked", [True, False])
def test_a_call_through_an_empty_slot_names_the_member_of_another_generation(
    c_module, name: str, offset: int, others: list[str], checked: bool
) -> None:
    attribute = "" if checked else '__attribute__((no_sanitize("kcfi")))'
    system = boot(name, [c_module(el2=EMPTY_SLOT % (attribute, offset // 8), generation=name)])
    expected = rf"slot {offset:#x} of struct pkvm_module_ops, which {system.generation} does not have"
    with pytest.raises(HypPanic, match=expected) as caught:
        system.hvc(128)
    assert all(other in str(caught.value) for other in others)
