"""The end of a hypervisor: how EL2 panics, and what is recorded.

Every way to the end is the one of a device: an exception taken from EL2 (or an unexpected one from the host), the panic notifier of
the module, then the report. What Python finds wrong takes the same way, through a real BRK or a real bad access in the firmware.
Source: arch/arm64/kvm/hyp/nvhe/switch.c (hyp_panic), arch/arm64/kvm/handle_exit.c (nvhe_hyp_panic_handler).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.arch.esr import Esr
from pkvm_emu.errors import ModuleError
from pkvm_emu.hyp.backtrace import walk
from pkvm_emu.hyp.errors import HypBug, HypFault, HypUndefined
from pkvm_emu.machine.core import Service
from pkvm_emu.machine.state import State

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

_EC_BRK, _EC_UNKNOWN, _EC_IABT, _EC_DABT, _EC_SHIFT = 0x3C, 0x00, 0x21, 0x25, 26
_BUG_IMM = 0x800
_CFI_BASE, _CFI_MASK = 0x8000, 0x3FF
_EL_SHIFT, _EL2 = 2, 2
_WNR = 1 << 6
_PAGE_SIZE = 4096
_KCFI_WORD_OF_NULL = (1 << 64) - 4


@dataclass(frozen=True, slots=True)
class PanicState:
    """The registers that the panic message shows, and the stack overflow verdict.

    ``cpu`` is the CPU that panicked; ``elr`` is the hyp VA of the instruction at fault; ``sp`` and ``lr`` were EL2's stack
    pointer and x30; ``frames`` is the call trace, innermost first (empty where the host was interrupted).
    """

    cpu: int
    esr: int
    elr: int
    spsr: int
    far: int
    hpfar: int
    par: int
    sp: int
    lr: int
    stack_overflow: bool
    frames: tuple[int, ...] = ()

    @property
    def from_host(self) -> bool:
        """The exception came from the host (``Invalid host exception to nVHE hyp!``)."""
        return self.spsr >> _EL_SHIFT & 3 != 2

    @property
    def exception_class(self) -> int:
        """ESR_EL2.EC."""
        return self.esr >> _EC_SHIFT

    @property
    def is_bug(self) -> bool:
        """A BUG() or WARN() at EL2."""
        return self.exception_class == _EC_BRK and self.esr & 0xFFFF == _BUG_IMM

    @property
    def is_cfi_failure(self) -> bool:
        """A kCFI check at EL2 failed."""
        return self.exception_class == _EC_BRK and self.esr & 0xFFFF & ~_CFI_MASK == _CFI_BASE


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


class Interrupted(NamedTuple):
    """What EL2 was doing when it took an exception from itself, and where the host was.

    Attributes:
        registers: x0..x30, SP, PC of EL2.
        elr: ELR_EL2 before that exception: where the host goes on.
        spsr: SPSR_EL2 before it: the host's PSTATE.
    """

    registers: tuple[int, ...]
    elr: int
    spsr: int


class PanicPath(State):
    """Serves the firmware's panic entries: finds a stack that works, lets the notifier run, reports, ends the run.

    Attributes:
        state: the registers of the panic that is under way, or None.
        reason: why the model began it, or None where module code did.
        interrupted: what the first exception that EL2 took from itself interrupted, for those who look at it afterwards.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.panic")
        self._hyp = hyp
        self._engine = hyp.machine.engine
        self._report: Callable[[PanicState, str], None] = lambda state, message: None
        self.state: PanicState | None = None
        self.reason: str | None = None
        self.interrupted: Interrupted | None = None
        hyp.machine.core.entry.before_nested = self._note_interrupted
        for label, function in (
            ("panic_from_el2", self._enter),
            ("panic_from_host", self._enter),
            ("panic_finish", self._finish),
        ):
            hyp.machine.core.add_service(hyp.entry(label), Service(label, 2, 0, function))

    def set_reporter(self, report: Callable[[PanicState, str], None]) -> None:
        """Install what the host kernel does about a panic: called with the registers and the explanation."""
        self._report = report

    def begin(self, name: str, bug: HypBug) -> int:
        """Begin the panic of something that Python found while it served ``name``.

        Returns:
            Where the CPU has to go on: a BRK, or the access that faults, in the firmware.
        """
        self.reason = bug.reason
        if name.startswith("ops->"):
            caller = self._hyp.machine.core.describe(self._engine.read("x30") - 4, 2)
            self.reason = f"{name}, called by {caller}: {bug.reason}"
        if isinstance(bug, HypUndefined):
            return self._hyp.entry(bug.label)
        if not isinstance(bug, HypFault):
            return self._hyp.entry("hyp_bug")
        self._engine.write("x9", bug.address)
        return self._hyp.entry("hyp_fault_store" if bug.is_write else "hyp_fault_load")

    def _note_interrupted(self) -> None:
        spsr = self._engine.read_sysreg("SPSR_EL2")
        if spsr >> _EL_SHIFT & 3 != _EL2:
            *registers, elr = self._engine.batch(*[f"x{n}" for n in range(31)], "sp", "pc", "elr_el2").read()
            self.interrupted = Interrupted(tuple(registers), elr, spsr)

    def _enter(self) -> int:
        engine, cpu = self._engine, self._hyp.cpu
        if self.state is not None:
            # A panic inside the panic notifier: the first one counts.
            self._finish()
        sp = engine.read("sp")
        self.state = PanicState(
            cpu=cpu.index,
            esr=engine.read("esr_el2"),
            elr=engine.read("elr_el2"),
            spsr=engine.read_sysreg("SPSR_EL2"),
            far=engine.read("far_el2"),
            hpfar=engine.read_sysreg("HPFAR_EL2"),
            par=engine.read_sysreg("PAR_EL1"),
            sp=sp,
            lr=engine.read("x30"),
            stack_overflow=not cpu.stack_base <= sp <= cpu.stack_top,
            frames=self._call_trace(),
        )
        if not self.reason:
            self.reason = self._explain_registers(self.state)
        engine.write("sp", cpu.overflow_top)
        return cpu.context_va

    def _call_trace(self) -> tuple[int, ...]:
        engine = self._engine
        if engine.read_sysreg("SPSR_EL2") >> _EL_SHIFT & 3 != 2:
            return ()
        return walk(self._hyp, engine.read("elr_el2"), engine.read("x29"), engine.read("x30"))

    def _finish(self) -> None:
        state, reason = self.state, self.reason
        assert state is not None
        self.state = self.reason = None
        # Where there is one CPU only, its number says nothing.
        on_cpu = f" on CPU {state.cpu}" if len(self._hyp.machine.cpus) > 1 else ""
        message = f"{self._heading(state)}{on_cpu}: {reason}"
        self._report(state, message)
        raise HypPanic(message, state, reason)

    @staticmethod
    def _heading(state: PanicState) -> str:
        if state.from_host:
            return "Invalid host exception to nVHE hyp"
        if state.stack_overflow:
            return "EL2 stack overflow"
        if state.is_bug:
            return "hypervisor BUG"
        return "kCFI failure at EL2" if state.is_cfi_failure else "hypervisor panic"

    def _explain_registers(self, state: PanicState) -> str:
        """What module code did, by the exception that it took."""
        describe = self._hyp.machine.core.describe
        where = describe(state.elr, 2)
        if state.from_host:
            return f"{describe(state.elr, 1)} took an exception that is no synchronous one (ESR_EL2 {state.esr:#x})"
        if state.stack_overflow:
            return f"{where} with SP {state.sp:#x}, below the {self._hyp.cpu.stack_base:#x} of this CPU's stack"
        if state.is_bug:
            return f"BUG() or WARN() at {where}"
        if state.is_cfi_failure:
            register = state.esr & 0x1F
            function = self._engine.read(f"x{register}") if register < 31 else 0
            return f"{where} calls {describe(function, 2)} as a function of another type"
        if state.exception_class == _EC_UNKNOWN:
            return f"undefined instruction at {where}"
        if state.exception_class == _EC_IABT:
            slot = self._hyp.ops.missing_call(state.lr - 4) if state.elr < _PAGE_SIZE else None
            target = slot or f"{describe(state.elr, 2)}, which is not executable at EL2"
            return f"{describe(state.lr - 4, 2)} calls {target}"
        if state.exception_class == _EC_DABT:
            return f"{where} {self._access(state)}"
        return f"{where}: ESR_EL2 {Esr(state.esr).describe()}"

    def _access(self, state: PanicState) -> str:
        verb = "writes" if state.esr & _WNR else "reads"
        address, hyp = state.far, self._hyp
        text = f"{verb} {address:#x}"
        if address == _KCFI_WORD_OF_NULL:
            return f"calls {hyp.ops.missing_call(state.elr) or 'a NULL function pointer'} ({text}: its kCFI word)"
        if address < _PAGE_SIZE:
            return f"{text}: a NULL pointer"
        leaf = hyp.stage1.leaf(address)
        if leaf is not None and leaf.valid:
            return f"{text}, which EL2 maps without that permission"
        pa = hyp.stage1.pa_of(address)
        if pa in hyp.machine.ram:
            page = str(hyp.ownership.page(pa)).splitlines()[0]
            return f"{text}, the linear address of a page that EL2 does not map: {page}"
        return f"{text}, which EL2 does not map"
