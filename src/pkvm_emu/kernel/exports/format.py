"""printf to memory and scanf (``lib/vsprintf.c``, ``lib/kasprintf.c``)."""

from __future__ import annotations

from typing import Any

from pkvm_emu.kernel.guest_access import load_string, store
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.kernel.sscanf import scan
from pkvm_emu.kernel.varargs import VaListArgs
from pkvm_emu.machine.calling import S32, U32, U64, Ptr, VarArgs

_INT_MAX = (1 << 31) - 1


def va_list(kernel: Kernel, address: int) -> VaListArgs:
    """The arguments behind a guest ``va_list``."""
    return VaListArgs(kernel.memory.read_u64, kernel.memory.read_u32, address)


def _text(kernel: Kernel, fmt: int, args: Any) -> bytes:
    return kernel.format(load_string(kernel, fmt), args).encode("latin-1")


def _bounded(kernel: Kernel, buffer: int, size: int, fmt: int, args: Any) -> int:
    """``vsnprintf``: write what fits with its NUL; the length of all."""
    if size > _INT_MAX:
        warn(kernel, "vsnprintf+0x0")
        return 0
    data = _text(kernel, fmt, args)
    if size:
        store(kernel, buffer, data[: size - 1] + b"\0")
    return len(data)


def _clipped(length: int, size: int) -> int:
    """What ``scnprintf`` returns: the characters that are really there."""
    return length if length < size else max(size - 1, 0)


@kernel_symbol("snprintf", runs_guest=True)
def snprintf(kernel: Kernel, buffer: Ptr, size: U64, fmt: Ptr, args: VarArgs) -> int:
    """Format into ``size`` bytes; the length that was wanted."""
    return _bounded(kernel, buffer, size, fmt, args)


@kernel_symbol("scnprintf", runs_guest=True)
def scnprintf(kernel: Kernel, buffer: Ptr, size: U64, fmt: Ptr, args: VarArgs) -> int:
    """Format into ``size`` bytes; the length that is there."""
    return _clipped(_bounded(kernel, buffer, size, fmt, args), size)


@kernel_symbol("sprintf", runs_guest=True)
def sprintf(kernel: Kernel, buffer: Ptr, fmt: Ptr, args: VarArgs) -> int:
    """Format without a bound."""
    return _bounded(kernel, buffer, _INT_MAX, fmt, args)


@kernel_symbol("vsnprintf", runs_guest=True)
def vsnprintf(kernel: Kernel, buffer: Ptr, size: U64, fmt: Ptr, args: Ptr) -> int:
    """``snprintf`` with a ``va_list``."""
    return _bounded(kernel, buffer, size, fmt, va_list(kernel, args))


@kernel_symbol("vscnprintf", runs_guest=True)
def vscnprintf(kernel: Kernel, buffer: Ptr, size: U64, fmt: Ptr, args: Ptr) -> int:
    """``scnprintf`` with a ``va_list``."""
    return _clipped(_bounded(kernel, buffer, size, fmt, va_list(kernel, args)), size)


@kernel_symbol("vsprintf", runs_guest=True)
def vsprintf(kernel: Kernel, buffer: Ptr, fmt: Ptr, args: Ptr) -> int:
    """``sprintf`` with a ``va_list``."""
    return _bounded(kernel, buffer, _INT_MAX, fmt, va_list(kernel, args))


def _allocated(kernel: Kernel, flags: int, fmt: int, args: Any) -> int:
    data = _text(kernel, fmt, args) + b"\0"
    address = kernel.part(Slab).kmalloc(len(data), flags)
    if address is None:
        return 0
    kernel.memory.write(address, data)
    return address


@kernel_symbol("kasprintf", runs_guest=True)
def kasprintf(kernel: Kernel, flags: U32, fmt: Ptr, args: VarArgs) -> int:
    """Format into new memory; NULL without any."""
    return _allocated(kernel, flags, fmt, args)


@kernel_symbol("kvasprintf", "kvasprintf_const", runs_guest=True)
def kvasprintf(kernel: Kernel, flags: U32, fmt: Ptr, args: Ptr) -> int:
    """``kasprintf`` with a ``va_list``."""
    return _allocated(kernel, flags, fmt, va_list(kernel, args))


@kernel_symbol("vprintk", runs_guest=True)
def vprintk(kernel: Kernel, fmt: Ptr, args: Ptr) -> int:
    """``printk`` with a ``va_list``."""
    return kernel.log.printk(kernel.format(load_string(kernel, fmt), va_list(kernel, args)))


@kernel_symbol("vprintk_emit", runs_guest=True)
def vprintk_emit(kernel: Kernel, facility: S32, level: S32, info: Ptr, fmt: Ptr, args: Ptr) -> int:
    """The same with a level (-1: the text may have one)."""
    prefix = "" if level < 0 else f"\x01{level & 7}"
    return kernel.log.printk(prefix + kernel.format(load_string(kernel, fmt), va_list(kernel, args)))


def _scan(kernel: Kernel, text: int, fmt: int, args: Any) -> int:
    count, stores = scan(load_string(kernel, text), load_string(kernel, fmt))
    for data in stores:
        store(kernel, args.next_u64(), data)
    return count


@kernel_symbol("sscanf", runs_guest=True)
def sscanf(kernel: Kernel, text: Ptr, fmt: Ptr, args: VarArgs) -> int:
    """Read by a format; the number of items."""
    return _scan(kernel, text, fmt, args)


@kernel_symbol("vsscanf", runs_guest=True)
def vsscanf(kernel: Kernel, text: Ptr, fmt: Ptr, args: Ptr) -> int:
    """``sscanf`` with a ``va_list``."""
    return _scan(kernel, text, fmt, va_list(kernel, args))
