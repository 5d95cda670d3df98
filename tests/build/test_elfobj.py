"""ELF objects survive reading and writing, and take new sections, relocations and symbol names."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st

from pkvm_emu.build.elfobj import (
    SHF_ALLOC,
    SHF_WRITE,
    SHT_NOBITS,
    STB_GLOBAL,
    ElfObject,
    Relocation,
    Section,
    Symbol,
    relocations_of,
)
from pkvm_emu.errors import BuildError

GLOBAL = STB_GLOBAL << 4


def sample() -> ElfObject:
    target = ElfObject()
    data = target.add_section(Section(".data", flags=SHF_ALLOC | SHF_WRITE, data=b"12345678" * 2, align=8))
    target.add_section(Section(".bss", SHT_NOBITS, SHF_ALLOC | SHF_WRITE, size=4096, align=4096))
    symbol = target.add_symbol(Symbol("target", 4, 8, GLOBAL | 1, section=data))
    target.add_relocations(data, [Relocation(8, 257, symbol, -4)])
    return target


def test_what_is_written_is_what_other_readers_read() -> None:
    elf = ELFFile(io.BytesIO(sample().serialize()))
    assert elf["e_machine"] == "EM_AARCH64"
    assert elf["e_type"] == "ET_REL"
    assert elf.get_section_by_name(".data").data() == b"12345678" * 2
    bss = elf.get_section_by_name(".bss")
    assert (bss["sh_type"], bss["sh_size"], bss["sh_addralign"]) == ("SHT_NOBITS", 4096, 4096)
    (relocation,) = elf.get_section_by_name(".rela.data").iter_relocations()
    symbol = elf.get_section_by_name(".symtab").get_symbol(relocation["r_info_sym"])
    assert (symbol.name, relocation["r_info_type"], relocation["r_addend"]) == ("target", 257, -4)


def test_reading_gives_back_what_was_written() -> None:
    image = sample().serialize()
    again = ElfObject.parse(image)
    assert again.serialize() == image
    (table, target), *more = again.relocation_sections()
    assert (target.name, relocations_of(table), more) == (".data", [Relocation(8, 257, 1, -4)], [])


def test_sections_lie_at_their_alignment_in_the_file() -> None:
    for section in ELFFile(io.BytesIO(sample().serialize())).iter_sections():
        assert section["sh_offset"] % max(section["sh_addralign"], 1) == 0


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), max_size=8))
def test_any_symbol_names_survive(names: list[str]) -> None:
    target = ElfObject()
    for name in names:
        target.add_symbol(Symbol(name, info=GLOBAL))
    assert [symbol.name for symbol in ElfObject.parse(target.serialize()).symbols[1:]] == names


def test_a_local_symbol_cannot_be_appended_behind_global_ones() -> None:
    with pytest.raises(ValueError, match="local symbol"):
        sample().add_symbol(Symbol("late"))


@pytest.mark.parametrize("damage", [b"", b"\x7fELF", b"not an ELF file at all" * 10])
def test_other_files_are_refused_in_one_line(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "x.o"
    path.write_bytes(damage)
    with pytest.raises(BuildError, match=r"x\.o is not an AArch64 relocatable object"):
        ElfObject.read(path)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_damaged_object_gives_an_error_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    image = bytearray(sample().serialize())
    for _ in range(data.draw(st.integers(1, 4))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "x.o"
    path.write_bytes(image[: data.draw(st.integers(0, len(image)))])
    with contextlib.suppress(BuildError):
        for table, _ in ElfObject.read(path).relocation_sections():
            relocations_of(table)
