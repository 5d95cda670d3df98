"""gen-hyprel lists the EL2 pointers and refuses what cannot move."""

from __future__ import annotations

import pytest

from pkvm_emu.build.elfobj import SHF_ALLOC, SHT_REL, STB_GLOBAL, ElfObject, Relocation, Section, Symbol, relocations_of
from pkvm_emu.build.hyprel import ACCEPTED, add_hyp_relocations
from pkvm_emu.errors import BuildError

ABS64, PREL32 = 257, 261


def hyp_object(*relocations: Relocation, section: str = ".hyp.data", flags: int = SHF_ALLOC) -> ElfObject:
    target = ElfObject()
    index = target.add_section(Section(section, flags=flags, data=bytes(64), align=8))
    target.add_symbol(Symbol(f"__hyp_section_{section}", info=STB_GLOBAL << 4, section=index))
    target.add_symbol(Symbol("thing", info=STB_GLOBAL << 4))
    target.add_relocations(index, list(relocations))
    return target


def hyp_reloc(target: ElfObject) -> tuple[Section, list[Relocation]]:
    index = target.section_index(".hyp.reloc")
    assert index is not None
    tables = [table for table, section in target.relocation_sections() if section is target.sections[index]]
    return target.sections[index], [entry for table in tables for entry in relocations_of(table)]


def test_each_pointer_gets_one_word_and_a_reference_to_its_place() -> None:
    target = hyp_object(Relocation(8, ABS64, 2, 0), Relocation(4, PREL32, 2, 0), Relocation(40, ABS64, 2, 7))
    assert add_hyp_relocations(target) == 2
    section, relocations = hyp_reloc(target)
    assert (section.data, section.align, section.flags) == (bytes(8), 4, SHF_ALLOC)
    assert relocations == [Relocation(0, PREL32, 1, 8), Relocation(4, PREL32, 1, 40)]


def test_without_pointers_the_section_exists_and_is_empty() -> None:
    target = hyp_object(Relocation(4, PREL32, 2, 0))
    assert add_hyp_relocations(target) == 0
    section, relocations = hyp_reloc(target)
    assert (section.size, relocations) == (0, [])


@pytest.mark.parametrize(("section", "flags"), [(".debug_info", 0), (".altinstructions", SHF_ALLOC), (".hyp.note", 0)])
def test_only_allocated_el2_sections_count(section: str, flags: int) -> None:
    assert add_hyp_relocations(hyp_object(Relocation(0, 263, 2, 0), section=section, flags=flags)) == 0


@pytest.mark.parametrize("kind", sorted(ACCEPTED))
def test_position_independent_types_pass_silently(kind: int) -> None:
    assert add_hyp_relocations(hyp_object(Relocation(0, kind, 2, 0))) == 0


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (0, "R_AARCH64_NONE"),
        (263, "R_AARCH64_MOVW_UABS_G0"),
        (269, "R_AARCH64_MOVW_UABS_G3"),
        (311, "R_AARCH64_ADR_GOT_PAGE"),
        (312, "R_AARCH64_LD64_GOT_LO12_NC"),
        (259, "R_AARCH64_ABS16"),
        (999, "type 999"),
    ],
)
def test_other_types_are_refused_by_name_and_place(kind: int, name: str) -> None:
    with pytest.raises(BuildError, match=rf"unexpected relocation {name} at \.hyp\.data\+0x10 to thing"):
        add_hyp_relocations(hyp_object(Relocation(16, kind, 2, 0)))


def test_relocations_without_addends_are_refused() -> None:
    target = hyp_object(Relocation(0, ABS64, 2, 0))
    target.sections[-1].type = SHT_REL
    with pytest.raises(BuildError, match="SHT_REL"):
        add_hyp_relocations(target)


def test_a_pointer_in_a_section_that_el2_does_not_map_is_refused() -> None:
    target = hyp_object(Relocation(8, ABS64, 2, 0))
    target.symbols[1].name = "other"
    with pytest.raises(BuildError, match=r"\.hyp\.data\+0x8: a pointer in a section that is not mapped at EL2"):
        add_hyp_relocations(target)
