"""``/dev/kmsg``, and the mark that ``dmesg -c`` leaves in the kernel log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import EINVAL
from pkvm_emu.kernel.fs.devices import CharacterDevice
from pkvm_emu.kernel.fs.node import WOULD_BLOCK
from pkvm_emu.kernel.fs.registry import node
from pkvm_emu.kernel.log import DEFAULT_LEVEL, LogRecord
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State

if TYPE_CHECKING:
    from pkvm_emu.kernel.fs.open_file import OpenFile
    from pkvm_emu.kernel.kernel import Kernel

_PRIORITY = re.compile(rb"<(\d{1,9})>")
_LEVEL_MASK = 7
_RECORD_MAX = 1024 - 48


@kernel_part
class Syslog(State):
    """What ``syslog(2)`` knows beside the records: up to where the log was cleared."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.syslog")
        self._kernel = kernel
        self.cleared = 0

    def records(self) -> Iterator[LogRecord]:
        """The records that ``dmesg`` prints."""
        return iter(list(self._kernel.log)[self.cleared :])

    def clear(self) -> None:
        """What ``dmesg -C`` does: later calls print only what comes from now on."""
        self.cleared = len(self._kernel.log)


@node("/dev/kmsg")
class KernelMessages(CharacterDevice):
    """The kernel log, a record a read; a write logs a line.

    The record format is that of ``Documentation/ABI/testing/dev-kmsg``: ``level,sequence,microseconds,-;text``.
    """

    mode = 0o644
    device = (1, 11)

    def open(self, handle: OpenFile) -> int:
        handle.data["next"] = 0
        return 0

    def read(self, handle: OpenFile, offset: int, size: int) -> bytes | int:
        sequence: int = handle.data["next"]
        records = self._kernel.log.records
        if sequence >= len(records):
            return WOULD_BLOCK
        record: LogRecord = records[sequence]
        head = f"{record.level},{sequence},{record.time_ns // 1000},-;"
        line = (head + record.text.replace("\n", "\\x0a") + "\n").encode("utf-8", "surrogateescape")
        if len(line) > size:
            return -EINVAL
        handle.data["next"] = sequence + 1
        return line

    def write(self, handle: OpenFile, offset: int, data: bytes) -> int:
        if len(data) > _RECORD_MAX:
            return -EINVAL
        level, text = DEFAULT_LEVEL, data
        match = _PRIORITY.match(data)
        if match:
            level, text = int(match[1]) & _LEVEL_MASK, data[match.end() :]
        self._kernel.log.write(text.decode("utf-8", "surrogateescape").removesuffix("\n"), level)
        return len(data)
