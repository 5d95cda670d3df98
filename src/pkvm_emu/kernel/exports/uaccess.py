"""Accesses that may fault: kernel memory without an oops, and user memory (``mm/maccess.c``, ``arch/arm64/lib``)."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EFAULT, EINVAL, ENOMEM

from pkvm_emu.kernel.exports.io import device_load, device_store
from pkvm_emu.kernel.guest_access import HostFault, load, require_mapped, store
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import bug, warn
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.slab import ZERO_SIZE_PTR, Slab
from pkvm_emu.kernel.vsprintf_env import GuestFault
from pkvm_emu.machine.calling import S32, S64, U64, Bool, Ptr

_PAGE_SIZE = 4096


def _chunks(size: int) -> Iterator[tuple[int, int]]:
    """Offset and size of the accesses that the kernel makes: doublewords, then what is left."""
    offset = 0
    for width in (8, 4, 2, 1):
        while size - offset >= width:
            yield offset, width
            offset += width


@kernel_symbol("copy_from_kernel_nofault", runs_guest=True)
def copy_from_kernel_nofault(kernel: Kernel, dest: Ptr, src: Ptr, size: U64) -> int:
    """Read kernel memory; -EFAULT where the CPU cannot, with what came before copied."""
    try:
        for offset, width in _chunks(size):
            data = device_load(kernel, src + offset, width)
            store(kernel, dest + offset, data.to_bytes(width, "little"))
    except HostFault:
        return -EFAULT
    return 0


@kernel_symbol("copy_to_kernel_nofault", runs_guest=True)
def copy_to_kernel_nofault(kernel: Kernel, dest: Ptr, src: Ptr, size: U64) -> int:
    """Write kernel memory; -EFAULT where the CPU cannot."""
    try:
        for offset, width in _chunks(size):
            device_store(kernel, dest + offset, int.from_bytes(load(kernel, src + offset, width), "little"), width)
    except HostFault:
        return -EFAULT
    return 0


@kernel_symbol("strncpy_from_kernel_nofault", runs_guest=True)
def strncpy_from_kernel_nofault(kernel: Kernel, dest: Ptr, src: Ptr, count: S64) -> int:
    """Copy a string; its length with the NUL (``count`` where it was cut), or -EFAULT with an empty ``dest``."""
    if count <= 0:
        return 0
    out = bytearray()
    while len(out) < count:
        value, fault = kernel.access("host_load8", src + len(out))
        if fault is not None:
            store(kernel, dest, b"\0")
            return -EFAULT
        out.append(value & 0xFF)
        if not value & 0xFF:
            break
    if out[-1]:
        out[-1] = 0
    store(kernel, dest, out)
    return len(out)


# User memory


def _user_bytes(kernel: Kernel, address: int, size: int) -> int:
    """How many bytes from a user address on are mapped."""
    done = 0
    while done < size:
        step = min(size - done, _PAGE_SIZE - (address + done) % _PAGE_SIZE)
        try:
            if address + done >= 1 << kernel.memory.layout.va_bits:
                break
            kernel.memory.to_pa(address + done)
        except GuestFault:
            break
        done += step
    return done


def user_bytes(kernel: Kernel, address: int, size: int) -> bytes | None:
    """``size`` bytes of user memory; None where not all of them are mapped."""
    return kernel.memory.read(address, size) if _user_bytes(kernel, address, size) == size else None


@kernel_symbol("__arch_copy_from_user", "_copy_from_user", runs_guest=True)
def copy_from_user(kernel: Kernel, dest: Ptr, src: Ptr, size: U64) -> int:
    """The number of bytes that could not be read (``_copy_from_user`` also zeroes them)."""
    done = _user_bytes(kernel, src, size)
    require_mapped(kernel, dest, size)
    store(kernel, dest, kernel.memory.read(src, done) + bytes(size - done))
    return size - done


@kernel_symbol("__arch_copy_to_user", "_copy_to_user", runs_guest=True)
def copy_to_user(kernel: Kernel, dest: Ptr, src: Ptr, size: U64) -> int:
    """The number of bytes that could not be written."""
    done = _user_bytes(kernel, dest, size)
    kernel.memory.write(dest, load(kernel, src, done))
    return size - done


def copy_to_user_bytes(kernel: Kernel, dest: int, data: bytes) -> int:
    """Write ``data`` to user memory; the number of bytes that could not be written."""
    done = _user_bytes(kernel, dest, len(data))
    kernel.memory.write(dest, data[:done])
    return len(data) - done


@kernel_symbol("__arch_clear_user", "clear_user", runs_guest=True)
def clear_user(kernel: Kernel, dest: Ptr, size: U64) -> int:
    """The number of bytes that could not be zeroed."""
    done = _user_bytes(kernel, dest, size)
    kernel.memory.write(dest, bytes(done))
    return size - done


@kernel_symbol("strncpy_from_user", runs_guest=True)
def strncpy_from_user(kernel: Kernel, dest: Ptr, src: Ptr, count: S64) -> int:
    """Copy a string; its length without the NUL, ``count`` where it was cut, or -EFAULT."""
    if count <= 0:
        return 0
    known = _user_bytes(kernel, src, count)
    data = kernel.memory.read(src, known)
    end = data.find(0)
    if end < 0 and known < count:
        return -EFAULT
    store(kernel, dest, data[: end + 1] if end >= 0 else data)
    return end if end >= 0 else count


@kernel_symbol("strnlen_user", runs_guest=True)
def strnlen_user(kernel: Kernel, address: Ptr, count: S64) -> int:
    """Length with the NUL, ``count`` + 1 where there is none, 0 where it is not mapped."""
    known = _user_bytes(kernel, address, max(count, 0))
    if not known:
        return 0
    end = kernel.memory.read(address, known).find(0)
    return end + 1 if end >= 0 else count + 1 if known == count else 0


def _nofault(kernel: Kernel, remaining: int) -> int:
    return -EFAULT if remaining else 0


@kernel_symbol("copy_from_user_nofault", runs_guest=True)
def copy_from_user_nofault(kernel: Kernel, dest: Ptr, src: Ptr, size: U64) -> int:
    """0, or -EFAULT."""
    return _nofault(kernel, copy_from_user(kernel, dest, src, size))


@kernel_symbol("copy_to_user_nofault", runs_guest=True)
def copy_to_user_nofault(kernel: Kernel, dest: Ptr, src: Ptr, size: U64) -> int:
    """0, or -EFAULT."""
    return _nofault(kernel, copy_to_user(kernel, dest, src, size))


@kernel_symbol("memdup_user", "memdup_user_nul", runs_guest=True)
def memdup_user(kernel: Kernel, src: Ptr, size: U64) -> int:
    """A copy of user memory, or ``ERR_PTR(-EFAULT)``, ``ERR_PTR(-ENOMEM)``."""
    if _user_bytes(kernel, src, size) < size:
        return -EFAULT
    address = kernel.part(Slab).kmalloc(size + 1)
    if address is None:
        return -ENOMEM
    kernel.memory.write(address, kernel.memory.read(src, size) + b"\0")
    return address


@kernel_symbol("vmemdup_user", runs_guest=True)
def vmemdup_user(kernel: Kernel, src: Ptr, size: U64) -> int:
    """The same in memory that ``kvfree`` frees."""
    return memdup_user(kernel, src, size)


@kernel_symbol("strndup_user", runs_guest=True)
def strndup_user(kernel: Kernel, src: Ptr, limit: S64) -> int:
    """A copy of a user string, or ``ERR_PTR``: -EFAULT, -EINVAL (longer than ``limit`` with its NUL), -ENOMEM."""
    length = strnlen_user(kernel, src, limit)
    if not length:
        return -EFAULT
    if length > limit:
        return -EINVAL
    return memdup_user(kernel, src, length)


# Hardened user copies


@kernel_symbol("__check_object_size")
def check_object_size(kernel: Kernel, address: Ptr, size: U64, to_user: Bool) -> None:
    """``CONFIG_HARDENED_USERCOPY``: a copy that leaves its slab object, or wraps around, is a BUG."""
    if not size:
        return
    if address + size - 1 >= 1 << 64:
        raise _usercopy_abort(kernel, "wrapped address", "", to_user, 0, address + size)
    if address in (0, ZERO_SIZE_PTR):
        raise _usercopy_abort(kernel, "null address", "", to_user, address, size)
    slab = kernel.part(Slab)
    found = slab.containing(address)
    if found is not None:
        start, room, name = found
        if address - start + size > room:
            raise _usercopy_abort(kernel, "SLUB object", name, to_user, address - start, size)


def _usercopy_abort(kernel: Kernel, kind: str, detail: str, to_user: bool, offset: int, size: int) -> Exception:
    what, way = ("exposure", "from") if to_user else ("overwrite", "to")
    name = f" '{detail}'" if detail else ""
    text = f"usercopy: Kernel memory {what} attempt detected {way} {kind}{name} (offset {offset}, size {size})!"
    return bug(kernel, "mm/usercopy.c", text)


@kernel_symbol("__copy_overflow")
def copy_overflow(kernel: Kernel, size: S32, count: U64) -> None:
    """A copy that the compiler could not prove to fit: a warning."""
    warn(kernel, "lib/usercopy.c", f"Buffer overflow detected ({size} < {count})!")
