"""System registers as data: names, encodings, the MRS and MSR words.

>>> sysreg("ttbr0_el2").encoding
(3, 4, 2, 0, 0)
>>> hex(sysreg("HCR_EL2").mrs(0))
'0xd53c1100'
>>> by_encoding(3, 0, 12, 0, 0).name
'VBAR_EL1'

The rows are in sysreg_el1.py and sysreg_el2.py; numbered families (breakpoints, PMU counters, list registers) are
expanded here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pkvm_emu.arch.sysreg_el1 import EL1_ROWS, Row
from pkvm_emu.arch.sysreg_el2 import EL2_ROWS


@dataclass(frozen=True, slots=True)
class SysReg:
    """One system register.

    Attributes:
        name: the architecture's name, in capitals.
        op0, op1, crn, crm, op2: the encoding.
        group: ``control``, ``virt``, ``fgt``, ``mmu``, ``exception``, ``pstate``, ``thread``, ``pauth``, ``id``,
            ``cache``, ``timer``, ``pmu``, ``debug``, ``mpam`` or ``gic``.
        doc: what it holds, in a few words.
    """

    name: str
    op0: int
    op1: int
    crn: int
    crm: int
    op2: int
    group: str
    doc: str

    @property
    def key(self) -> tuple[int, int, int, int, int]:
        """``(crn, crm, op0, op1, op2)``: the order in which the execution engine's register access wants it."""
        return self.crn, self.crm, self.op0, self.op1, self.op2

    @property
    def encoding(self) -> tuple[int, int, int, int, int]:
        """``(op0, op1, crn, crm, op2)``, the order of the assembler's ``S3_4_c1_c1_0``."""
        return self.op0, self.op1, self.crn, self.crm, self.op2

    @property
    def generic_name(self) -> str:
        """The name every assembler takes: ``S3_4_C1_C1_0``."""
        return f"S{self.op0}_{self.op1}_C{self.crn}_C{self.crm}_{self.op2}"

    @property
    def el(self) -> int:
        """Lowest exception level the register's name promises access from (0 to 3); E2H aliases belong to EL2."""
        if self.name.endswith(("_EL12", "_EL02")) or self.name == "SP_EL1":
            return 2
        tail = self.name.rpartition("_EL")[2]
        if self.name == "SP_EL2":
            return 3
        if tail.isdigit() and self.name != "SP_EL0":
            return int(tail)
        return {0: 1, 3: 0, 4: 2, 6: 3}.get(self.op1, 1)

    def mrs(self, rt: int) -> int:
        """The word of ``mrs x<rt>, <name>``."""
        return 0xD5200000 | self._fields() | rt & 31

    def msr(self, rt: int) -> int:
        """The word of ``msr <name>, x<rt>`` (31: xzr)."""
        return 0xD5000000 | self._fields() | rt & 31

    def _fields(self) -> int:
        return self.op0 << 19 | self.op1 << 16 | self.crn << 12 | self.crm << 8 | self.op2 << 5


def _families() -> Iterator[Row]:
    for n in range(16):
        yield f"DBGBVR{n}_EL1", 2, 0, 0, n, 4, "debug", f"Breakpoint {n} value"
        yield f"DBGBCR{n}_EL1", 2, 0, 0, n, 5, "debug", f"Breakpoint {n} control"
        yield f"DBGWVR{n}_EL1", 2, 0, 0, n, 6, "debug", f"Watchpoint {n} value"
        yield f"DBGWCR{n}_EL1", 2, 0, 0, n, 7, "debug", f"Watchpoint {n} control"
        yield f"ICH_LR{n}_EL2", 3, 4, 12, 12 + n // 8, n % 8, "gic", f"List register {n}"
    for n in range(31):
        yield f"PMEVCNTR{n}_EL0", 3, 3, 14, 8 + n // 8, n % 8, "pmu", f"Event counter {n}"
        yield f"PMEVTYPER{n}_EL0", 3, 3, 14, 12 + n // 8, n % 8, "pmu", f"Event type {n}"
    for n in range(4):
        yield f"ICC_AP0R{n}_EL1", 3, 0, 12, 8, 4 + n, "gic", f"Active priorities {n}, group 0"
        yield f"ICC_AP1R{n}_EL1", 3, 0, 12, 9, n, "gic", f"Active priorities {n}, group 1"
        yield f"ICH_AP0R{n}_EL2", 3, 4, 12, 8, n, "gic", f"Virtual active priorities {n}, group 0"
        yield f"ICH_AP1R{n}_EL2", 3, 4, 12, 9, n, "gic", f"Virtual active priorities {n}, group 1"


SYSREGS: dict[str, SysReg] = {row[0]: SysReg(*row) for row in (*EL1_ROWS, *EL2_ROWS, *_families())}
"""All known registers by name in capitals."""

_BY_ENCODING: dict[tuple[int, int, int, int, int], SysReg] = {reg.encoding: reg for reg in SYSREGS.values()}


class UnknownSysReg(KeyError):
    """No register has that name; the text offers the nearest names."""

    def __init__(self, name: str) -> None:
        import difflib  # only here: it costs more than the whole table

        super().__init__(name)
        near = difflib.get_close_matches(name.upper(), SYSREGS, n=3)
        self.text = f"no system register is called {name!r}" + (f"; did you mean {', '.join(near)}?" if near else "")

    def __str__(self) -> str:
        return self.text


def sysreg(name: str) -> SysReg:
    """The register called ``name``, in any case.

    The assembler's generic form (``s3_4_c1_c1_0``) is taken for every encoding, known or not.

    Raises:
        UnknownSysReg: no such name (a KeyError whose text offers the nearest names).
    """
    upper = name.upper()
    found = SYSREGS.get(upper)
    if found is not None:
        return found
    parts = upper.replace("C", "").removeprefix("S").split("_")
    if upper.startswith("S") and len(parts) == 5 and all(part.isdecimal() for part in parts):
        op0, op1, crn, crm, op2 = (int(part) for part in parts)
        if 2 <= op0 <= 3 and op1 < 8 and crn < 16 and crm < 16 and op2 < 8:
            return by_encoding(op0, op1, crn, crm, op2) or SysReg(upper, op0, op1, crn, crm, op2, "unknown", "")
    raise UnknownSysReg(name)


def by_encoding(op0: int, op1: int, crn: int, crm: int, op2: int) -> SysReg | None:
    """The register with this encoding, or None."""
    return _BY_ENCODING.get((op0, op1, crn, crm, op2))
