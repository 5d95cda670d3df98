"""The kernel log: records with a level and a time, and the text that ``dmesg`` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pkvm_emu.kernel.vsprintf_levels import parse_printk_level
from pkvm_emu.machine.state import Journal, StateList

DEFAULT_LEVEL = 4


class LogRecord(NamedTuple):
    """One record: level 0 (emergency) to 7 (debug), nanoseconds since boot, text without its newline."""

    level: int
    time_ns: int
    text: str

    def __str__(self) -> str:
        seconds, rest = divmod(self.time_ns, 1_000_000_000)
        stamp = f"[{seconds:5d}.{rest // 1000:06d}] "
        # A record with newlines inside is printed with the stamp on each line, as dmesg does.
        return "\n".join(stamp + line for line in self.text.split("\n"))


class KernelLog:
    """``dmesg``.

    Args:
        journal: owner of the records.
        clock: nanoseconds since boot.
    """

    def __init__(self, journal: Journal, clock: Callable[[], int]) -> None:
        self._clock = clock
        self.records: StateList[LogRecord] = StateList(journal, "kernel.log")
        #: Called with each finished record (live output); not part of the state.
        self.on_record: Callable[[LogRecord], None] | None = None
        self._open: StateList[bool] = StateList(journal, "kernel.log.open")

    def printk(self, text: str) -> int:
        """Log formatted text with its level prefix, as ``printk`` does; returns the number of characters.

        Text without a newline stays open for a continuation (``KERN_CONT``).
        """
        parsed = parse_printk_level(text)
        body = parsed.text
        length = len(body)
        complete = body.endswith("\n")
        body = body.removesuffix("\n")
        if parsed.continued and self.records and self._open and self._open[-1]:
            last = self.records[-1]
            self.records[-1] = last._replace(text=last.text + body)
            self._open[-1] = not complete
        else:
            level = DEFAULT_LEVEL if parsed.level is None else parsed.level
            self.records.append(LogRecord(level, self._clock(), body))
            self._open.append(not complete)
        if self.on_record is not None:
            self.on_record(self.records[-1])
        return length

    def write(self, text: str, level: int = 6) -> None:
        """Log a line of the kernel's own at ``level`` (6 is info, 3 is error)."""
        self.printk(f"\x01{level}{text}\n")

    def __iter__(self) -> Iterator[LogRecord]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __str__(self) -> str:
        return "\n".join(str(record) for record in self.records)
