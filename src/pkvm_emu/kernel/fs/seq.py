"""``struct seq_file``: files that are made of records, one call of ``show`` each (``fs/seq_file.c``).

The structure and its buffer are in guest memory: ``show`` functions write there, by exported functions and by inline code.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import EINVAL, ENOMEM, is_err_value, to_signed
from pkvm_emu.abi.file_structs import SeqFile, SeqOperations, file_structs
from pkvm_emu.kernel.fs.result import as_user_sees
from pkvm_emu.kernel.layout import PAGE_SIZE
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

_MASK64 = (1 << 64) - 1
#: A buffer grows to this (``kvmalloc`` has no more for it); then a read gets -ENOMEM.
_LARGEST = 4 << 20


@kernel_part
class SeqFiles(State):
    """Operations on ``struct seq_file``.

    Attributes:
        operations: tables that ``single_open`` made, by ``struct seq_file``.
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.seq_files")
        self._kernel = kernel
        self._memory = kernel.memory
        self.operations: StateDict[int, int] = StateDict(journal, "kernel.seq_files.operations")

    # Opening

    @property
    def _private_data(self) -> int:
        return file_structs(self._kernel.generation.kernel).file.private_data

    def of_file(self, file: int) -> int:
        """The ``struct seq_file`` of a ``struct file``."""
        return self._memory.read_u64(file + self._private_data)

    def _zeroed(self, size: int) -> int:
        return self._kernel.part(Slab).kmalloc(size, line_facts(self._kernel.generation.kernel).gfp_zero) or 0

    def open(self, file: int, operations: int) -> int:
        """``seq_open``; 0 or -ENOMEM."""
        seq = self._zeroed(SeqFile.BYTES)
        if not seq:
            return -ENOMEM
        memory = self._memory
        memory.write_u64(file + self._private_data, seq)
        memory.write_u64(seq + SeqFile.OP, operations)
        memory.write_u64(seq + SeqFile.FILE, file)
        # Writing at an offset makes no sense for a generated file: pwrite() is refused.
        mode = file + file_structs(self._kernel.generation.kernel).file.f_mode
        memory.write_u32(mode, memory.read_u32(mode) & ~16)
        return 0

    def open_single(self, file: int, show: int, data: int, size: int = 0) -> int:
        """``single_open`` (``size``: the first buffer, of ``single_open_size``); 0 or -ENOMEM."""
        table = self._zeroed(SeqOperations.BYTES)
        if not table:
            return -ENOMEM
        resolve, memory = self._kernel.symbols.resolve, self._memory
        memory.write_u64(table + SeqOperations.START, resolve("single_start"))
        memory.write_u64(table + SeqOperations.NEXT, resolve("single_next"))
        memory.write_u64(table + SeqOperations.STOP, resolve("single_stop"))
        memory.write_u64(table + SeqOperations.SHOW, show)
        result = self.open(file, table)
        if result:
            self._kernel.part(Slab).kfree(table)
            return result
        seq = self.of_file(file)
        memory.write_u64(seq + SeqFile.PRIVATE, data)
        self.operations[seq] = table
        if size:
            self._allocate_buffer(seq, size)
        return 0

    def open_private(self, file: int, operations: int, size: int) -> int:
        """``seq_open`` with ``size`` zeroed bytes as ``private``; 0 or -ENOMEM."""
        private = self._zeroed(size) if size else 0
        if size and not private:
            return -ENOMEM
        result = self.open(file, operations)
        if result:
            self._kernel.part(Slab).kfree(private)
        else:
            self._memory.write_u64(self.of_file(file) + SeqFile.PRIVATE, private)
            if size:
                self.operations[self.of_file(file)] = private
        return result

    def release(self, file: int, single: bool = False) -> int:
        """``seq_release``, ``single_release``, ``seq_release_private``."""
        slab, seq = self._kernel.part(Slab), self.of_file(file)
        if not seq:
            return 0
        own = self.operations.pop(seq, 0)
        slab.kfree(self._memory.read_u64(seq + SeqFile.BUF), "seq_release")
        slab.kfree(seq, "seq_release")
        if own:
            slab.kfree(own, "single_release" if single else "seq_release_private")
        return 0

    # The buffer

    def _get(self, seq: int, field: int) -> int:
        return self._memory.read_u64(seq + field)

    def _set(self, seq: int, field: int, value: int) -> None:
        self._memory.write_u64(seq + field, value)

    def _allocate_buffer(self, seq: int, size: int) -> bool:
        buffer = self._kernel.part(Slab).kmalloc(size) if size <= _LARGEST else None
        self._set(seq, SeqFile.BUF, buffer or 0)
        self._set(seq, SeqFile.SIZE, size if buffer else 0)
        return buffer is not None

    def _grow(self, seq: int) -> bool:
        size = self._get(seq, SeqFile.SIZE)
        self._kernel.part(Slab).kfree(self._get(seq, SeqFile.BUF))
        self._set(seq, SeqFile.COUNT, 0)
        return self._allocate_buffer(seq, max(size * 2, PAGE_SIZE))

    def append(self, seq: int, data: bytes, exact: bool = False) -> int:
        """Add text: 0, or -1 with the overflow marked (the record is made again with a larger buffer).

        One byte has to stay free, but where ``exact`` is set (single characters).
        """
        # One access for four members: drivers print millions of single characters.
        buffer, size, _, count = struct.unpack("<4Q", self._memory.read(seq, SeqFile.PAD_UNTIL))
        if count + len(data) < size or (exact and count + len(data) <= size):
            self._memory.write(buffer + count, data)
            self._set(seq, SeqFile.COUNT, count + len(data))
            return 0
        self._set(seq, SeqFile.COUNT, size)
        return -1

    # Iterating

    def _call(self, seq: int, operation: int, *args: int) -> int:
        table = self._get(seq, SeqFile.OP)
        return self._kernel.call(self._memory.read_u64(table + operation), seq, *args)

    def _start(self, seq: int) -> int:
        return self._call(seq, SeqOperations.START, seq + SeqFile.INDEX)

    def _stop(self, seq: int, record: int) -> None:
        self._call(seq, SeqOperations.STOP, record)

    def _next(self, seq: int, record: int) -> int:
        index = self._get(seq, SeqFile.INDEX)
        following = self._call(seq, SeqOperations.NEXT, record, seq + SeqFile.INDEX)
        if self._get(seq, SeqFile.INDEX) == index:
            function = self._memory.read_u64(self._get(seq, SeqFile.OP) + SeqOperations.NEXT)
            name = self._kernel.describe(function).partition("+")[0]
            self._kernel.log.write(f"seq_file: buggy .next function {name} did not update position index", level=6)
            self._set(seq, SeqFile.INDEX, index + 1)
        return following

    def _show(self, seq: int, record: int) -> int:
        return to_signed(self._call(seq, SeqOperations.SHOW, record))

    def _overflowed(self, seq: int) -> bool:
        return self._get(seq, SeqFile.COUNT) == self._get(seq, SeqFile.SIZE)

    def read(self, file: int, position: int, size: int) -> bytes | int:
        """The next bytes at ``position``, or -errno."""
        seq = self.of_file(file)
        if not size:
            return b""
        if position == 0:
            self._set(seq, SeqFile.INDEX, 0)
            self._set(seq, SeqFile.COUNT, 0)
        if position != self._get(seq, SeqFile.READ_POS):
            result = self._traverse_growing(seq, position)
            if result:
                for field in (SeqFile.READ_POS, SeqFile.INDEX, SeqFile.COUNT):
                    self._set(seq, field, 0)
                return as_user_sees(result)
            self._set(seq, SeqFile.READ_POS, position)
        if not self._get(seq, SeqFile.BUF) and not self._allocate_buffer(seq, PAGE_SIZE):
            return -ENOMEM
        out = self._take(seq, size)
        if len(out) < size and not self._get(seq, SeqFile.COUNT):
            result = self._fill(seq, size - len(out))
            if result == 0 or self._get(seq, SeqFile.COUNT):
                out += self._take(seq, size - len(out))
            if not out and result < 0:
                return as_user_sees(result)
        self._set(seq, SeqFile.READ_POS, position + len(out))
        return out

    def _take(self, seq: int, size: int) -> bytes:
        count, start = self._get(seq, SeqFile.COUNT), self._get(seq, SeqFile.FROM)
        taken = min(count, size)
        if not taken:
            return b""
        data = self._memory.read(self._get(seq, SeqFile.BUF) + start, taken)
        self._set(seq, SeqFile.COUNT, count - taken)
        self._set(seq, SeqFile.FROM, start + taken)
        return data

    def _fill(self, seq: int, size: int) -> int:
        """Make records until there are ``size`` bytes or no more; 0 or the error that ended it."""
        self._set(seq, SeqFile.FROM, 0)
        record = self._start(seq)
        result = 0
        while True:
            if not record or is_err_value(record):
                result = to_signed(record, 64) if record else 0
                self._stop(seq, record)
                self._set(seq, SeqFile.COUNT, 0)
                return result
            result = self._show(seq, record)
            if result < 0:
                self._stop(seq, record)
                self._set(seq, SeqFile.COUNT, 0)
                return result
            if result > 0:
                self._set(seq, SeqFile.COUNT, 0)
            if not self._get(seq, SeqFile.COUNT):
                record = self._next(seq, record)
                continue
            if not self._overflowed(seq):
                break
            self._stop(seq, record)
            if not self._grow(seq):
                return -ENOMEM
            record = self._start(seq)
        self._fill_more(seq, record, size)
        return 0

    def _fill_more(self, seq: int, record: int, size: int) -> None:
        while True:
            before = self._get(seq, SeqFile.COUNT)
            record = self._next(seq, record)
            if not record or is_err_value(record) or before >= size:
                break
            result = self._show(seq, record)
            if result > 0:
                self._set(seq, SeqFile.COUNT, before)
            elif result < 0 or self._overflowed(seq):
                self._set(seq, SeqFile.COUNT, before)
                break
        self._stop(seq, record)

    def _traverse_growing(self, seq: int, offset: int) -> int:
        while True:
            result = self._traverse(seq, offset)
            if result != -11:
                return result

    def _traverse(self, seq: int, offset: int) -> int:
        """Make records up to a position; 0, -errno, or -EAGAIN with a larger buffer."""
        for field in (SeqFile.INDEX, SeqFile.COUNT, SeqFile.FROM):
            self._set(seq, field, 0)
        if not offset:
            return 0
        if not self._get(seq, SeqFile.BUF) and not self._allocate_buffer(seq, PAGE_SIZE):
            return -ENOMEM
        position = result = 0
        record = self._start(seq)
        while record:
            if is_err_value(record):
                result = to_signed(record, 64)
                break
            result = self._show(seq, record)
            if result < 0:
                break
            if result > 0:
                result = 0
                self._set(seq, SeqFile.COUNT, 0)
            if self._overflowed(seq):
                self._stop(seq, record)
                return -11 if self._grow(seq) else -ENOMEM
            count = self._get(seq, SeqFile.COUNT)
            record = self._next(seq, record)
            if position + count > offset:
                self._set(seq, SeqFile.FROM, offset - position)
                self._set(seq, SeqFile.COUNT, count - (offset - position))
                break
            position += count
            self._set(seq, SeqFile.COUNT, 0)
            if position == offset:
                break
        self._stop(seq, record)
        return result

    def seek(self, file: int, offset: int, whence: int, current: int) -> int:
        """``seq_lseek``: the new position, or -errno."""
        seq = self.of_file(file)
        if whence == 1:
            offset, whence = offset + current, 0
        if whence or offset < 0:
            return -EINVAL
        if offset == self._get(seq, SeqFile.READ_POS):
            return offset
        result = self._traverse_growing(seq, offset)
        if result:
            for field in (SeqFile.READ_POS, SeqFile.INDEX, SeqFile.COUNT):
                self._set(seq, field, 0)
            return result
        self._set(seq, SeqFile.READ_POS, offset)
        return offset
