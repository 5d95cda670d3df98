"""Variadic arguments are found where AAPCS64 puts them."""

from __future__ import annotations

import pytest

from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.varargs import RegisterArgs, VaListArgs, ValueArgs

VA_LIST = 0x9000
STACK = 0xA000
GR_TOP = 0xB000


class Words:
    """Guest memory as a byte dictionary; what was never written faults."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}

    def write(self, address: int, value: int, size: int) -> None:
        self.bytes.update({address + i: byte for i, byte in enumerate(value.to_bytes(size, "little"))})

    def read_u64(self, address: int) -> int:
        return int.from_bytes(bytes(self.bytes[address + i] for i in range(8)), "little")

    def read_u32(self, address: int) -> int:
        return int.from_bytes(bytes(self.bytes[address + i] for i in range(4)), "little")

    def write_u64(self, address: int, value: int) -> None:
        self.write(address, value, 8)

    def write_u32(self, address: int, value: int) -> None:
        self.write(address, value, 4)


@pytest.fixture
def memory() -> Words:
    words = Words()
    for i in range(8):
        words.write(STACK + 8 * i, 0x500 + i, 8)
    for i in range(8):
        words.write(GR_TOP - 64 + 8 * i, 0x100 + i, 8)
    return words


def put_va_list(memory: Words, gr_offs: int) -> None:
    memory.write(VA_LIST, STACK, 8)
    memory.write(VA_LIST + 8, GR_TOP, 8)
    memory.write(VA_LIST + 16, 0xDEAD, 8)
    memory.write(VA_LIST + 24, gr_offs & 0xFFFF_FFFF, 4)
    memory.write(VA_LIST + 28, 0, 4)


def test_registers_come_first_and_then_the_stack_from_sp_upwards(memory: Words) -> None:
    args = RegisterArgs([0x100 + i for i in range(8)], 2, memory.read_u64, STACK)
    assert [args.next_u64() for _ in range(9)] == [0x102, 0x103, 0x104, 0x105, 0x106, 0x107, 0x500, 0x501, 0x502]


def test_a_call_with_eight_named_arguments_has_all_variadic_ones_on_the_stack(memory: Words) -> None:
    args = RegisterArgs([0] * 8, 8, memory.read_u64, STACK)
    assert [args.next_u64(), args.next_u64()] == [0x500, 0x501]


def test_a_ninth_named_argument_takes_the_first_stack_slot(memory: Words) -> None:
    assert RegisterArgs([0] * 8, 9, memory.read_u64, STACK).next_u64() == 0x501


def test_register_values_are_unsigned_64_bit(memory: Words) -> None:
    assert RegisterArgs([0, -1], 1, memory.read_u64, STACK).next_u64() == (1 << 64) - 1


@pytest.mark.parametrize("named", range(9))
def test_va_list_walks_the_saved_registers_and_then_the_stack(memory: Words, named: int) -> None:
    put_va_list(memory, -8 * (8 - named))
    args = VaListArgs(memory.read_u64, memory.read_u32, VA_LIST)
    expected = [0x100 + i for i in range(named, 8)] + [0x500, 0x501, 0x502]
    assert [args.next_u64() for _ in expected] == expected


def test_a_save_area_that_ends_inside_the_slot_sends_the_reader_to_the_stack(memory: Words) -> None:
    put_va_list(memory, -4)
    args = VaListArgs(memory.read_u64, memory.read_u32, VA_LIST)
    assert [args.next_u64(), args.next_u64()] == [0x500, 0x501]


def test_reading_a_va_list_leaves_it_as_it_is(memory: Words) -> None:
    put_va_list(memory, -8)
    before = dict(memory.bytes)
    args = VaListArgs(memory.read_u64, memory.read_u32, VA_LIST)
    assert [args.next_u64(), args.next_u64()] == [0x107, 0x500]
    assert memory.bytes == before


def test_with_writers_the_guest_goes_on_where_the_reader_stopped(memory: Words) -> None:
    put_va_list(memory, -16)

    def source() -> VaListArgs:
        return VaListArgs(
            memory.read_u64, memory.read_u32, VA_LIST, write_u64=memory.write_u64, write_u32=memory.write_u32
        )

    assert [source().next_u64() for _ in range(5)] == [0x106, 0x107, 0x500, 0x501, 0x502]
    assert memory.read_u32(VA_LIST + 24) == 0
    assert memory.read_u64(VA_LIST) == STACK + 24


def test_one_writer_alone_is_a_mistake(memory: Words) -> None:
    put_va_list(memory, 0)
    with pytest.raises(ValueError, match="together"):
        VaListArgs(memory.read_u64, memory.read_u32, VA_LIST, write_u64=memory.write_u64)


def test_known_values_are_given_in_order_and_the_end_is_an_error() -> None:
    args = ValueArgs([1, -2])
    assert [args.next_u64(), args.next_u64()] == [1, (1 << 64) - 2]
    with pytest.raises(ModuleError, match="asks for argument 3, only 2"):
        args.next_u64()
