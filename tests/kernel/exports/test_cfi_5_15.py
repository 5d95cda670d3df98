"""Indirect calls of 5.15 builds across modules: what is a function passes, what is not stops the kernel."""

from __future__ import annotations

import pytest
from exports_host import Host

import pkvm_emu
from pkvm_emu.kernel.faults import KernelOops


@pytest.fixture(scope="module")
def old_host() -> Host:
    return Host(pkvm_emu.boot("android14-5.15"))


def test_a_function_of_the_kernel_passes(old_host: Host) -> None:
    old_host.call("__cfi_slowpath_diag", 1, old_host.kernel.symbols.resolve("kfree"), 0)


def test_an_address_that_is_no_function_is_a_failure(old_host: Host) -> None:
    with pytest.raises(KernelOops, match="CFI failure"):
        old_host.call("__cfi_slowpath_diag", 1, 0xFFFF_FF80_0000_1000, 0)
    assert "Kernel panic - not syncing: CFI failure" in old_host.log
