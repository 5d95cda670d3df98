"""The source lines of the firmware: each instruction has the line that it is written in, in the image and in the ELF file."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from pkvm_emu.debug.elfimage import code_section, write_elf
from pkvm_emu.debug.firmware_elf import hypervisor_elf, kernel_elf
from pkvm_emu.debug.line_table import Function, LineUnit, Row, line_sections
from pkvm_emu.firmware import image as firmware
from pkvm_emu.hyp.vms import FIRMWARE_OFFSET
from pkvm_emu.system import System

MODULE = (
    "lined",
    """
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs) { }
""",
)
SOURCES = Path(__file__).parents[2] / "firmware"
#: The first word of the instruction in a line, after its label; macros stand for several.
MACROS = {"CALL_CHECKED", "SERVICE", "VECTOR_PANIC", "VECTOR_INVALID", "VECTOR_UNUSED"}


def rows_of(elf: bytes) -> dict[int, tuple[str, int]]:
    """File and line of each instruction, as pyelftools reads them."""
    found: dict[int, tuple[str, int]] = {}
    dwarf = ELFFile(io.BytesIO(elf)).get_dwarf_info()
    for unit in dwarf.iter_CUs():
        program = dwarf.line_program_for_CU(unit)
        files = [entry.name.decode() for entry in program["file_entry"]]
        previous = None
        for state in (entry.state for entry in program.get_entries() if entry.state is not None):
            if previous is not None:
                for address in range(previous.address, state.address, 4):
                    found[address] = (files[previous.file - 1], previous.line)
            previous = None if state.end_sequence else state
    return found


@pytest.mark.parametrize("name", ["el1", "el2", "guest"])
def test_the_line_of_an_instruction_is_where_it_is_written(name: str) -> None:
    image = firmware.load(name)
    texts = {file: (SOURCES / file).read_text().splitlines() for file in image.files}
    assert image.rows == sorted(image.rows)
    for row in image.rows:
        text = texts[row.file][row.line - 1].partition("//")[0]
        words = text.rpartition(":")[2].split()
        assert words, f"{row.file}:{row.line} holds no instruction"
        word = int.from_bytes(image.code[row.offset : row.offset + 4], "little")
        if words[0] == "eret":
            assert word == 0xD69F03E0
        elif words[0] == "ret":
            assert word == 0xD65F03C0
        elif words[0] == "hvc":
            assert word & 0xFFE0_001F == 0xD400_0002
        elif words[0].isupper():
            assert words[0] in MACROS
    # What no line stands for only fills up.
    covered = {row.offset for row in image.rows}
    data = {offset for label, offset in image.symbols.items() if label.startswith("kcfi_")}
    for offset in range(0, image.text_size, 4):
        if offset not in covered | data:
            assert int.from_bytes(image.code[offset : offset + 4], "little") in (0, 0xD503201F), hex(offset)


def test_a_label_is_in_its_line(newest: System) -> None:
    for elf, name, base in (
        (hypervisor_elf(newest), "el2", newest.hyp.entry("hyp_vectors")),
        (hypervisor_elf(newest), "guest", newest.hyp.entry("hyp_vectors") + FIRMWARE_OFFSET),
        (kernel_elf(newest), "el1", newest.kernel.entry("el1_vectors")),
    ):
        rows = rows_of(elf)
        image = firmware.load(name)
        python = image.symbols.get("return_to_python", -8)
        checked = 0
        for row in image.rows:
            if base + row.offset in rows:
                assert rows[base + row.offset] == (f"firmware/{row.file}", row.line)
                checked += 1
            else:
                # Python, and what a guest runs at addresses of its own.
                assert python - 4 <= row.offset < python + 8 or row.offset >= 0x1000
        assert checked > 100


def test_ops_and_kernel_functions_have_no_lines(newest: System) -> None:
    hypervisor, kernel = rows_of(hypervisor_elf(newest)), rows_of(kernel_elf(newest))
    assert not set(newest.hyp.ops.stubs.values()) & hypervisor.keys()
    assert not set(newest.kernel.symbols.addresses.values()) & kernel.keys()


def test_the_sources_are_where_the_files_say(newest: System) -> None:
    for elf in (hypervisor_elf(newest), kernel_elf(newest)):
        dwarf = ELFFile(io.BytesIO(elf)).get_dwarf_info()
        for unit in dwarf.iter_CUs():
            directory = Path(unit.get_top_DIE().attributes["DW_AT_comp_dir"].value.decode())
            for entry in dwarf.line_program_for_CU(unit)["file_entry"]:
                assert (directory / entry.name.decode()).is_file()


ROWS = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from(["a.S", "b/c.S", "ä.S"]), st.integers(1, 100_000)),
    min_size=1,
    max_size=40,
)


@given(ROWS, st.integers(0, 1 << 40))
def test_rows_are_read_back(steps: list[tuple[int, str, int]], base: int) -> None:
    address = base * 4
    rows = []
    for distance, file, line in steps:
        address += 4 * distance
        rows.append(Row(address, file, line))
    functions = [Function("first", rows[0].address, 4), Function("last", rows[-1].address, 4)]
    sections = line_sections([LineUnit("a.S", "/here", []), LineUnit("a.S", "/here", rows, functions)])
    elf = write_elf([code_section(".text", rows[0].address, b"1234"), *sections], [])
    assert rows_of(elf) == {row.address: (row.file, row.line) for row in rows}
    (unit,) = ELFFile(io.BytesIO(elf)).get_dwarf_info().iter_CUs()
    dies = [die.attributes for die in unit.iter_DIEs() if die.tag == "DW_TAG_subprogram"]
    names = [(attributes["DW_AT_name"].value, attributes["DW_AT_low_pc"].value) for attributes in dies]
    assert names == [(b"first", rows[0].address), (b"last", rows[-1].address)]


def test_units_without_rows_make_no_sections() -> None:
    assert line_sections([LineUnit("a.S", "/here", [])]) == []
