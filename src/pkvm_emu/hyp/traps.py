"""What the EL2 firmware asks Python while it handles a trap of the host: hypercalls, SMCs, memory aborts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pkvm_emu.arch.esr import Esr
from pkvm_emu.arch.psci import is_psci
from pkvm_emu.arch.smccc import SMCCC_RET_NOT_SUPPORTED, SMCCC_RET_SUCCESS
from pkvm_emu.hyp import registry
from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.refusals import Refusals
from pkvm_emu.hyp.registry import GuestCall, WithStatus
from pkvm_emu.machine.calling import bind

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

_HCALL_BASE = 0xC600_0000
_EPERM, _EAGAIN = 1, 11
_RETRY, _ASK_HANDLERS, _INJECT = 0, 1, 2
_FSC_TYPE_MASK, _FSC_PERMISSION, _FSC_TRANSLATION = 0x3C, 0x0C, 0x04
_PAGE_MASK = 0xFFF
_ESR_EC_SHIFT, _ESR_S1PTW = 26, 1 << 7
_EC_FROM_LOWER_TO_CURRENT = {0x20: 0x21, 0x24: 0x25}
_MODE_MASK, _MODE_EL0, _MODE_EL1T, _MODE_EL1H = 0x1F, 0x00, 0x04, 0x05
_PSTATE_EL1H_MASKED = 0x3C5
_IN_HOST_VECTOR = {_MODE_EL1T: 0x000, _MODE_EL1H: 0x200, _MODE_EL0: 0x400}
_VECTOR_EL0_32 = 0x600
_SMCCC_HINT = 1 << 16


class Traps:
    """Services behind the firmware's ``op_*`` labels.

    Args:
        hyp: the hypervisor.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        self._hyp = hyp
        self._engine = hyp.machine.engine
        by_number = {number: name for name, number in hyp.generation.hypercalls.items()}
        self._hypercalls: dict[int, tuple[int, Any]] = {}
        self._guest_running: set[int] = set()
        self._failing: dict[int, Callable[[], int | None]] = {}
        for number, name in by_number.items():
            served = registry.HYPERCALLS.get(name)
            if served is not None:
                self._hypercalls[number] = bind(served.function, hyp)
                if served.runs_guest:
                    self._guest_running.add(number)
        self._names = by_number
        self._last_gated = hyp.generation.hypercalls["prot_finalize"]
        watch = hyp.part(Refusals).watch
        host_hcall = watch("op_host_hcall", self.host_hcall)
        hyp.add_firmware_service("op_host_hcall", host_hcall, 1, self._calls_module)
        hyp.add_firmware_service("op_host_hcall_result", self.host_hcall_result, 1)
        hyp.add_firmware_service("op_host_smc", self.host_smc, 1)
        hyp.add_firmware_service("op_host_mem_abort", self.host_mem_abort, 1)
        hyp.add_firmware_service("op_perm_result", self.perm_result, 1)
        hyp.add_firmware_service("op_inject_abort", watch("op_inject_abort", self.inject_abort), 1)
        hyp.add_firmware_service("op_unhandled_trap", self.unhandled_trap, 1)

    def name_of(self, number: int) -> str | None:
        """The hypercall with a number (without 0xC6000000)."""
        return self._names.get(number)

    def let_fail(self, name: str, fails: Callable[[], int | None] | None) -> None:
        """Ask ``fails`` before each hypercall ``name``: what it answers (not None) becomes x1. None: ask nobody any more."""
        number = self._hyp.generation.hypercalls[name]
        self._failing.pop(number, None)
        if fails is not None:
            self._failing[number] = fails

    def unhandled_trap(self, _context: int) -> None:
        """A trap of the host that nobody wants: a BUG."""
        esr = Esr(self._engine.read("esr_el2"))
        where = self._hyp.machine.core.describe(self._engine.read("elr_el2"), 1)
        handler = "the default trap handler returned false" if self._hyp.read_word("default_trap_fn") else "no handler"
        raise HypBug(f"trap of the host at {where} ({esr.describe()}): {handler}")

    # Hypercalls

    def _calls_module(self, _context: int) -> bool:
        return (self._hyp.host_context[0] & ~_SMCCC_HINT) - _HCALL_BASE in self._guest_running

    def host_hcall(self, _context: int) -> tuple[int, ...]:
        """A hypercall of the hypervisor's own. x0 of the answer: module function to call first, or 0; x1 its argument."""
        hyp, regs = self._hyp, self._hyp.host_context
        number = (regs[0] & ~_SMCCC_HINT) - _HCALL_BASE
        entry = self._hypercalls.get(number)
        # Closed at deprivilege: everything up to prot_finalize, which other CPUs may still call.
        if entry is None or (hyp.finalised and number < self._last_gated):
            regs[0] = SMCCC_RET_NOT_SUPPORTED
            return (0, 0)
        fails = self._failing.get(number)
        answer = fails() if fails is not None else None
        if answer is not None:
            regs[0], regs[1] = SMCCC_RET_SUCCESS, answer
            return (0, 0)
        nargs, call = entry
        result = call(*[regs[1 + index] for index in range(nargs)])
        if isinstance(result, GuestCall):
            return result.function, result.argument
        regs[0] = SMCCC_RET_SUCCESS
        if isinstance(result, WithStatus):
            regs[0], result = result
        if isinstance(result, tuple):
            for index, value in enumerate(result):
                regs[1 + index] = value
        elif result is not None:
            regs[1] = result
        return (0, 0)

    def host_hcall_result(self, result: int) -> None:
        """The module function that a hypercall asked for has returned (an int)."""
        regs = self._hyp.host_context
        regs[0] = SMCCC_RET_SUCCESS
        result &= 0xFFFF_FFFF
        regs[1] = result - (1 << 32) if result >> 31 else result

    # SMCs

    def host_smc(self, _context: int) -> int | tuple[int, ...]:
        """Whether the module's handlers are asked (1), FF-A or PSCI answered already (0), or PSCI wants EL3 (2 and more)."""
        regs = self._hyp.host_context
        function = regs[0] & 0xFFFF_FFFF & ~_SMCCC_HINT
        if is_psci(function):
            return self._hyp.psci.relay(function, regs)
        if self._hyp.ffa.owns(function):
            return self._hyp.ffa.relay(function, regs)
        return 1

    # Memory aborts

    def host_mem_abort(self, _context: int) -> tuple[int, int]:
        """A stage-2 abort of the host: ``(what to do, faulting IPA)``."""
        engine = self._engine
        esr = engine.read("esr_el2")
        hpfar = engine.read_sysreg("HPFAR_EL2")
        ipa = (hpfar >> 4) << 12 | engine.read("far_el2") & _PAGE_MASK
        fault = esr & _FSC_TYPE_MASK
        is_permission = fault == _FSC_PERMISSION
        other_fault = not is_permission and fault != _FSC_TRANSLATION
        if other_fault and not self._hyp.generation.faults.other_faults_try_idmap:
            return _INJECT, ipa
        result = self._hyp.ownership.host_mem_abort(ipa, is_permission)
        if result in (0, -_EAGAIN):
            return _RETRY, ipa
        return (_ASK_HANDLERS if is_permission else _INJECT), ipa

    def perm_result(self, result: int) -> int:
        """What the permission-fault handlers decided: 0 retry, 2 inject."""
        value = result if result < 1 << 63 else result - (1 << 64)
        if value == 0:
            return _RETRY
        if value == -_EPERM or self._hyp.generation.faults.perm_fault_chain == "first-zero":
            return _INJECT
        if value == -_EAGAIN:
            return _RETRY
        raise HypBug(f"a permission-fault handler returned {value}: only 0, -EPERM and -EAGAIN have a meaning")

    def inject_abort(self, _context: int) -> None:
        """Give the host the abort as its own, marked with S1PTW (``host_inject_abort``)."""
        engine = self._engine
        esr, spsr = engine.read("esr_el2"), engine.read_sysreg("SPSR_EL2")
        mode = spsr & _MODE_MASK
        exception_class = esr >> _ESR_EC_SHIFT
        if mode in (_MODE_EL1T, _MODE_EL1H):
            exception_class = _EC_FROM_LOWER_TO_CURRENT.get(exception_class, exception_class)
        esr = esr & (1 << _ESR_EC_SHIFT) - 1 | exception_class << _ESR_EC_SHIFT | _ESR_S1PTW
        engine.write("esr_el1", esr)
        engine.write("far_el1", engine.read("far_el2"))
        engine.write("elr_el1", engine.read("elr_el2"))
        engine.write_sysreg("SPSR_EL1", spsr)
        engine.write("elr_el2", engine.read("vbar_el1") + _IN_HOST_VECTOR.get(mode, _VECTOR_EL0_32))
        engine.write_sysreg("SPSR_EL2", _PSTATE_EL1H_MASKED)
