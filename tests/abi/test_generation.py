"""The generations as values."""

import dataclasses
import re
from operator import attrgetter

import pytest

from pkvm_emu.abi.generation import GENERATIONS, from_vermagic, generation, latest
from pkvm_emu.abi.prot import Component, Prot, prot_name
from pkvm_emu.errors import UsageError

NAMES = ["android14-5.15", "android14-6.1", "android15-6.6", "android16-6.12"]


def test_there_are_four_generations_oldest_first():
    assert [gen.name for gen in GENERATIONS] == NAMES
    assert latest is GENERATIONS[-1] is generation(None)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (16, "android16-6.12"),
        ("16", "android16-6.12"),
        ("android16", "android16-6.12"),
        ("Android16-6.12", "android16-6.12"),
        ("6.12", "android16-6.12"),
        (15, "android15-6.6"),
        ("14", "android14-6.1"),
        ("5.15", "android14-5.15"),
        (" 6.1 ", "android14-6.1"),
    ],
)
def test_a_generation_is_found_under_every_usual_spelling(spec, name):
    assert generation(spec).name == name
    assert generation(generation(spec)) is generation(spec)


@pytest.mark.parametrize("spec", ["13", "android17", "", "6.12.23", 0])
def test_an_unknown_generation_is_a_usage_error_that_lists_the_known_ones(spec):
    with pytest.raises(UsageError, match=re.escape(", ".join(NAMES))):
        generation(spec)


@pytest.mark.parametrize(
    ("vermagic", "name"),
    [
        ("6.12.23-android16-5-g1234-4k SMP preempt mod_unload modversions aarch64", "android16-6.12"),
        ("6.6.30-android15-8-gabc SMP preempt mod_unload modversions aarch64", "android15-6.6"),
        ("6.1.99-android14-11 SMP preempt", "android14-6.1"),
        ("5.15.110-android14-11-g0", "android14-5.15"),
        ("6.12.23 SMP preempt mod_unload aarch64", "android16-6.12"),
        ("5.15.110-android13-8 SMP preempt", None),
        ("6.18.0-mainline SMP", None),
        ("", None),
        ("garbage", None),
    ],
)
def test_a_module_tells_its_generation_by_vermagic(vermagic, name):
    found = from_vermagic(vermagic)
    assert (found.name if found else None) == name


@pytest.mark.parametrize(
    ("name", "ops_size", "module_size", "init", "token", "finalize"),
    [
        ("android14-5.15", 512, 88, 80, 0, 17),
        ("android14-6.1", 512, 88, 80, 0, 17),
        ("android15-6.6", 688, 160, 152, 80, 20),
        ("android16-6.12", 744, 200, 192, 96, 21),
    ],
)
def test_layout_numbers_of_each_generation(name, ops_size, module_size, init, token, finalize):
    gen = generation(name)
    assert (gen.ops_size, gen.el2_module.size, gen.hyp_init_to_base) == (ops_size, module_size, init)
    assert gen.token_offset == token
    assert gen.prot_finalize == finalize


def test_stock_modules_keep_init_and_token_where_their_code_looks():
    for name, init, token in [("6.6", 0x470, 0x428), ("6.12", 0x498, 0x438)]:
        gen = generation(name)
        assert gen.default_hyp_offset + gen.hyp_init_to_base == init
        assert gen.default_hyp_offset + gen.token_offset == token
    assert generation("6.1").default_hyp_offset == 0x240


def test_calls_below_finalisation_close_with_it_and_dynamic_ones_never():
    gen = generation(16)
    assert gen.is_gated(gen.hypercalls["register_hcall"])
    assert not gen.is_gated(gen.prot_finalize)
    assert not gen.is_gated(gen.hypercalls["host_share_hyp"])
    assert [gen.is_dynamic(n) for n in (127, 128, 255, 256)] == [False, True, True, False]


def test_handlers_get_the_context_of_their_generation():
    assert {gen.android: (gen.handler_context, gen.dyn_hcall_presets_x0) for gen in GENERATIONS} == {
        14: ("kvm_cpu_context", True),
        15: ("user_pt_regs", False),
        16: ("user_pt_regs", False),
    }
    assert all(gen.context_layout.name == gen.handler_context for gen in GENERATIONS)
    assert all(gen.handler_context in gen.callbacks["hcall"].prototype for gen in GENERATIONS)


