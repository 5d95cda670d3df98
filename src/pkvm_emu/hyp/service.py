"""Python behind the stubs of EL2: what happens when it finds a BUG, and when it has to call module code."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.machine.core import Service, ServiceResult

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor


def el2_service(
    hyp: Hypervisor,
    name: str,
    nargs: int,
    call: Callable[..., ServiceResult],
    runs_guest: bool | Callable[..., bool] = False,
) -> Service:
    """A service at EL2 whose :class:`HypBug` is a panic of the emulated hypervisor.

    Args:
        hyp: the hypervisor.
        name: for traces and messages.
        nargs: how many of x0..x7 ``call`` takes.
        call: the Python.
        runs_guest: it calls module code, so it is performed by the run loop; or a function of the registers that says so.
            The others are too as long as an IOMMU driver follows the host's stage-2: any of them may have to tell it.
    """
    core = hyp.machine.core

    def in_loop(*registers: int) -> ServiceResult:
        try:
            return call(*registers)
        except HypBug as bug:
            core.run(hyp.panic.begin(name, bug))
            raise

    later = Service(name, 2, nargs, in_loop, in_hook=False)
    if runs_guest is True:
        return later
    leaves = runs_guest or (lambda *registers: False)

    def in_hook(*registers: int) -> ServiceResult:
        if hyp.tells_modules or leaves(*registers):
            core.leave_hook(later)
            return None
        try:
            return call(*registers)
        except HypBug as bug:
            hyp.machine.engine.write("pc", hyp.panic.begin(name, bug))
            return None

    return Service(name, 2, nargs, in_hook)
