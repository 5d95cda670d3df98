"""Vendor calls answered by a table: ``pkvm-emu run foo.ko --smc TABLE.toml``.

Each ``[[smc]]`` has an ``id`` (number, or a name of the specifications) or a ``range`` of two ids, and optionally ``name``,
``when`` (conditions on registers), ``result`` (x0, a list of x0, x1, ..., or a table of registers; "x2" is the call's register),
``log`` (a line for the report, ``{x1:#x}`` in it) and ``write`` (memory). The first entry that fits answers.

::

    [[smc]]
    id = 0xC2000834
    when = { x1 = [1, 2], x3 = { min = 0x40000000, max = 0x7fffffff } }
    result = [0, "x1"]
    log = "secure register {x1} is read into {x3:#x}"
    write = [{ at = "x3", value = 0x1234, size = 4 }]
"""

from __future__ import annotations

import string
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pkvm_emu.arch.smccc import KNOWN_IDS, MASK64
from pkvm_emu.errors import UsageError
from pkvm_emu.hyp.el3_calls import SmcCall

if TYPE_CHECKING:
    from pkvm_emu.hyp.el3 import El3Firmware
    from pkvm_emu.machine.memory import GuestRam

_REGISTERS = {f"x{n}": n for n in range(18)}
_MASK32 = 0xFFFF_FFFF
_SMC64 = 1 << 30
_KEYS = frozenset(("id", "range", "name", "when", "result", "log", "write"))
_WRITE_KEYS = frozenset(("at", "offset", "value", "size", "bytes"))
_SIZES = (1, 2, 4, 8)

Test = Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class Value:
    """A number, or the register of the call that a table names."""

    number: int = 0
    register: int | None = None

    def of(self, x: tuple[int, ...]) -> int:
        """Its value in a call."""
        return self.number if self.register is None else x[self.register]


