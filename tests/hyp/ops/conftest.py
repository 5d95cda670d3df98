"""The op caller, booted anew for every test."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ops_caller import EL2, Caller, start

from pkvm_emu.machine.profile import MachineProfile


@pytest.fixture
def caller(c_module) -> Callable[..., Caller]:
    """``caller(generation, profile=None, deprivilege=True)``."""

    def run(generation: str = "16", profile: MachineProfile | None = None, deprivilege: bool = True) -> Caller:
        return start(c_module(el2=EL2, generation=generation), generation, profile, deprivilege)

    return run
