"""``seq_file`` (``fs/seq_file.c``): files made of records, and printing into them."""

from __future__ import annotations

from pkvm_emu.abi.errno import to_signed
from pkvm_emu.abi.file_structs import SeqFile, file_structs
from pkvm_emu.kernel.exports.format import va_list
from pkvm_emu.kernel.exports.hexdump import dump_line
from pkvm_emu.kernel.exports.iov_iter import copy_out
from pkvm_emu.kernel.exports.uaccess import copy_to_user_bytes
from pkvm_emu.kernel.fs.seq import SeqFiles
from pkvm_emu.kernel.guest_access import load, load_string, load_u64, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.vsprintf_env import hash_pointer
from pkvm_emu.machine.calling import S32, S64, U8, U32, U64, Bool, CStr, Ptr, VarArgs

_EFAULT = 14
_PREFIX_ADDRESS, _PREFIX_OFFSET = 1, 2
_FILE, _POSITION = 0, 8


# Opening, reading, closing


@kernel_symbol("seq_open", runs_guest=True)
def seq_open(kernel: Kernel, file: Ptr, operations: Ptr) -> int:
    """Begin a file of records; 0 or -ENOMEM."""
    return kernel.part(SeqFiles).open(file, operations)


@kernel_symbol("__seq_open_private", runs_guest=True)
def seq_open_private_pointer(kernel: Kernel, file: Ptr, operations: Ptr, size: S32) -> int:
    """The same with ``size`` zeroed bytes as ``private``; their address, or NULL."""
    if kernel.part(SeqFiles).open_private(file, operations, size):
        return 0
    return load_u64(kernel, kernel.part(SeqFiles).of_file(file) + SeqFile.PRIVATE)


@kernel_symbol("seq_open_private", runs_guest=True)
def seq_open_private(kernel: Kernel, file: Ptr, operations: Ptr, size: S32) -> int:
    """The same; 0 or -ENOMEM."""
    return kernel.part(SeqFiles).open_private(file, operations, size)


@kernel_symbol("single_open", runs_guest=True)
def single_open(kernel: Kernel, file: Ptr, show: Ptr, data: Ptr) -> int:
    """Begin a file of one record; 0 or -ENOMEM."""
    return kernel.part(SeqFiles).open_single(file, show, data)


@kernel_symbol("single_open_size", runs_guest=True)
def single_open_size(kernel: Kernel, file: Ptr, show: Ptr, data: Ptr, size: U64) -> int:
    """The same with the size of the first buffer."""
    return kernel.part(SeqFiles).open_single(file, show, data, size)


@kernel_symbol("single_start")
def single_start(kernel: Kernel, seq: Ptr, position: Ptr) -> int:
    """The one record of ``single_open``: 1, then NULL."""
    return 0 if kernel.memory.read_u64(position) else 1


@kernel_symbol("single_next")
def single_next(kernel: Kernel, seq: Ptr, record: Ptr, position: Ptr) -> int:
    """No further record."""
    kernel.memory.write_u64(position, kernel.memory.read_u64(position) + 1)
    return 0


@kernel_symbol("single_stop")
def single_stop(kernel: Kernel, seq: Ptr, record: Ptr) -> None:
    """Nothing to be done."""


@kernel_symbol("seq_read", runs_guest=True)
def seq_read(kernel: Kernel, file: Ptr, buf: Ptr, size: U64, ppos: Ptr) -> int:
    """Give user space what comes at the position; bytes, 0 at the end, or -errno."""
    position = load_u64(kernel, ppos)
    data = kernel.part(SeqFiles).read(file, position, size)
    if isinstance(data, int):
        return data
    if data and copy_to_user_bytes(kernel, buf, data):
        return -_EFAULT
    store_uint(kernel, ppos, position + len(data), 8)
    return len(data)


@kernel_symbol("seq_read_iter", runs_guest=True)
def seq_read_iter(kernel: Kernel, iocb: Ptr, iterator: Ptr) -> int:
    """The same for ``read_iter``."""
    file, position = load_u64(kernel, iocb + _FILE), load_u64(kernel, iocb + _POSITION)
    count = load_u64(kernel, iterator + file_structs(kernel.generation.kernel).iter.count)
    data = kernel.part(SeqFiles).read(file, position, count)
    if isinstance(data, int):
        return data
    if data and copy_out(kernel, iterator, data) != len(data):
        return -_EFAULT
    store_uint(kernel, iocb + _POSITION, position + len(data), 8)
    return len(data)