def test_kcfi_by_exception_level():
    assert [(gen.el1_kcfi, gen.el2_kcfi) for gen in GENERATIONS] == [
        ("jump-table", "none"),
        ("plain", "none"),
        ("plain", "plain"),
        ("normalised", "normalised"),
    ]


def test_protected_mode_is_another_capability_in_every_kernel():
    assert [gen.capabilities.get("KVM_PROTECTED_MODE") for gen in GENERATIONS] == [37, 40, 51, 55]


def test_handler_slots_grow():
    slots = [(gen.smc_handler_slots, gen.perm_fault_handler_slots, gen.guest_smc_slots) for gen in GENERATIONS]
    assert slots == [(1, 1, 0), (1, 1, 0), (1, 16, 1), (16, 16, 16)]


@pytest.mark.parametrize("gen", GENERATIONS, ids=str)
def test_every_section_has_its_members_in_the_descriptor(gen):
    for section in gen.sections:
        assert f"{section.field}.start" in gen.el2_module
        assert f"{section.field}.end" in gen.el2_module
        assert section.elf_name == f".hyp.{section.field}"
    described = {name.split(".")[0] for name in gen.el2_module.fields if name.endswith(".start")} - {"sections"}
    assert described == {section.field for section in gen.sections}
    executable = [section.field for section in gen.sections if section.prot & 1]
    assert executable == ["text"]


@pytest.mark.parametrize("gen", GENERATIONS, ids=str)
def test_what_is_marked_unverified_exists_and_the_newest_generation_has_nothing_of_it(gen):
    for name in gen.unverified:
        attrgetter(name)(gen)
    assert (gen is latest) == (not gen.unverified)


@pytest.mark.parametrize("gen", GENERATIONS, ids=str)
def test_page_states_are_distinct(gen):
    assert len(set(gen.page_states.values())) == len(gen.page_states)
    assert gen.page_states["OWNED"] == 0


def test_a_generation_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        latest.android = 17
    with pytest.raises(TypeError):
        latest.capabilities["LSE"] = 1
    assert len({hash(gen) for gen in GENERATIONS}) == 4


def test_behaviour_that_differs_between_generations():
    a14, a15, a16 = (generation(n) for n in (14, 15, 16))
    chains = [gen.faults.perm_fault_chain for gen in (a14, a15, a16)]
    assert chains == ["single", "first-nonzero", "first-zero"]
    assert [gen.ownership.unshare_pinned_errno for gen in (a14, a15, a16)] == [-16, -22, -16]
    assert [gen.ownership.share_non_ram_errno for gen in (a14, a15, a16)] == [None, None, -22]
    assert [gen.tracing.module_events for gen in (a14, a15, a16)] == ["none", "op", "init"]
    assert [gen.init_module_arg for gen in (a14, a15, a16)] == ["fn_hyp_va", "fn_hyp_va", "struct_copy_kernel_va"]
    assert [gen.leaf_level_bytes for gen in (a14, a15, a16)] == [4, 4, 1]
    # A module's first event had id 11 on android16: after the eleven of the core, in name order.
    assert len(a16.tracing.core_events) == 11
    assert list(a16.tracing.core_events) == sorted(a16.tracing.core_events)


def test_module_events_by_op_need_the_op():
    for gen in GENERATIONS:
        assert ("register_hyp_event_ids" in gen.ops) == (gen.tracing.module_events == "op")


@pytest.mark.parametrize(
    ("prot", "text"), [(7, "RWX"), (0xE, "RW DEVICE"), (0, "none"), (0x25, "RX PXN"), (0x87, "RWX +0x80")]
)
def test_protections_print_by_name(prot, text):
    assert prot_name(prot) == text


def test_protection_bits_and_owners_have_their_numbers():
    assert Prot.build(r=1, w=1, device=1) == 0xE
    assert Prot.build(sw0=1) == 1 << 55
    assert Component.PROTECTED == 4
