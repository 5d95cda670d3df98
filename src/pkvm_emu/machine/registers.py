"""Registers by name: how the engine calls them, and batches of them that are read or written by one foreign call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unicorn import arm64_const as uc_arm64
from unicorn.unicorn_py3.unicorn import uclib

from pkvm_emu.arch.sysreg import sysreg

if TYPE_CHECKING:
    from pkvm_emu.machine.engine import Engine

#: General and special registers; system registers go by their encoding.
NATIVE = {
    **{f"x{n}": getattr(uc_arm64, f"UC_ARM64_REG_X{n}") for n in range(31)},
    "sp": uc_arm64.UC_ARM64_REG_SP,
    "pc": uc_arm64.UC_ARM64_REG_PC,
    "pstate": uc_arm64.UC_ARM64_REG_PSTATE,
    "nzcv": uc_arm64.UC_ARM64_REG_NZCV,
    "fpcr": uc_arm64.UC_ARM64_REG_FPCR,
    "fpsr": uc_arm64.UC_ARM64_REG_FPSR,
    **{f"sp_el{n}": getattr(uc_arm64, f"UC_ARM64_REG_SP_EL{n}") for n in range(4)},
    **{
        f"{kind}_el{n}": getattr(uc_arm64, f"UC_ARM64_REG_{kind.upper()}_EL{n}")
        for kind in ("elr", "esr", "far", "vbar")
        for n in (1, 2)
    },
}


class CpReg(ctypes.Structure):
    """A system register by its encoding, and its value."""

    _fields_ = [(n, ctypes.c_uint32) for n in ("crn", "crm", "op0", "op1", "op2")] + [("val", ctypes.c_uint64)]


class RegisterBatch:
    """A fixed list of registers that is read or written by one call; the order of names is the order of writes.

    Args:
        engine: whose registers.
        names: lower-case names for general and special registers (``x0``, ``sp``, ``elr_el2``), upper-case Arm names
            for system registers reached by encoding (``SPSR_EL2``).
    """

    __slots__ = ("_count", "_handle", "_ids", "_pointers", "cp", "values")

    def __init__(self, engine: Engine, names: Sequence[str]) -> None:
        count = len(names)
        self._handle = engine.handle
        self._count = count
        self.values = (ctypes.c_uint64 * count)()
        self.cp: dict[int, CpReg] = {}
        self._ids = (ctypes.c_int * count)()
        self._pointers = (ctypes.c_void_p * count)()
        base = ctypes.addressof(self.values)
        for index, name in enumerate(names):
            native = NATIVE.get(name)
            if native is not None:
                self._ids[index] = native
                self._pointers[index] = base + 8 * index
            else:
                crn, crm, op0, op1, op2 = sysreg(name).key
                cell = CpReg(crn, crm, op0, op1, op2, 0)
                self.cp[index] = cell
                self._ids[index] = uc_arm64.UC_ARM64_REG_CP_REG
                self._pointers[index] = ctypes.addressof(cell)

    def read(self) -> Any:
        """Read all registers; the returned array is the batch's own and holds until the next call."""
        uclib.uc_reg_read_batch(self._handle, self._ids, self._pointers, self._count)
        return self.values

    def snapshot(self) -> tuple[int, ...]:
        """Read all registers and return them as plain integers."""
        values = self.read()
        return tuple(int(self.cp[i].val) if i in self.cp else int(values[i]) for i in range(self._count))

    def write(self) -> None:
        """Write all registers from :attr:`values` (and :attr:`cp` cells), in order."""
        uclib.uc_reg_write_batch(self._handle, self._ids, self._pointers, self._count)
