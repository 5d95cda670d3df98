"""Exception entry as the architecture defines it, for the synchronous and asynchronous exceptions to EL1 and EL2.

Unicorn reports an exception and leaves the entry to us. :class:`ExceptionEntry` writes, in the order that the engine
needs, ELR, ESR, FAR, the banked stack pointers, PSTATE, SPSR and PC (Arm ARM D1.3, ``AArch64.TakeException``).
HPFAR_EL2 is already set by the engine for stage-2 faults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pkvm_emu.machine.engine import INTNO_DABT, INTNO_PABT, Engine
from pkvm_emu.machine.registers import RegisterBatch

EC_SHIFT = 26
EC_PAC_TRAP = 0x09
EC_BTI = 0x0D
EC_DATA_ABORT_SAME_EL = 0x25
_IL = 1 << 25
_ISS_VALID_FIELDS = 0x01FFC000
_PSTATE_PAN = 1 << 22
_PSTATE_DAIF_MASKED = 0x3C0
_SPAN = 1 << 23
_VECTOR_SAME_SP0, _VECTOR_SAME_SPX, _VECTOR_LOWER = 0x000, 0x200, 0x400
VECTOR_SYNC, VECTOR_IRQ, VECTOR_FIQ, VECTOR_SERROR = 0x000, 0x080, 0x100, 0x180


class Taken(NamedTuple):
    """One exception that was taken, as the trace shows it."""

    source_el: int
    target_el: int
    syndrome: int
    fault_va: int
    pc: int


class ExceptionEntry:
    """Writes the state of an exception entry into the engine.

    The batches are made once: taking an exception allocates nothing but a few Python integers.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._now = engine.batch(
            "pc", "pstate", "sp", "sp_el1", "sp_el2", "vbar_el1", "vbar_el2", "far_el1", "far_el2", "sp_el0"
        )
        self._entry: dict[int, tuple[RegisterBatch, ...]] = {
            el: tuple(
                engine.batch(
                    f"elr_el{el}", f"esr_el{el}", f"far_el{el}", f"sp_el{old}", "sp", "pstate", f"SPSR_EL{el}", "pc"
                )
                for old in (0, 1, 2)
            )
            for el in (1, 2)
        }
        #: SCTLR_ELx.SPAN == 0 makes an entry to EL1 set PSTATE.PAN; kept current by the machine's set-up.
        self.sets_pan = {1: False, 2: False}
        #: Called before EL2 takes an exception from itself, which overwrites where it came from.
        self.before_nested: Callable[[], None] = lambda: None

    def take(self, target_el: int, intno: int, syndrome: int, fault_va: int, vector: int = VECTOR_SYNC) -> Taken:
        """Enter ``target_el`` (1 or 2).

        Args:
            target_el: exception level that takes the exception.
            intno: the engine's number of the exception; aborts set FAR, others leave it.
            syndrome: ESR value; corrected where the engine leaves fields that the architecture has as zero.
            fault_va: FAR value for aborts.
            vector: offset of the kind within a vector group (sync, IRQ, FIQ, SError).
        """
        now = self._now.read()
        pc, pstate = now[0], now[1] & 0xFFFFFFFF
        source_el = pstate >> 2 & 3
        ec = syndrome >> EC_SHIFT
        if ec == EC_DATA_ABORT_SAME_EL and target_el == 2:
            syndrome &= ~_ISS_VALID_FIELDS
        elif ec == EC_BTI:
            syndrome |= _IL
        if source_el == 2:
            self.before_nested()
        if source_el < target_el:
            vector += _VECTOR_LOWER
        elif pstate & 1:
            vector += _VECTOR_SAME_SPX
        banked = source_el if pstate & 1 else 0
        entry = self._entry[target_el][banked]
        values = entry.values
        values[0] = pc
        values[1] = syndrome
        values[2] = fault_va if intno in (INTNO_PABT, INTNO_DABT) else now[6 + target_el]
        values[3] = now[2]
        values[4] = now[2] if banked == target_el else now[2 + target_el]
        values[5] = (
            _PSTATE_DAIF_MASKED
            | target_el << 2
            | 1
            | (_PSTATE_PAN if self.sets_pan[target_el] else pstate & _PSTATE_PAN)
        )
        # Reaching SPSR through its encoding is what makes the engine derive its flags from the new PSTATE.
        entry.cp[6].val = pstate
        values[7] = now[4 + target_el] + vector
        entry.write()
        return Taken(source_el, target_el, syndrome, fault_va, pc)
