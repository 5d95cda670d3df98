"""The backtrace of a CPU by frame records, across the exception from EL2 to EL1 and through Python.

Debuggers unwind by the CFI of the ELF files that they are given; this is for views of our own. Source: AAPCS64,
"The Frame Pointer" (x29 points at the previous x29 and the return address).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pkvm_emu.debug.debugger import Debugger

_MOST_FRAMES = 64
_RECORD = 16
_X29, _X30, _SP, _PC = 29, 30, 31, 33
_EL2 = 2


class Frame(NamedTuple):
    """One frame.

    Attributes:
        el: exception level.
        pc: the next instruction there; for callers, the return address.
        sp: the stack pointer where it is known (the innermost frame of a level), or None.
        is_call: ``pc`` is a return address.
    """

    el: int
    pc: int
    sp: int | None = None
    is_call: bool = False

    @property
    def place(self) -> int:
        """The instruction that stands for the frame: the call, or the one that is next."""
        return self.pc - 4 if self.is_call else self.pc


class _Registers(NamedTuple):
    el: int
    pc: int
    fp: int
    lr: int
    sp: int


def backtrace(debugger: Debugger, cpu: int) -> list[Frame]:
    """The frames of a CPU, innermost first."""
    return _Walk(debugger, cpu).frames


class _Walk:
    def __init__(self, debugger: Debugger, cpu: int) -> None:
        self._debugger = debugger
        self._cpu = cpu
        self._system = debugger.system
        self.frames: list[Frame] = []
        self._callers = [registers for index, registers in debugger.control.callers if index == cpu]
        pc, fp, lr, sp, pstate = (debugger.registers.read(cpu, name) for name in ("pc", "x29", "x30", "sp", "cpsr"))
        start = _Registers(pstate >> 2 & 3, pc, fp, lr, sp)
        at: _Registers | None = start
        if self._is_panicking(start.el, pc):
            # The panic's own code has no frame: what it interrupted comes next.
            self.frames.append(Frame(2, pc, sp))
            at = self._interrupted()
        while at is not None and len(self.frames) < _MOST_FRAMES:
            at = self._level(at)

    def _is_panicking(self, el: int, pc: int) -> bool:
        hyp = self._system.hyp
        return el == _EL2 and hyp.entry("panic_common") <= pc < hyp.entry("hyp_fault_load")

    def _interrupted(self) -> _Registers | None:
        """What the panic interrupted: EL2, or the host where that made no call."""
        interrupted = self._system.hyp.panic.interrupted
        if self._debugger.registers.read(self._cpu, "SPSR_EL2") >> 2 & 3 != _EL2:
            read = self._debugger.registers.read
            fp, lr = (read(self._cpu, name) for name in ("x29", "x30"))
            return self._host(fp, lr)
        if interrupted is None:
            return None
        values = interrupted.registers
        return _Registers(_EL2, values[32], values[_X29], values[_X30], values[31])

    def _level(self, at: _Registers) -> _Registers | None:
        """The frames of one stretch of calls; where the next one begins."""
        regime = 2 if at.el == 2 else 1
        exit_stub = self._system.machine.core.exit_stubs.get(at.el)
        self.frames.append(Frame(at.el, at.pc, at.sp))
        returns = self._returns(at, regime)
        for address in returns:
            if address == exit_stub:
                return self._through_python(at.el)
            self.frames.append(Frame(at.el, address, is_call=True))
            if len(self.frames) >= _MOST_FRAMES:
                return None
        return self._before_exception(at) if at.el == 2 else None

    def _returns(self, at: _Registers, regime: int) -> list[int]:
        found: list[int] = []
        fp = at.fp
        while len(found) < _MOST_FRAMES:
            # A frame record lies on a stack, which is aligned; the firmware keeps the host context in x29 at the end.
            if fp & 15 or (regime == 2 and fp == self._context):
                break
            record = self._read(fp, _RECORD, regime)
            if len(record) < _RECORD:
                break
            above, address = (int.from_bytes(record[n : n + 8], "little") for n in (0, 8))
            address = self._strip(address, regime)
            if not address:
                break
            found.append(address)
            if above <= fp:
                break
            fp = above
        leaf = self._strip(at.lr, regime)
        # A link register that points into the same function is what the last call from there left behind.
        if (
            leaf
            and leaf not in found
            and self._is_code(leaf, regime)
            and self._function(leaf - 4) != self._function(at.pc)
        ):
            found.insert(0, leaf)
        return found

    def _through_python(self, el: int) -> _Registers | None:
        """Python made the call: what it interrupted, if that was guest code."""
        registers = self._callers.pop() if self._callers else None
        if registers is None or not any(registers):
            return None
        pc = registers[_PC]
        level = 2 if self._debugger.memory.walk_hits(pc, 2) else 1
        return _Registers(level, pc, registers[_X29], registers[_X30], registers[_SP])

    def _before_exception(self, at: _Registers) -> _Registers | None:
        """Where EL1 was when it took the exception to EL2."""
        hyp = self._system.hyp
        if hyp.entry("hyp_vectors") <= at.pc < hyp.entry("host_exit") + (0x4C):
            fp, lr = at.fp, at.lr
        else:
            saved = self._read(self._context + 8 * _X29, _RECORD, 2)
            if len(saved) < _RECORD:
                return None
            fp, lr = (int.from_bytes(saved[n : n + 8], "little") for n in (0, 8))
        return self._host(fp, lr)

    def _host(self, fp: int, lr: int) -> _Registers | None:
        """The host at its exception, with two of its registers."""
        read = self._debugger.registers.read
        spsr, elr = read(self._cpu, "SPSR_EL2"), read(self._cpu, "ELR_EL2")
        if spsr >> 2 & 3 >= _EL2:
            interrupted = self._system.hyp.panic.interrupted
            if interrupted is None:
                return None
            # EL2 has interrupted itself: this is what the registers held before.
            spsr, elr = interrupted.spsr, interrupted.elr
        bank = "SP_EL1" if spsr & 1 else "SP_EL0"
        return _Registers(spsr >> 2 & 3, elr, fp, lr, read(self._cpu, bank))

    @property
    def _context(self) -> int:
        return self._system.hyp.cpu_memory(self._cpu).context_va

    def _read(self, va: int, size: int, regime: int) -> bytes:
        memory = self._debugger.memory
        before, memory.level = memory.level, regime
        try:
            return memory.read(va, size)
        finally:
            memory.level = before

    def _is_code(self, va: int, regime: int) -> bool:
        return self._debugger.memory.walk_hits(va, regime)

    def _function(self, va: int) -> str:
        return self._system.symbols.describe(va, 2 if self._is_code(va, 2) else 1).partition("+")[0]

    def _strip(self, va: int, regime: int) -> int:
        """An address without the signature of pointer authentication."""
        mask = self._debugger.registers.read(self._cpu, "pauth_cmask_high" if regime == 1 else "pauth_cmask")
        return va | mask if regime == 1 and va >> 55 & 1 else va & ~mask