@dataclass(frozen=True, slots=True)
class Store:
    """One write: bytes, or a number of ``size`` bytes, at ``at`` + ``offset`` (physical)."""

    at: Value
    offset: int
    value: Value
    size: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One ``[[smc]]``."""

    ids: range
    when: tuple[tuple[int, Test], ...]
    result: tuple[tuple[int, Value], ...]
    log: str | None
    writes: tuple[Store, ...]

    def fits(self, call: SmcCall) -> bool:
        """Whether it answers a call: conditions of SMC32 calls look at the low halves."""
        mask = MASK64 if call.function & _SMC64 else _MASK32
        return call.function in self.ids and all(test(call.x[n] & mask) for n, test in self.when)

    def answer(self, call: SmcCall) -> tuple[int, ...]:
        """Do it: the registers after the call."""
        x = call.x
        if self.log is not None:
            call.log(self.log.format_map({name: x[n] for name, n in _REGISTERS.items()}))
        for store in self.writes:
            mask = (1 << 8 * store.size) - 1
            data = store.data
            if data is None:
                data = (store.value.of(x) & mask).to_bytes(store.size, "little")
            call.write(store.at.of(x) + store.offset & MASK64, data)
        after = list(x)
        for register, value in self.result:
            after[register] = value.of(x) & MASK64
        return tuple(after)


class _Reader:
    """Checks a table; errors name the file and the path of the key."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        #: Line of each ``[[smc]]``, so that an error can point there.
        self._lines = [n for n, line in enumerate(text.splitlines(), 1) if line.split("#")[0].strip() == "[[smc]]"]

    def fail(self, key: str, reason: str) -> NoReturn:
        index = int(key[4 : key.index("]")]) if key.startswith("smc[") else -1
        line = f":{self._lines[index]}" if 0 <= index < len(self._lines) else ""
        raise UsageError(f"{self._path}{line}: {key}: {reason}")

    def entries(self, table: dict[str, Any]) -> list[Entry]:
        for key in table:
            if key != "smc":
                self.fail(key, "an SMC table has [[smc]] entries and nothing else")
        rows = table.get("smc", [])
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            self.fail("smc", "no [[smc]] entry is there")
        return [self._entry(f"smc[{index}]", row) for index, row in enumerate(rows)]

    def _entry(self, key: str, row: dict[str, Any]) -> Entry:
        self._only(key, row, _KEYS)
        if ("id" in row) == ("range" in row):
            self.fail(key, "give either id or range")
        if "name" in row and not isinstance(row["name"], str):
            self.fail(f"{key}.name", "wanted a string")
        return Entry(
            self._ids(key, row),
            tuple(self._conditions(f"{key}.when", row.get("when", {}))),
            tuple(self._results(f"{key}.result", row.get("result", 0))),
            self._log(f"{key}.log", row.get("log")),
            tuple(self._writes(f"{key}.write", row.get("write", []))),
        )

    def _only(self, key: str, row: dict[str, Any], allowed: frozenset[str]) -> None:
        for name in row:
            if name not in allowed:
                self.fail(f"{key}.{name}", f"no such key; there are: {', '.join(sorted(allowed))}")

    def _ids(self, key: str, row: dict[str, Any]) -> range:
        if "id" in row:
            wanted = row["id"]
            if isinstance(wanted, str):
                wanted = {name: number for number, name in KNOWN_IDS.items()}.get(wanted)
                if wanted is None:
                    self.fail(f"{key}.id", f"no call is named {row['id']!r}")
            return range(self._id(f"{key}.id", wanted), wanted + 1)
        pair = row["range"]
        if not isinstance(pair, list) or len(pair) != 2:
            self.fail(f"{key}.range", "wanted [first id, last id]")
        first, last = (self._id(f"{key}.range[{n}]", value) for n, value in enumerate(pair))
        if last < first:
            self.fail(f"{key}.range", f"{first:#x} is behind {last:#x}")
        return range(first, last + 1)

    def _id(self, key: str, value: Any) -> int:
        if not _is_int(value) or not 0 <= value <= _MASK32:
            self.fail(key, f"{value!r} is no 32-bit function id")
        return int(value)

    def _register(self, key: str, name: str) -> int:
        if name not in _REGISTERS:
            self.fail(key, f"{name!r} is no register from x0 to x17")
        return _REGISTERS[name]

    def _value(self, key: str, value: Any) -> Value:
        if isinstance(value, str):
            return Value(register=self._register(key, value))
        if not _is_int(value) or not -(1 << 63) <= value <= MASK64:
            self.fail(key, f"{value!r} is neither a 64-bit number nor a register")
        return Value(value)

    def _conditions(self, key: str, table: Any) -> list[tuple[int, Test]]:
        if not isinstance(table, dict):
            self.fail(key, "wanted a table of registers: { x1 = 3 }")
        return [(self._register(f"{key}.{n}", n), self._test(f"{key}.{n}", wanted)) for n, wanted in table.items()]

    def _test(self, key: str, wanted: Any) -> Test:
        if _is_int(wanted):
            number = wanted & MASK64
            return lambda value: value == number
        if isinstance(wanted, list) and wanted and all(_is_int(each) for each in wanted):
            numbers = frozenset(each & MASK64 for each in wanted)
            return lambda value: value in numbers
        if isinstance(wanted, dict) and wanted and all(_is_int(each) for each in wanted.values()):
            if set(wanted) <= {"min", "max"}:
                low, high = wanted.get("min", 0), wanted.get("max", MASK64)
                return lambda value: low <= value <= high
            if set(wanted) == {"mask", "value"}:
                mask, masked = wanted["mask"], wanted["value"]
                return lambda value: value & mask == masked
        return self.fail(key, "wanted a number, a list of numbers, { min, max } or { mask, value }")

    def _results(self, key: str, result: Any) -> list[tuple[int, Value]]:
        if isinstance(result, dict):
            return [(self._register(f"{key}.{n}", n), self._value(f"{key}.{n}", v)) for n, v in result.items()]
        values = result if isinstance(result, list) else [result]
        if len(values) > len(_REGISTERS):
            self.fail(key, "there are results for x0 to x17")
        return [(n, self._value(f"{key}[{n}]", value)) for n, value in enumerate(values)]

    def _log(self, key: str, text: Any) -> str | None:
        if text is None:
            return None
        if not isinstance(text, str):
            self.fail(key, "wanted a string")
        try:
            fields = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
            for name in fields:
                self._register(key, name)
            text.format_map(dict.fromkeys(_REGISTERS, 0))
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            self.fail(key, f"{error}; registers are written {{x1}} or {{x1:#x}}")
        return text

    def _writes(self, key: str, rows: Any) -> list[Store]:
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            self.fail(key, "wanted a list of tables: [{ at = ..., value = ... }]")
        return [self._store(f"{key}[{n}]", row) for n, row in enumerate(rows)]

    def _store(self, key: str, row: dict[str, Any]) -> Store:
        self._only(key, row, _WRITE_KEYS)
        if "at" not in row or ("value" in row) == ("bytes" in row):
            self.fail(key, "give at, and either value or bytes")
        size, offset, data = row.get("size", 8), row.get("offset", 0), None
        if not _is_int(size) or size not in _SIZES:
            self.fail(f"{key}.size", "wanted 1, 2, 4 or 8")
        if not _is_int(offset):
            self.fail(f"{key}.offset", "wanted a number")
        if "bytes" in row:
            try:
                data = bytes.fromhex(row["bytes"])
            except (TypeError, ValueError):
                self.fail(f"{key}.bytes", "wanted hexadecimal digits in a string")
        value = self._value(f"{key}.value", row.get("value", 0))
        return Store(self._value(f"{key}.at", row["at"]), offset, value, size, data)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def read_table(path: str | Path) -> list[Entry]:
    """The entries of a table.

    Raises:
        UsageError: it cannot be read, is no TOML (line and column), or means nothing (line of the entry, and key).
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--smc {path}: {getattr(error, 'strerror', None) or 'no UTF-8 text'}") from error
    try:
        return _Reader(file, text).entries(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}") from error


def load_table(path: str | Path, el3: El3Firmware, ram: GuestRam) -> None:
    """Serve a table's calls; raises as :func:`read_table`."""
    entries = read_table(path)

    def handler(registers: tuple[int, ...]) -> tuple[int, ...] | None:
        call = SmcCall(el3, ram, registers)
        entry = next((entry for entry in entries if entry.fits(call)), None)
        return None if entry is None else entry.answer(call)

    el3.serve(handler)


def load_smc_file(path: str | Path, el3: El3Firmware, ram: GuestRam) -> None:
    """Serve the calls of a ``.toml`` table or a ``.py`` file.

    Raises:
        UsageError: it is neither, or bad.
    """
    suffix = Path(path).suffix
    if suffix not in (".toml", ".py"):
        raise UsageError(f"--smc {path}: wanted a table (.toml) or a Python file (.py)")
    if not Path(path).is_file():
        raise UsageError(f"--smc {path}: there is no such file")
    if suffix == ".toml":
        load_table(path, el3, ram)
    else:
        from pkvm_emu.hyp.el3_calls import load_calls

        load_calls(path, el3, ram)
