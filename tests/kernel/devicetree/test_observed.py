"""Where a build has ``of_node`` shows in its code; a stock build's place is not looked for elsewhere."""

from __future__ import annotations

import struct

import pytest

from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.kernel.devicetree.layouts import OWN_HEADERS, device_layout, layout_of_module, with_of_node
from pkvm_emu.kernel.devicetree.observed import of_node_offset

EXPECTED = 744
NOP, RET, BL = 0xD503_201F, 0xD65F_03C0, 0x9400_0000
LDP_X24_X23_FROM_SP = 0xA943_5FF8


def ldr(register: int, base: int, offset: int) -> int:
    return 0xF940_0000 | offset // 8 << 10 | base << 5 | register


def mov(target: int, source: int) -> int:
    return 0xAA00_03E0 | source << 16 | target


class Image:
    """Enough of a module file: one code section whose last word of each part calls a function."""

    def __init__(self, *parts: list[int], function: str = "of_get_property", section: str = ".text") -> None:
        words: list[int] = []
        entries = []
        for part in parts:
            words += [*part, BL]
            entries.append(_Entry((len(words) - 1) * 4, 283, 0))
            words.append(RET)
        self.sections = [_Section(section, struct.pack(f"<{len(words)}I", *words))]
        self.symbols = [_Symbol(function)]
        self.relocation_sections = [_Relocations(0, entries)]
        self.vermagic = "6.1.99-android14"


class _Entry:
    def __init__(self, offset: int, type: int, symbol: int) -> None:
        self.offset, self.type, self.symbol = offset, type, symbol


class _Section:
    is_code = True

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.data = name, data


class _Symbol:
    def __init__(self, name: str) -> None:
        self.name = name


class _Relocations:
    def __init__(self, target: int, entries: list[_Entry]) -> None:
        self.target, self.entries = target, entries


def seen(*parts: list[int], function: str = "of_get_property", section: str = ".text") -> int | None:
    image = Image(*parts, function=function, section=section)
    return of_node_offset(image, EXPECTED)  # type: ignore[arg-type]  # enough of a module file


def test_two_offsets_16_apart_are_the_device_and_its_platform_device() -> None:
    assert seen([ldr(0, 19, 1120)], [ldr(0, 0, 1136)]) == 1120


def test_one_offset_alone_is_that_of_a_platform_device() -> None:
    assert seen([ldr(0, 20, 904)]) == 888


def test_a_stock_build_is_left_as_it_is() -> None:
    assert seen([ldr(0, 19, EXPECTED)], [ldr(0, 0, 1000)]) is None
    assert seen([ldr(0, 19, EXPECTED + 16)]) is None


def test_the_node_is_followed_through_registers_past_an_early_return() -> None:
    code = [ldr(24, 0, 1136), NOP, LDP_X24_X23_FROM_SP, RET, mov(0, 24)]
    assert seen(code, [ldr(0, 19, 1120)]) == 1120


@pytest.mark.parametrize(
    "code",
    [
        pytest.param([ldr(0, 31, 1120)], id="from the stack"),
        pytest.param([ldr(0, 19, 16)], id="too near"),
        pytest.param([ldr(0, 19, 1120), BL], id="before another call"),
        pytest.param([ldr(0, 19, 1120), RET], id="in another function"),
        pytest.param([ldr(0, 19, 1120), 0x9100_0000], id="computed after it"),
        pytest.param([], id="nothing"),
    ],
)
def test_what_is_no_node_of_a_device_says_nothing(code: list[int]) -> None:
    assert seen(code) is None


def test_other_functions_and_el2_code_say_nothing() -> None:
    assert seen([ldr(0, 19, 1120)], function="kfree") is None
    assert seen([ldr(0, 19, 1120)], section=".hyp.text") is None


def test_offsets_that_do_not_fit_together_say_nothing() -> None:
    assert seen([ldr(0, 19, 1120)], [ldr(0, 19, 1200)]) is None


def test_a_debug_builds_row_is_the_stock_one_moved() -> None:
    stock = device_layout((6, 1))
    moved = with_of_node(stock, 1120)
    assert (moved.of_node, moved.fwnode, moved.driver_data) == (1120, 1128, stock.driver_data)
    assert stock.dma_mask is not None
    assert moved.dma_mask == stock.dma_mask + 1120 - stock.of_node
    assert moved.size > moved.device + moved.device_size > 1120 + 16
    image = Image([ldr(0, 19, 1120)], [ldr(0, 0, 1136)])
    assert layout_of_module((6, 1), image) == moved  # type: ignore[arg-type]  # enough of a module file


def test_modules_of_this_project_have_their_own_layout(c_module) -> None:
    file = ModuleFile.load(c_module())
    assert layout_of_module((6, 12), file) is OWN_HEADERS
    assert layout_of_module((6, 12), None) is device_layout((6, 12))
