"""Rows of the conformance module: from the kernel log, from a recording, and when two of them say the same.

Compared are x0, x1 as errno or number, of a stage-2 leaf its attributes, type and level, of a syndrome all but SRT. Addresses
depend on where the allocators of two kernels put things, so they are compared as "an address of that kind".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pkvm_emu.abi.errno import errno_name

HERE = Path(__file__).parent
_CALL = re.compile(r"ret=(-?\d+) \((0x[0-9a-f]+)\) x0=(-?\d+) x2=(0x[0-9a-f]+) x3=(0x[0-9a-f]+)$")
_NUMBER = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{16}\b|\b\d{5,}\b")
_LEAF_ADDRESS = 0x0000_FFFF_FFFF_F000
_ESR_SRT = 0x1F << 16
_HYP_TAGS = range(0x60_0000_0000, 0x80_0000_0000)
_HYP_PRIVATE = range(1 << 46, 3 << 45)
_KERNEL = range(0xFFFF_FF80_0000_0000, 1 << 64)
_RAM = range(0x4000_0000, 0x8000_0000)
_BOGUS_ID = range(0x0840_0000, 0x0900_0000)


@dataclass(frozen=True)
class Row:
    """One printed row; ``values`` are x0..x3 of a hypercall, ``raw`` the text where the row is none, ``note`` a line of its own."""

    state: str
    operation: str
    values: tuple[str, str, str, str] | None = None
    raw: str = ""
    note: str = ""

    def __str__(self) -> str:
        if self.note:
            return f"# {self.note}"
        return f"{self.state} | {self.operation} | {' '.join(self.values) if self.values else self.raw}"


def recorded(name: str) -> list[Row]:
    """The rows of ``results/NAME.tsv``."""
    rows = []
    for line in (HERE / "results" / f"{name}.tsv").read_text().splitlines()[1:]:
        if line.startswith("# "):
            rows.append(Row("", "", note=line[2:]))
            continue
        state, operation, x0, x1, x2, x3, *raw = line.split("\t")
        values = (x0, x1, x2, x3) if x0 else None
        rows.append(Row(state, operation, values, raw[0] if raw else ""))
    return rows


def printed(dmesg: str) -> list[Row]:
    """The rows that the module printed into the kernel log."""
    rows = []
    for line in dmesg.splitlines():
        _, mark, text = line.partition("] TT| ")
        if not mark:
            continue
        state, *rest = text.split(" | ", 2)
        if state == "NOTE":
            rows.append(Row("", "", note=text.removeprefix("NOTE | ")))
        elif len(rest) < 2:
            rows.append(Row("", "", note=text))
        elif found := _CALL.match(rest[1]):
            value, unsigned, x0, x2, x3 = found.groups()
            x1 = errno_name(int(value)) if -4096 < int(value) < 0 else hex(int(unsigned, 16)) if int(value) else "0"
            rows.append(Row(state, rest[0], (x0, x1, x2, x3)))
        else:
            rows.append(Row(state, rest[0], raw=rest[1]))
    return rows


def same(ours: Row, theirs: Row) -> bool:
    """Whether two rows say the same."""
    if (ours.state, ours.operation) != (theirs.state, theirs.operation):
        return (
            _masked(ours.operation) == _masked(theirs.operation)
            and ours.state == theirs.state
            and _same_rest(ours, theirs)
        )
    return _same_rest(ours, theirs)


def _same_rest(ours: Row, theirs: Row) -> bool:
    if ours.values and theirs.values:
        if "host_stage2_get_leaf" in ours.operation:
            return _leaf(ours.values) == _leaf(theirs.values)
        if ours.operation == "perm last esr":
            a, b = (int(row.values[1], 16) & ~_ESR_SRT for row in (ours, theirs) if row.values)
            return a == b and ours.values[2:] == theirs.values[2:]
        return tuple(map(_masked, ours.values)) == tuple(map(_masked, theirs.values))
    return (
        _masked(ours.raw) == _masked(theirs.raw)
        and _masked(ours.note) == _masked(theirs.note)
        and (ours.values is None and theirs.values is None)
    )


def _leaf(values: tuple[str, str, str, str]) -> tuple[object, ...]:
    x0, x1, descriptor, level = values
    return x0, x1, int(descriptor, 16) & ~_LEAF_ADDRESS, level


def _masked(text: str) -> str:
    """Numbers that are addresses replaced by the kind of address; everything else stays."""

    def kind(match: re.Match[str]) -> str:
        word = match[0]
        value = int(word, 16) if word.startswith("0x") or len(word) == 16 else int(word)
        for name, addresses in (
            ("hyp linear VA", _HYP_TAGS),
            ("hyp private VA", _HYP_PRIVATE),
            ("kernel VA", _KERNEL),
            ("PA in RAM", _RAM),
            ("low half of a hyp private VA", _BOGUS_ID),
        ):
            # Errnos are at the very top and no addresses.
            if value in addresses and value < (1 << 64) - 4096:
                return f"<{name}>"
        return word

    return _NUMBER.sub(kind, text)
