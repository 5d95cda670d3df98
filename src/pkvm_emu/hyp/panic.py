"""The end of a hypervisor: what is recorded when EL2 panics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pkvm_emu.errors import ModuleError

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

_EC_BRK, _EC_SHIFT = 0x3C, 26
_BUG_IMM = 0x800
_CFI_BASE, _CFI_MASK = 0x8000, 0x3FF
_MODE_EL2H, _MODE_MASK = 0x9, 0x1F
_EL_SHIFT = 2


@dataclass(frozen=True, slots=True)
class PanicState:
    """The registers that the panic message shows, and the stack overflow verdict.

    ``elr`` is the hyp VA of the instruction at fault; ``sp`` was EL2's stack pointer.
    """

    esr: int
    elr: int
    spsr: int
    far: int
    hpfar: int
    par: int
    sp: int
    stack_overflow: bool

    @property
    def from_host(self) -> bool:
        """The exception came from the host (``Invalid host exception to nVHE hyp!``)."""
        return self.spsr >> _EL_SHIFT & 3 != 2

    @property
    def is_bug(self) -> bool:
        """A BUG() or WARN() at EL2."""
        return self.esr >> _EC_SHIFT == _EC_BRK and self.esr & 0xFFFF == _BUG_IMM

    @property
    def is_cfi_failure(self) -> bool:
        """A kCFI check at EL2 failed."""
        return self.esr >> _EC_SHIFT == _EC_BRK and self.esr & 0xFFFF & ~_CFI_MASK == _CFI_BASE


class HypPanic(ModuleError):
    """The hypervisor panicked, and the machine with it.

    Attributes:
        state: registers at that moment.
        reason: what was violated, where the model knows more than the registers say.
    """

    def __init__(self, message: str, state: PanicState, reason: str | None = None) -> None:
        super().__init__(message)
        self.state = state
        self.reason = reason


class PanicPath:
    """Serves the firmware's panic entries: finds a stack that works, lets the notifier run, ends the run."""

    def __init__(self, hyp: Hypervisor) -> None:
        self._hyp = hyp
        self._engine = hyp.machine.engine
        self._state: PanicState | None = None
        hyp.add_firmware_service("panic_from_el2", self._enter, 0)
        hyp.add_firmware_service("panic_from_host", self._enter, 0)
        hyp.add_firmware_service("panic_finish", self._finish, 0)

    def _enter(self) -> int:
        engine, cpu = self._engine, self._hyp.cpu
        if self._state is not None:
            # A panic inside the panic notifier: the first one counts.
            self._finish()
        sp = engine.read("sp")
        overflow = not cpu.stack_base <= sp <= cpu.stack_top
        self._state = PanicState(
            esr=engine.read("esr_el2"),
            elr=engine.read("elr_el2"),
            spsr=engine.read_sysreg("SPSR_EL2"),
            far=engine.read("far_el2"),
            hpfar=engine.read_sysreg("HPFAR_EL2"),
            par=engine.read_sysreg("PAR_EL1"),
            sp=sp,
            stack_overflow=overflow,
        )
        engine.write("sp", cpu.overflow_top)
        return cpu.context_va

    def _finish(self) -> None:
        state, self._state = self._state, None
        assert state is not None
        raise HypPanic(self._message(state), state)

    def _message(self, state: PanicState) -> str:
        where = self._hyp.machine.core.describe(state.elr, 2)
        if state.from_host:
            return f"Invalid host exception to nVHE hyp! (ESR_EL2 {state.esr:#x})"
        if state.stack_overflow:
            return f"EL2 stack overflow at {where} (SP {state.sp:#x})"
        if state.is_bug:
            return f"hypervisor BUG at {where}"
        if state.is_cfi_failure:
            register = state.esr & 0x1F
            target = self._engine.read(f"x{register}") if register < 31 else 0
            return f"kCFI failure at EL2: {where} calls {self._hyp.machine.core.describe(target, 2)} as a function of another type"
        return f"hypervisor panic at {where}: ESR_EL2 {state.esr:#x}, FAR_EL2 {state.far:#x}"