@kernel_symbol("seq_lseek", runs_guest=True)
def seq_lseek(kernel: Kernel, file: Ptr, offset: S64, whence: S32) -> int:
    """Move to an offset (records before it are made and dropped); -EINVAL from the end."""
    place = file + file_structs(kernel.generation.kernel).file.f_pos
    result = kernel.part(SeqFiles).seek(file, offset, whence, to_signed(load_u64(kernel, place), 64))
    if result >= 0:
        store_uint(kernel, place, result, 8)
    return result


@kernel_symbol("seq_release", runs_guest=True)
def seq_release(kernel: Kernel, inode: Ptr, file: Ptr) -> int:
    """End it; 0."""
    return kernel.part(SeqFiles).release(file)


@kernel_symbol("seq_release_private", runs_guest=True)
def seq_release_private(kernel: Kernel, inode: Ptr, file: Ptr) -> int:
    """End it, with the private memory; 0."""
    return kernel.part(SeqFiles).release(file)


@kernel_symbol("single_release", runs_guest=True)
def single_release(kernel: Kernel, inode: Ptr, file: Ptr) -> int:
    """End a file of one record; 0."""
    return kernel.part(SeqFiles).release(file, single=True)


# Printing


def _is_full(kernel: Kernel, seq: int) -> bool:
    """What is printed now is dropped, and made again with a larger buffer."""
    return kernel.memory.read_u64(seq + SeqFile.COUNT) >= kernel.memory.read_u64(seq + SeqFile.SIZE)


def _add(kernel: Kernel, seq: int, data: bytes | str) -> int:
    return kernel.part(SeqFiles).append(seq, data.encode("latin-1") if isinstance(data, str) else data)


@kernel_symbol("seq_printf", runs_guest=True)
def seq_printf(kernel: Kernel, seq: Ptr, fmt: Ptr, args: VarArgs) -> None:
    """Add formatted text."""
    if _is_full(kernel, seq):
        return
    _add(kernel, seq, kernel.format(load_string(kernel, fmt), args))


@kernel_symbol("seq_vprintf", runs_guest=True)
def seq_vprintf(kernel: Kernel, seq: Ptr, fmt: Ptr, args: Ptr) -> None:
    """The same with a ``va_list``."""
    if _is_full(kernel, seq):
        return
    _add(kernel, seq, kernel.format(load_string(kernel, fmt), va_list(kernel, args)))


@kernel_symbol("seq_puts", "__seq_puts", runs_guest=True)
def seq_puts(kernel: Kernel, seq: Ptr, text: Ptr) -> None:
    """Add a string."""
    _add(kernel, seq, load_string(kernel, text))


@kernel_symbol("seq_putc")
def seq_putc(kernel: Kernel, seq: Ptr, char: U8) -> None:
    """Add a character."""
    kernel.part(SeqFiles).append(seq, bytes((char,)), exact=True)


@kernel_symbol("seq_write", runs_guest=True)
def seq_write(kernel: Kernel, seq: Ptr, data: Ptr, length: U64) -> int:
    """Add bytes: 0, or -1 where they do not fit."""
    if _is_full(kernel, seq):
        return -1
    return _add(kernel, seq, load(kernel, data, length))


def _number(kernel: Kernel, seq: int, delimiter: str | None, text: str) -> None:
    _add(kernel, seq, (delimiter or "") + text)


@kernel_symbol("seq_put_decimal_ull", runs_guest=True)
def seq_put_decimal_ull(kernel: Kernel, seq: Ptr, delimiter: CStr, number: U64) -> None:
    """Add a delimiter and a number."""
    _number(kernel, seq, delimiter, str(number))


@kernel_symbol("seq_put_decimal_ull_width", runs_guest=True)
def seq_put_decimal_ull_width(kernel: Kernel, seq: Ptr, delimiter: CStr, number: U64, width: U32) -> None:
    """The same, filled up with blanks from the left."""
    _number(kernel, seq, delimiter, f"{number:{width or ''}}")


@kernel_symbol("seq_put_decimal_ll", runs_guest=True)
def seq_put_decimal_ll(kernel: Kernel, seq: Ptr, delimiter: CStr, number: S64) -> None:
    """The same with a sign."""
    _number(kernel, seq, delimiter, str(number))


