"""Random numbers and UUIDs (``drivers/char/random.c``, ``lib/uuid.c``): the same sequence in every run."""

from __future__ import annotations

import hashlib
import re
import struct
from errno import EINVAL

from pkvm_emu.kernel.guest_access import load_string, store
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_part, kernel_symbol, kernel_variable
from pkvm_emu.machine.calling import U32, U64, Ptr
from pkvm_emu.machine.state import State

_UUID = re.compile(rb"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
_SEED = b"pkvm_emu"
_BLOCK = 32


@kernel_part
class RandomSource(State):
    """A deterministic stream: SHA-256 of a counter; a snapshot brings its position back."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.random")
        self.position = 0

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        out = bytearray()
        while len(out) < size:
            out += hashlib.sha256(_SEED + self.position.to_bytes(8, "little")).digest()
            self.position += 1
        return bytes(out[:size])


def _number(kernel: Kernel, size: int) -> int:
    return int.from_bytes(kernel.part(RandomSource).take(size), "little")


@kernel_symbol("get_random_bytes", "get_random_bytes_arch", runs_guest=True)
def get_random_bytes(kernel: Kernel, buffer: Ptr, size: U64) -> int:
    """Fill a buffer; the number of bytes (which only the ``_arch`` form returns)."""
    for offset in range(0, size, _BLOCK):
        store(kernel, buffer + offset, kernel.part(RandomSource).take(min(_BLOCK, size - offset)))
    return size


@kernel_symbol("get_random_u8")
def get_random_u8(kernel: Kernel) -> int:
    """8 random bits."""
    return _number(kernel, 1)


@kernel_symbol("get_random_u16")
def get_random_u16(kernel: Kernel) -> int:
    """16 random bits."""
    return _number(kernel, 2)


@kernel_symbol("get_random_u32", "prandom_u32")
def get_random_u32(kernel: Kernel) -> int:
    """32 random bits."""
    return _number(kernel, 4)


@kernel_symbol("get_random_u64")
def get_random_u64(kernel: Kernel) -> int:
    """64 random bits."""
    return _number(kernel, 8)


@kernel_symbol("__get_random_u32_below")
def get_random_u32_below(kernel: Kernel, ceiling: U32) -> int:
    """A number below ``ceiling``; any for 0."""
    return _number(kernel, 4) * ceiling >> 32 if ceiling else _number(kernel, 4)


@kernel_symbol("wait_for_random_bytes")
def wait_for_random_bytes(kernel: Kernel) -> int:
    """0: the generator is ready from the start."""
    return 0


@kernel_symbol("rng_is_initialized")
def rng_is_initialized(kernel: Kernel) -> int:
    """True."""
    return 1


# UUIDs: version 4 in byte 6 (guid: 7), variant in byte 8.


def _stamp(data: bytes, version_byte: int) -> bytes:
    out = bytearray(data)
    out[version_byte] = out[version_byte] & 0x0F | 0x40
    out[8] = out[8] & 0x3F | 0x80
    return bytes(out)


@kernel_symbol("generate_random_uuid", "uuid_gen", runs_guest=True)
def uuid_gen(kernel: Kernel, uuid: Ptr) -> None:
    """A random UUID (big endian)."""
    store(kernel, uuid, _stamp(kernel.part(RandomSource).take(16), 6))


@kernel_symbol("generate_random_guid", "guid_gen", runs_guest=True)
def guid_gen(kernel: Kernel, guid: Ptr) -> None:
    """A random GUID (little endian fields)."""
    store(kernel, guid, _stamp(kernel.part(RandomSource).take(16), 7))


@kernel_symbol("uuid_is_valid", runs_guest=True)
def uuid_is_valid(kernel: Kernel, text: Ptr) -> int:
    """Whether the first 36 characters are a UUID."""
    return _UUID.fullmatch(load_string(kernel, text, 36)) is not None


def _parse(kernel: Kernel, text: int) -> bytes | None:
    data = load_string(kernel, text, 36)
    return bytes.fromhex(data.decode().replace("-", "")) if _UUID.fullmatch(data) else None


@kernel_symbol("uuid_parse", runs_guest=True)
def uuid_parse(kernel: Kernel, text: Ptr, uuid: Ptr) -> int:
    """0 and the bytes, or -EINVAL."""
    data = _parse(kernel, text)
    if data is None:
        return -EINVAL
    store(kernel, uuid, data)
    return 0


@kernel_symbol("guid_parse", runs_guest=True)
def guid_parse(kernel: Kernel, text: Ptr, guid: Ptr) -> int:
    """0 and the bytes with little-endian fields, or -EINVAL."""
    data = _parse(kernel, text)
    if data is None:
        return -EINVAL
    store(kernel, guid, struct.pack("<IHH", *struct.unpack(">IHH", data[:8])) + data[8:])
    return 0


@kernel_variable("uuid_null", 16, section="rodata")
def uuid_null(kernel: Kernel) -> bytes:
    """All zeros."""
    return b""


@kernel_variable("guid_null", 16, section="rodata")
def guid_null(kernel: Kernel) -> bytes:
    """All zeros."""
    return b""
