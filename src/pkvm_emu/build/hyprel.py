"""``gen-hyprel``: the list of EL2 pointers that must be rebased when a module's EL2 half moves to its hyp VA.

Source of the facts: ``arch/arm64/kvm/hyp/nvhe/gen-hyprel.c``.
"""

from __future__ import annotations

from pkvm_emu.build.elfobj import SHF_ALLOC, SHT_REL, ElfObject, Relocation, Section, relocations_of
from pkvm_emu.errors import BuildError

R_AARCH64_ABS64 = 257
R_AARCH64_PREL32 = 261

RELOCATION_SECTION = ".hyp.reloc"
SECTION_SYMBOL_PREFIX = "__hyp_section_"

ACCEPTED = {
    258: "R_AARCH64_ABS32",
    260: "R_AARCH64_PREL64",
    261: "R_AARCH64_PREL32",
    262: "R_AARCH64_PREL16",
    273: "R_AARCH64_LD_PREL_LO19",
    274: "R_AARCH64_ADR_PREL_LO21",
    275: "R_AARCH64_ADR_PREL_PG_HI21",
    276: "R_AARCH64_ADR_PREL_PG_HI21_NC",
    277: "R_AARCH64_ADD_ABS_LO12_NC",
    278: "R_AARCH64_LDST8_ABS_LO12_NC",
    279: "R_AARCH64_TSTBR14",
    280: "R_AARCH64_CONDBR19",
    282: "R_AARCH64_JUMP26",
    283: "R_AARCH64_CALL26",
    284: "R_AARCH64_LDST16_ABS_LO12_NC",
    285: "R_AARCH64_LDST32_ABS_LO12_NC",
    286: "R_AARCH64_LDST64_ABS_LO12_NC",
    287: "R_AARCH64_MOVW_PREL_G0",
    288: "R_AARCH64_MOVW_PREL_G0_NC",
    289: "R_AARCH64_MOVW_PREL_G1",
    290: "R_AARCH64_MOVW_PREL_G1_NC",
    291: "R_AARCH64_MOVW_PREL_G2",
    292: "R_AARCH64_MOVW_PREL_G2_NC",
    293: "R_AARCH64_MOVW_PREL_G3",
    299: "R_AARCH64_LDST128_ABS_LO12_NC",
    314: "R_AARCH64_PLT32",
}
"""Relocation types that stay right when the EL2 half moves as a whole (ELF for the Arm 64-bit Architecture)."""

REFUSED_NAMES = {
    0: "R_AARCH64_NONE",
    259: "R_AARCH64_ABS16",
    263: "R_AARCH64_MOVW_UABS_G0",
    264: "R_AARCH64_MOVW_UABS_G0_NC",
    265: "R_AARCH64_MOVW_UABS_G1",
    266: "R_AARCH64_MOVW_UABS_G1_NC",
    267: "R_AARCH64_MOVW_UABS_G2",
    268: "R_AARCH64_MOVW_UABS_G2_NC",
    269: "R_AARCH64_MOVW_UABS_G3",
    270: "R_AARCH64_MOVW_SABS_G0",
    271: "R_AARCH64_MOVW_SABS_G1",
    272: "R_AARCH64_MOVW_SABS_G2",
    307: "R_AARCH64_GOTREL64",
    308: "R_AARCH64_GOTREL32",
    309: "R_AARCH64_GOT_LD_PREL19",
    310: "R_AARCH64_LD64_GOTOFF_LO15",
    311: "R_AARCH64_ADR_GOT_PAGE",
    312: "R_AARCH64_LD64_GOT_LO12_NC",
    313: "R_AARCH64_LD64_GOTPAGE_LO15",
    315: "R_AARCH64_GOTPCREL32",
}
"""Names of the types that people meet when EL2 code is built with the wrong code model."""


def add_hyp_relocations(target: ElfObject) -> int:
    """Append ``.hyp.reloc`` to the partially linked EL2 object *target*.

    One s32 of value 0 for each R_AARCH64_ABS64 in an allocated ``.hyp.*`` section, with an R_AARCH64_PREL32 to
    ``__hyp_section_<section>`` plus the offset of the pointer. Returns the number of entries; the section exists even
    when there are none. Raises BuildError for a relocation that cannot work at EL2, naming it.
    """
    starts = {symbol.name: index for index, symbol in enumerate(target.symbols) if symbol.name}
    entries: list[Relocation] = []
    for table, section in target.relocation_sections():
        if not (section.flags & SHF_ALLOC and section.name.startswith(".hyp.")):
            continue
        if table.type == SHT_REL:
            raise BuildError(f"EL2 section {section.name}: {table.name} has no addends (SHT_REL), only RELA is usable")
        for relocation in relocations_of(table):
            if relocation.type != R_AARCH64_ABS64:
                _check(target, section, relocation)
                continue
            start = starts.get(SECTION_SYMBOL_PREFIX + section.name)
            if start is None:
                raise BuildError(
                    f"{section.name}+{relocation.offset:#x}: a pointer in a section that is not mapped at EL2"
                )
            entries.append(Relocation(4 * len(entries), R_AARCH64_PREL32, start, relocation.offset))
    index = target.add_section(Section(RELOCATION_SECTION, flags=SHF_ALLOC, data=bytes(4 * len(entries)), align=4))
    if entries:
        target.add_relocations(index, entries)
    return len(entries)


def _check(target: ElfObject, section: Section, relocation: Relocation) -> None:
    if relocation.type in ACCEPTED:
        return
    name = REFUSED_NAMES.get(relocation.type, f"type {relocation.type}")
    symbol = target.symbols[relocation.symbol]
    what = symbol.name or (target.sections[symbol.section].name if symbol.section < len(target.sections) else "?")
    raise BuildError(
        f"EL2 code: unexpected relocation {name} at {section.name}+{relocation.offset:#x} to {what}; "
        "it cannot be rebased to the hyp address space (is the object built with -fPIC or -mcmodel=large?)"
    )
