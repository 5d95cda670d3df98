"""The boot with protected modules: their order, the first failure, and kernels that are not in protected mode."""

from __future__ import annotations

import re

import pytest

import pkvm_emu
from pkvm_emu.system import System

GENERATIONS = pytest.mark.parametrize("generation", ["14", "15", "16"])
PLAIN = """
static int value = 5;
module_param(value, int, 0644);
static int __init plain_init(void) { pr_info("value is %d\\n", value); return RESULT; }
module_init(plain_init);
"""


def lines(system: System) -> list[str]:
    """dmesg without its times."""
    return [re.sub(r"^\[[ 0-9.]*\] ", "", line) for line in system.dmesg.splitlines()]


# kvm-arm.protected_modules=


@pytest.fixture
def three(c_module):
    """Modules a, b, c that log their names; "bad" fails with -ENODEV."""

    def make(name: str, result: str = "0"):
        return c_module(PLAIN.replace("RESULT", result), None, name=name)

    return [make("a"), make("b"), make("c"), make("bad", "-ENODEV")]


def outcomes(system: System) -> list[tuple[str, str]]:
    return [(outcome.name, outcome.status) for outcome in system.boot_report.outcomes]


def order(system: System) -> list[str]:
    return [line.split(":")[0] for line in lines(system) if line.endswith("value is 5")]


def test_protected_modules_are_loaded_in_the_order_of_the_command_line(three) -> None:
    system = pkvm_emu.boot("16", three, "kvm-arm.protected_modules=c,,a, kvm_arm.mode=protected")
    assert order(system) == ["c", "a"]
    assert outcomes(system) == [("c", "loaded"), ("a", "loaded")]
    assert list(system.modules) == ["c", "a"]
    assert system.is_secure


def test_without_the_parameter_the_given_modules_are_the_protected_ones(three) -> None:
    assert order(pkvm_emu.boot("16", three[:3])) == ["a", "b", "c"]


def test_an_empty_list_loads_nothing(three) -> None:
    system = pkvm_emu.boot("16", three, "kvm-arm.protected_modules=")
    assert list(system.modules) == []
    assert system.is_secure


@pytest.mark.parametrize(
    ("names", "failed", "errno"),
    [("a,bad,c", "bad", -19), ("a,missing,c", "missing", -2)],
    ids=["init fails", "no such file"],
)
def test_the_first_failure_ends_the_list_and_the_boot_goes_on(three, names: str, failed: str, errno: int) -> None:
    system = pkvm_emu.boot("16", three, f"kvm-arm.protected_modules={names}")
    assert outcomes(system) == [("a", "loaded"), (failed, "failed"), ("c", "skipped")]
    assert system.boot_report.outcomes[1].errno == errno
    assert f"Failed to load pkvm module {failed}: 256" in lines(system)
    assert "c" not in system.modules
    assert system.kernel.deprivileged
    assert not system.is_secure


def test_module_parameters_come_from_the_command_line(three) -> None:
    system = pkvm_emu.boot("16", three[:1], "a.value=42 a.unknown=1 quiet")
    assert "a: value is 42" in lines(system)
    assert any("unknown parameter 'unknown' ignored" in line for line in lines(system))


def test_a_parameter_that_is_refused_fails_the_load(three) -> None:
    system = pkvm_emu.boot("16", three[:2], "a.value=many")
    assert outcomes(system) == [("a", "failed"), ("b", "skipped")]
    assert "a: `many' invalid for parameter `value'" in lines(system)
    assert "a" not in system.modules


# Without protection


@pytest.mark.parametrize("mode", ["nvhe", "none", "nested"])
@GENERATIONS
def test_without_protected_mode_the_el2_half_does_not_load(pkvm_driver, generation: str, mode: str) -> None:
    system = pkvm_emu.boot(modules=[pkvm_driver(generation)], cmdline=f"kvm-arm.mode={mode}")
    assert not system.kernel.protected
    assert not system.is_secure
    assert outcomes(system) == [("pkvm_driver", "failed")]
    assert system.boot_report.outcomes[0].errno == -95
    assert "pkvm_driver: the EL2 half was not loaded: -95" in lines(system)
    assert not any("Failed to load pkvm module" in line for line in lines(system))


def test_without_protected_mode_one_failure_does_not_stop_the_others(three) -> None:
    system = pkvm_emu.boot("16", three, "kvm-arm.mode=nvhe kvm-arm.protected_modules=bad,a")
    assert outcomes(system) == [("bad", "failed"), ("a", "loaded")]


PROTECTED_TEST = """
static int __init plain_init(void) { pr_info("protected: %d\\n", (int)is_protected_kvm_enabled()); return 0; }
module_init(plain_init);
"""


@GENERATIONS
def test_code_that_asks_for_protected_mode_is_patched_by_the_mode(c_module, generation: str) -> None:
    module = c_module(PROTECTED_TEST, None, name="asks", generation=generation)
    protected, plain = (pkvm_emu.boot(generation, [module], cmdline=line) for line in ("", "kvm-arm.mode=nvhe"))
    assert "asks: protected: 1" in lines(protected)
    assert "asks: protected: 0" in lines(plain)
