"""A window of addresses in which a debugger finds what no guest memory holds but unwinding needs.

The firmware does not save where the host was when it entered EL2: ELR_EL2 and SP_EL1 hold it. And where Python stands between two
pieces of guest code (a kernel function that makes a hypercall), the caller's return address is in Python alone. DWARF
unwind rules can read memory only, so these values are served as memory, at addresses that neither level can map:

* ``EXCEPTION + host context``: SP and then PC of EL1 at the exception that the CPU with this host context is in;
* ``EXCEPTION``: the same for the CPU on the engine; ``EXCEPTION + 16``: those of an exception that EL1 took from itself;
* ``PANIC + 8 * n``: x0..x30, SP and PC of what a panic interrupted: EL2 where it took an exception from itself, else the host;
* ``CALLER + sp`` (its low 51 bits): return address, then PC, of the guest code that was in a service when Python called guest
  code with this SP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pkvm_emu.debug.control import RunControl
    from pkvm_emu.system import System

#: Neither the lower half (up to 2^48, 2^52 with LPA2) nor the upper one reaches here.
EXCEPTION = 0x00F0_0000_0000_0000
CALLER = 0x00F8_0000_0000_0000
OFFSET_MASK = (1 << 51) - 1
#: No host context lies so low.
PANIC = EXCEPTION + 0x200
PANIC_SP, PANIC_PC = PANIC + 8 * 31, PANIC + 8 * 32
_PANIC_END = PANIC_PC + 8
_END = 0x0100_0000_0000_0000


class Window:
    """Answers reads of the window.

    Args:
        system: whose CPUs.
        control: knows which calls from Python are under way.
    """

    def __init__(self, system: System, control: RunControl) -> None:
        self._system = system
        self._control = control

    def covers(self, va: int) -> bool:
        """Whether an address belongs to the window."""
        return EXCEPTION <= va < _END

    def read(self, va: int, size: int) -> bytes:
        """``size`` bytes at most; words that nothing is known about are 0."""
        base, first = va & ~7, va & 7
        data = b"".join(self._word(base + offset).to_bytes(8, "little") for offset in range(0, first + size + 7, 8))
        return data[first : first + min(size, 64)]

    def _word(self, va: int) -> int:
        offset = va & OFFSET_MASK
        if va >= CALLER:
            return self._caller(offset)
        if PANIC <= va < _PANIC_END:
            return self._panicked((va - PANIC) >> 3)
        if offset < 32:
            return self._exception(self._system.machine.current.index, 2 if offset < 16 else 1, offset >> 3 & 1)
        for cpu in self._system.machine.power.running:
            if offset & ~15 == self._system.hyp.cpu_memory(cpu).context_va & OFFSET_MASK:
                return self._exception(cpu, 2, offset >> 3 & 1)
        return 0

    def _exception(self, cpu: int, target: int, word: int) -> int:
        """SP (word 0) or PC (word 1) of EL1 before the exception to ``target``."""
        machine = self._system.machine
        with machine.on_cpu(cpu):
            engine = machine.engine
            spsr, elr = engine.read_sysreg(f"SPSR_EL{target}"), engine.read(f"elr_el{target}")
            if spsr >> 2 & 3 >= 2:
                interrupted = self._system.hyp.panic.interrupted
                if interrupted is None:
                    return 0
                # EL2 has interrupted itself: this is what the registers held before.
                spsr, elr = interrupted.spsr, interrupted.elr
            if word:
                return elr
            uses_sp_el1 = spsr & 1 and spsr >> 2 & 3 == 1
            if target == 1 and uses_sp_el1:
                return engine.read("sp")
            return engine.read("sp_el1" if uses_sp_el1 else "sp_el0")

    def _panicked(self, word: int) -> int:
        """x0..x30, SP (31) or PC (32) of what a panic interrupted."""
        machine = self._system.machine
        interrupted = self._system.hyp.panic.interrupted
        if machine.engine.read_sysreg("SPSR_EL2") >> 2 & 3 >= 2:
            return 0 if interrupted is None else interrupted.registers[word]
        if word >= 31:
            return self._exception(machine.current.index, 2, word - 31)
        return machine.engine.read(f"x{word}")

    def _caller(self, offset: int) -> int:
        for _, registers in reversed(self._control.callers):
            if registers[31] & OFFSET_MASK == offset & ~15:
                return registers[33 if offset & 8 else 30]
        # Nothing in the guest waits for this call: what called it is Python itself.
        system = self._system
        entry = system.kernel.entry if offset >> 50 & 1 else system.hyp.entry
        return entry("return_to_python") + 8 if offset & 8 else 0
