"""Checksums (``lib/crc*.c``)."""

from __future__ import annotations

import zlib
from functools import cache

from pkvm_emu.kernel.guest_access import load
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import U8, U16, U32, U64, Ptr

_CRC32C, _CRC16, _CCITT = 0x82F6_3B78, 0xA001, 0x8408
_CRC32_BE, _CRC_ITU_T = 0x04C1_1DB7, 0x1021


@cache
def _reflected_table(polynomial: int) -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
        table.append(value)
    return tuple(table)


@cache
def _direct_table(polynomial: int, bits: int) -> tuple[int, ...]:
    table, top, mask = [], 1 << (bits - 1), (1 << bits) - 1
    for index in range(256):
        value = index << (bits - 8)
        for _ in range(8):
            value = (value << 1 ^ (polynomial if value & top else 0)) & mask
        table.append(value)
    return tuple(table)


def reflected(crc: int, data: bytes, polynomial: int) -> int:
    """A CRC whose bits run from the lowest, without inversions."""
    table = _reflected_table(polynomial)
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc


def direct(crc: int, data: bytes, polynomial: int, bits: int) -> int:
    """A CRC whose bits run from the highest, without inversions."""
    table, mask = _direct_table(polynomial, bits), (1 << bits) - 1
    for byte in data:
        crc = (crc << 8 & mask) ^ table[(crc >> (bits - 8) ^ byte) & 0xFF]
    return crc


@kernel_symbol("crc32_le", "crc32_le_arch", "crc32_le_base", runs_guest=True)
def crc32_le(kernel: Kernel, crc: U32, data: Ptr, size: U64) -> int:
    """CRC-32 from ``crc`` on, without the inversions of the file formats."""
    return ~zlib.crc32(load(kernel, data, size), ~crc & 0xFFFF_FFFF) & 0xFFFF_FFFF


@kernel_symbol("crc32_be", runs_guest=True)
def crc32_be(kernel: Kernel, crc: U32, data: Ptr, size: U64) -> int:
    """CRC-32 with the highest bit first."""
    return direct(crc, load(kernel, data, size), _CRC32_BE, 32)


@kernel_symbol("__crc32c_le", "crc32c", "crc32c_le_base", runs_guest=True)
def crc32c(kernel: Kernel, crc: U32, data: Ptr, size: U64) -> int:
    """CRC-32C (Castagnoli)."""
    return reflected(crc, load(kernel, data, size), _CRC32C)


@kernel_symbol("crc16", runs_guest=True)
def crc16(kernel: Kernel, crc: U16, data: Ptr, size: U64) -> int:
    """CRC-16 (0x8005, reflected)."""
    return reflected(crc, load(kernel, data, size), _CRC16)


@kernel_symbol("crc_ccitt", runs_guest=True)
def crc_ccitt(kernel: Kernel, crc: U16, data: Ptr, size: U64) -> int:
    """CRC-CCITT (0x1021, reflected)."""
    return reflected(crc, load(kernel, data, size), _CCITT)


@kernel_symbol("crc_itu_t", runs_guest=True)
def crc_itu_t(kernel: Kernel, crc: U16, data: Ptr, size: U64) -> int:
    """CRC of ITU-T V.41 (0x1021, highest bit first)."""
    return direct(crc, load(kernel, data, size), _CRC_ITU_T, 16)


@kernel_symbol("crc8", runs_guest=True)
def crc8(kernel: Kernel, table: Ptr, data: Ptr, size: U64, crc: U8) -> int:
    """CRC-8 by the caller's table."""
    steps = load(kernel, table, 256)
    for byte in load(kernel, data, size):
        crc = steps[crc ^ byte]
    return crc
