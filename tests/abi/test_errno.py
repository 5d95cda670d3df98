"""Error numbers as people and registers spell them."""

import errno as host

import pytest

from pkvm_emu.abi.errno import ERRNO, describe, errno_name, errno_of, errno_text, is_err_value, to_signed

KERNEL_ONLY = {"ERESTARTSYS", "EPROBE_DEFER", "ENOTSUPP"}


@pytest.mark.skipif(not hasattr(host, "ENOTBLK") or host.EAGAIN != 11, reason="the host's numbers are not Linux's")
@pytest.mark.parametrize("name", sorted(set(ERRNO) - KERNEL_ONLY))
def test_numbers_are_those_of_linux(name):
    assert ERRNO[name] == getattr(host, name)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (-22, "-EINVAL"),
        (22, "EINVAL"),
        (0xFFFFFFEA, "-EINVAL"),
        (0xFFFF_FFFF_FFFF_FFF4, "-ENOMEM"),
        (-95, "-EOPNOTSUPP"),
        (-517, "-EPROBE_DEFER"),
        (0, "0"),
        (-4000, "-4000"),
        (0x1234_0000_FFFF_FFEA, str(0x1234_0000_FFFF_FFEA)),
    ],
)
def test_a_value_prints_by_name_wherever_it_stood(value, name):
    assert errno_name(value) == name


def test_description_adds_the_text():
    assert describe(-22) == "-EINVAL (Invalid argument)"
    assert describe(7777) == "7777"
    assert errno_text(-1) == "Operation not permitted"


def test_only_the_last_page_of_the_address_space_is_an_error_pointer():
    assert is_err_value((1 << 64) - 1)
    assert is_err_value((1 << 64) - 4095)
    assert not is_err_value((1 << 64) - 4096)
    assert not is_err_value(0)


def test_positive_values_are_no_errors():
    assert errno_of(138412240) is None
    assert errno_of(0x80000000) is None
    assert to_signed(0x80000000) == -(1 << 31)
