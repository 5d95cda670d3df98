"""The headers of IOMMU drivers say what the emulator's tables say."""

from __future__ import annotations

import pytest
from header_snippets import A14, A14_515, A15, A16, Compile, Generation

from pkvm_emu.hyp import iommu_pkvm_structs
from pkvm_emu.hyp.iommu_rules import RULES

_HEAD = "#include <nvhe/iommu.h>\n"
_AT = '_Static_assert(offsetof({0}, {1}) == {2}, "{1}");\n'


@pytest.mark.parametrize("generation", [A15, A16], ids=str)
def test_every_function_of_a_driver_is_where_the_hypervisor_calls_it(
    compile_c: Compile, generation: Generation
) -> None:
    rules = RULES[f"a{generation.android}"]
    members = [name for name in rules.members if name != "iotlb_sync_map"]
    text = "".join(_AT.format("struct kvm_iommu_ops", name, 8 * at) for at, name in enumerate(members))
    text += _AT.format("struct kvm_hyp_iommu", "lock", rules.lock)
    text += _AT.format("struct kvm_hyp_iommu", "power_domain", rules.power_domain)
    text += _AT.format("struct kvm_hyp_iommu", "power_is_off", rules.power_is_off)
    text += f'_Static_assert(sizeof(struct kvm_hyp_iommu_domain) == {rules.domain_size}, "domain");\n'
    compile_c(_HEAD + text, generation, level=2)


@pytest.mark.parametrize("generation", [A14_515, A14], ids=str)
def test_so_it_is_in_android14(compile_c: Compile, generation: Generation) -> None:
    members = (*iommu_pkvm_structs.MEMBERS, "data_size")
    text = "".join(_AT.format("struct pkvm_iommu_ops", name, 8 * at) for at, name in enumerate(members))
    offsets = {
        "list": 8,
        "siblings": 24,
        "children": 40,
        "id": 56,
        "ops": 64,
        "pa": 72,
        "va": 80,
        "size": 88,
        "powered": 96,
    }
    text += "".join(_AT.format("struct pkvm_iommu", name, at) for name, at in offsets.items())
    compile_c(_HEAD + text, generation, level=2)


@pytest.mark.parametrize("generation", [A14_515, A14, A15, A16], ids=str)
def test_the_el1_half_finds_its_functions(compile_c: Compile, generation: Generation) -> None:
    call = "pkvm_iommu_finalize(0)" if generation.android == 14 else "kvm_iommu_register_driver(0)"
    source = f"#include <asm/kvm_host.h>\nint probe(void) {{ return {call} + pkvm_iommu_suspend(0); }}\n"
    assert "pkvm_iommu_suspend" in compile_c(source, generation, level=1).undefined