@kernel_symbol("seq_put_hex_ll", runs_guest=True)
def seq_put_hex_ll(kernel: Kernel, seq: Ptr, delimiter: CStr, number: U64, width: U32) -> None:
    """Add a delimiter and a hexadecimal number of at least ``width`` digits."""
    _number(kernel, seq, delimiter, f"{number:x}".rjust(width, "0"))


@kernel_symbol("seq_pad", runs_guest=True)
def seq_pad(kernel: Kernel, seq: Ptr, char: U8) -> None:
    """Fill up with blanks to ``pad_until``, then add a character (none for NUL)."""
    missing = to_signed(load_u64(kernel, seq + SeqFile.PAD_UNTIL) - load_u64(kernel, seq + SeqFile.COUNT), 64)
    _add(kernel, seq, b" " * max(missing, 0))
    if char:
        kernel.part(SeqFiles).append(seq, bytes((char,)), exact=True)


@kernel_symbol("seq_escape", runs_guest=True)
def seq_escape(kernel: Kernel, seq: Ptr, text: Ptr, chars: Ptr) -> None:
    """Add a string with some characters in octal."""
    special = load_string(kernel, chars)
    data = b"".join(b"\\%03o" % byte if byte in special else bytes((byte,)) for byte in load_string(kernel, text))
    _add(kernel, seq, data)


@kernel_symbol("seq_hex_dump", runs_guest=True)
def seq_hex_dump(
    kernel: Kernel, seq: Ptr, prefix: CStr, kind: S32, row: S32, group: S32, buf: Ptr, length: U64, ascii_column: Bool
) -> None:
    """Add a hex dump, each line with the prefix and its (hashed) address or its offset."""
    row = row if row in (16, 32) else 16
    for offset in range(0, length, row):
        text = dump_line(load(kernel, buf + offset, min(row, length - offset)), row, group, ascii_column)
        where = ""
        if kind == _PREFIX_ADDRESS:
            where = f"{hash_pointer(buf + offset):016x}: "
        elif kind == _PREFIX_OFFSET:
            where = f"{offset:08x}: "
        _add(kernel, seq, f"{prefix or ''}{where}{text}\n")


# Lists as records


def _nth(kernel: Kernel, head: int, position: int) -> int:
    node = load_u64(kernel, head)
    while node != head:
        if not position:
            return node
        position -= 1
        node = load_u64(kernel, node)
    return 0


@kernel_symbol("seq_list_start", "seq_list_start_rcu", runs_guest=True)
def seq_list_start(kernel: Kernel, head: Ptr, position: S64) -> int:
    """The entry of a list at a position, or NULL."""
    return _nth(kernel, head, position)


@kernel_symbol("seq_list_start_head", "seq_list_start_head_rcu", runs_guest=True)
def seq_list_start_head(kernel: Kernel, head: Ptr, position: S64) -> int:
    """The same, where position 0 is the head (for a title)."""
    return _nth(kernel, head, position - 1) if position else head


@kernel_symbol("seq_list_next", "seq_list_next_rcu", runs_guest=True)
def seq_list_next(kernel: Kernel, entry: Ptr, head: Ptr, ppos: Ptr) -> int:
    """The entry behind one, or NULL; the position goes on."""
    store_uint(kernel, ppos, load_u64(kernel, ppos) + 1, 8)
    following = load_u64(kernel, entry)
    return 0 if following == head else following


@kernel_symbol("seq_hlist_start", "seq_hlist_start_rcu", runs_guest=True)
def seq_hlist_start(kernel: Kernel, head: Ptr, position: S64) -> int:
    """The entry of a hash list at a position, or NULL."""
    node = load_u64(kernel, head)
    while node and position:
        node, position = load_u64(kernel, node), position - 1
    return node


@kernel_symbol("seq_hlist_next", "seq_hlist_next_rcu", runs_guest=True)
def seq_hlist_next(kernel: Kernel, entry: Ptr, head: Ptr, ppos: Ptr) -> int:
    """The entry behind one (the first where ``entry`` is 1), or NULL."""
    store_uint(kernel, ppos, load_u64(kernel, ppos) + 1, 8)
    return load_u64(kernel, head if entry == 1 else entry)
