"""What was found: which contract was broken, by which op and argument, where in the source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pkvm_emu.contracts.rules import CONTRACTS, Level

if TYPE_CHECKING:
    from pkvm_emu.elf.dwarf import SourceLine
    from pkvm_emu.system import System


class Record(NamedTuple):
    """One breach as it is kept while the system runs.

    Attributes:
        contract: its name.
        message: what happened, in one line.
        pc: hyp VA of the instruction to blame; 0 where none is.
        entry: what EL2 was entered for.
    """

    contract: str
    message: str
    pc: int
    entry: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One breach in words.

    Attributes:
        contract: its name.
        level: error or warning.
        message: what happened.
        entry: what EL2 was entered for: a hypercall, an SMC, the init of a module.
        where: symbol and offset of the instruction, source line where there is one.
        line: the source line, or None.
        rule: the rule that was broken.
    """

    contract: str
    level: Level
    message: str
    entry: str
    where: str
    line: SourceLine | None
    rule: str

    def __str__(self) -> str:
        at = f" at {self.where}" if self.where else ""
        return f"{self.level.value}: {self.contract}: {self.message}{at}, in {self.entry} (rule: {self.rule})"

    def as_dict(self) -> dict[str, Any]:
        """The finding for programs."""
        return {
            "contract": self.contract,
            "level": self.level.value,
            "message": self.message,
            "entry": self.entry,
            "where": self.where,
            "file": None if self.line is None else self.line.file,
            "line": None if self.line is None else self.line.line,
            "rule": self.rule,
        }


def in_words(system: System, record: Record, level: Level) -> Finding:
    """A record with symbols and source lines."""
    where = system.symbols.describe(record.pc, 2) if record.pc else ""
    line = system.symbols.line(record.pc, 2) if record.pc else None
    return Finding(record.contract, level, record.message, record.entry, where, line, CONTRACTS[record.contract].rule)
