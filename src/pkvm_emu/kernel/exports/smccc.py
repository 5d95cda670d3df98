"""SMC and HVC calls of code that does not issue them itself (``arch/arm64/kernel/smccc-call.S``, ``drivers/firmware/smccc``)."""

from __future__ import annotations

import struct

from pkvm_emu.arch import smccc
from pkvm_emu.arch.psci import PsciFunction, psci_id
from pkvm_emu.kernel.guest_access import store
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import Ptr

_CONDUIT_SMC = 1
_VERSION_1_0, _VERSION_1_1 = 0x1_0000, 0x1_0001
_QUIRK_QCOM_A6 = 1


def _finish(kernel: Kernel, sp: int, results: tuple[int, ...]) -> None:
    """Store x0..x3 to the ``struct arm_smccc_res`` on the stack, x6 to the quirk behind it where that asks for it."""
    memory = kernel.memory
    store(kernel, memory.read_u64(sp), struct.pack("<4Q", *results[:4]))
    quirk = memory.read_u64(sp + 8)
    if quirk and memory.read_u32(quirk) == _QUIRK_QCOM_A6:
        memory.write_u64(quirk + 8, results[6])


@kernel_symbol("__arm_smccc_hvc", runs_guest=True)
def arm_smccc_hvc(kernel: Kernel, a0: Ptr, a1: Ptr, a2: Ptr, a3: Ptr, a4: Ptr, a5: Ptr, a6: Ptr, a7: Ptr) -> None:
    """An HVC with x0..x7; result and quirk pointers are on the stack."""
    sp = kernel.machine.engine.read("sp")
    _finish(kernel, sp, kernel.hvc(a0, a1, a2, a3, a4, a5, a6, a7))


@kernel_symbol("__arm_smccc_smc", runs_guest=True)
def arm_smccc_smc(kernel: Kernel, a0: Ptr, a1: Ptr, a2: Ptr, a3: Ptr, a4: Ptr, a5: Ptr, a6: Ptr, a7: Ptr) -> None:
    """An SMC with x0..x7."""
    engine, core = kernel.machine.engine, kernel.machine.core
    sp = engine.read("sp")
    outer, core.smc_caller = core.smc_caller, engine.read("x30") - 4
    try:
        results = kernel.smc(a0, a1, a2, a3, a4, a5, a6, a7)
    finally:
        core.smc_caller = outer
    _finish(kernel, sp, results)


@kernel_symbol("__arm_smccc_sve_check")
def arm_smccc_sve_check(kernel: Kernel) -> None:
    """Adds the "no live SVE state" hint to the function id in x0; without SVE, as on this CPU, x0 stays as it is."""


@kernel_symbol("arm_smccc_get_version", runs_guest=True)
def arm_smccc_get_version(kernel: Kernel) -> int:
    """The firmware's SMCCC version; 1.0 where PSCI says that there is no such call (``psci_init_smccc()``)."""
    if kernel.smc(psci_id(PsciFunction.FEATURES), smccc.SMCCC_VERSION)[0] & 0xFFFF_FFFF:
        return _VERSION_1_0
    answer = kernel.smc(smccc.SMCCC_VERSION)[0] & 0xFFFF_FFFF
    return _VERSION_1_0 if answer >> 31 else answer


@kernel_symbol("arm_smccc_1_1_get_conduit", runs_guest=True)
def arm_smccc_1_1_get_conduit(kernel: Kernel) -> int:
    """SMC (1), by which hosts of pKVM reach the firmware; none (0) for firmware before SMCCC 1.1."""
    return _CONDUIT_SMC if arm_smccc_get_version(kernel) >= _VERSION_1_1 else 0
