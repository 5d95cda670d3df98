"""SMCCC and PSCI ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkvm_emu.arch import ffa, smccc
from pkvm_emu.arch.psci import PsciFunction, is_psci, psci_id, psci_name
from pkvm_emu.arch.smccc import FunctionId, Owner


@given(number=st.integers(0, 0xFFFF))
def test_host_hypercall_ids_carry_their_number_with_and_without_the_sve_hint(number):
    call = smccc.kvm_host_id(number)
    assert smccc.kvm_host_number(call) == number
    assert smccc.kvm_host_number(call | smccc.SVE_HINT) == number
    assert FunctionId(call).owner is Owner.VENDOR_HYP


@pytest.mark.parametrize("x0", [0x8600_0001, 0x1_C600_0080, 0xC400_0003, (1 << 64) - 1, 0])
def test_other_values_are_no_host_hypercalls(x0):
    assert smccc.kvm_host_number(x0) is None


def test_not_supported_is_minus_one_in_64_bits():
    assert smccc.SMCCC_RET_NOT_SUPPORTED == smccc.NOT_SUPPORTED & (1 << 64) - 1


def test_function_ids_print_owner_and_number():
    assert FunctionId(smccc.SMCCC_VERSION).describe() == "FAST=1 SMC64=0 OWNER=ARCH FUNC=0x0"
    assert smccc.function_id(Owner.SIP, 0x42) == 0xC200_0042
    assert smccc.KNOWN_IDS[0x8000_0001] == "SMCCC_ARCH_FEATURES"


@pytest.mark.parametrize(
    ("func", "answer"),
    [(0x8400_0060, True), (0xC400_00FF, True), (0x8400_0100, False), (0x8400_005F, False), (0x0400_0063, False)],
)
def test_ffa_calls_are_a_range_of_the_fast_calls_of_the_standard_owner(func, answer):
    assert ffa.is_ffa(func) is answer


def test_generations_may_know_a_shorter_range_of_ffa_calls():
    assert ffa.is_ffa(0x8400_007F, last=0x7F)
    assert not ffa.is_ffa(0x8400_0080, last=0x7F)


@pytest.mark.parametrize(
    ("func", "name"),
    [
        (0x8000_0000, "SMCCC_VERSION"),
        (0x8401_0063, "FFA_VERSION"),
        (0xC400_0032, "SDEI_SHARED_RESET"),
        (0xC400_0053, "STANDARD_TRNG_RND64"),
        (0x8400_0001, "PSCI_CPU_SUSPEND"),
        (0x8200_FF01, "sip 0xff01 (SMC32)"),
        (0xC300_0001, "oem 0x1"),
        (0xF000_0007, "ta 0x7"),
        (0x7200_0001, "tos 0x1 (yielding)"),
        (0xC900_0001, "reserved owner 9 0x1"),
    ],
)
def test_a_call_is_named_by_its_specification_or_by_owner_and_number(func, name):
    assert smccc.call_name(func) == name


@given(st.integers(0, (1 << 32) - 1))
def test_every_function_id_has_a_name_of_one_line(func):
    assert "\n" not in smccc.call_name(func)


@given(
    ranges=st.lists(st.builds(ffa.Range, st.integers(0, 1 << 48), st.integers(0, 1 << 20)), max_size=9),
    version=st.sampled_from([ffa.VERSION_1_0, ffa.VERSION_1_1]),
)
def test_a_memory_descriptor_is_read_back_as_it_was_written(ranges, version):
    region = ffa.Region(3, 0x2F, 1, 1 << 40, 7, 0, 1, 0x8001, 6, 0)
    data = region.pack(version, ranges)
    parsed = ffa.Region.parse(data, version)
    assert (parsed.sender, parsed.handle, parsed.receiver, parsed.endpoints) == (3, 1 << 40, 0x8001, 1)
    assert ffa.composite_of(data, parsed.composite) == (sum(r.pages for r in ranges), len(ranges))
    assert ffa.ranges_of(data[parsed.composite + ffa.COMPOSITE_SIZE :]) == ranges


def test_psci_owns_32_ids_at_two_bases():
    inside = [0x8400_0000, 0x8400_001F, 0xC400_0000, 0xC400_001F]
    outside = [0x83FF_FFFF, 0x8400_0020, 0xC400_0020, 0x0400_0000, 0xC600_0003]
    assert all(is_psci(func) for func in inside)
    assert not any(is_psci(func) for func in outside)


def test_psci_names_do_not_depend_on_the_convention():
    assert psci_name(0x8400_0003) == psci_name(psci_id(PsciFunction.CPU_ON, smc64=True)) == "CPU_ON"
    assert psci_name(0x8400_001F) is None
    assert psci_name(0x8000_0000) is None
