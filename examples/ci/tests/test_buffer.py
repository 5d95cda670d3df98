"""The hypercall of `buffer`, on every generation that pytest.ini names."""

import pytest

pytestmark = pytest.mark.pkvm(modules=["../modules/buffer"])

PAGE = 0x4800_0000
EPERM, E2BIG = (1 << 64) - 1, (1 << 64) - 7


@pytest.mark.parametrize("numbers", [[], [7], [1, 2, 3]])
def test_numbers_of_the_host_are_summed(pkvm_system, numbers):
    for place, number in enumerate([len(numbers), *numbers]):
        assert pkvm_system.host.write(PAGE + 8 * place, number).ok
    result = pkvm_system.call("buffer_sum", PAGE >> 12)
    assert (result.x0, result.x1, result.x2) == (0, 0, sum(numbers))
    assert pkvm_system.pages.at(PAGE).owner.name == "HOST"


def test_too_many_numbers_are_refused_and_the_page_goes_back(pkvm_system):
    pkvm_system.host.write(PAGE, 512)
    assert pkvm_system.call("buffer_sum", PAGE >> 12).x1 == E2BIG
    assert pkvm_system.host.write(PAGE, 0).ok


def test_a_page_of_the_hypervisor_is_refused(pkvm_system, pkvm_module):
    own = pkvm_module.blocks[pkvm_module.layout.hyp_base][0]
    assert pkvm_system.call("buffer_sum", own >> 12).x1 == EPERM
