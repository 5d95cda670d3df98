"""SMCCC and PSCI ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkvm_emu.arch import smccc
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


@pytest.mark.parametrize(("func", "answer"), [(0x8400_0060, True), (0xC400_008F, True), (0x8400_0090, False)])
def test_ffa_calls_are_a_range_of_the_standard_owner(func, answer):
    assert smccc.is_ffa(func) is answer


def test_psci_owns_32_ids_at_two_bases():
    inside = [0x8400_0000, 0x8400_001F, 0xC400_0000, 0xC400_001F]
    outside = [0x83FF_FFFF, 0x8400_0020, 0xC400_0020, 0x0400_0000, 0xC600_0003]
    assert all(is_psci(func) for func in inside)
    assert not any(is_psci(func) for func in outside)


def test_psci_names_do_not_depend_on_the_convention():
    assert psci_name(0x8400_0003) == psci_name(psci_id(PsciFunction.CPU_ON, smc64=True)) == "CPU_ON"
    assert psci_name(0x8400_001F) is None
    assert psci_name(0x8000_0000) is None
