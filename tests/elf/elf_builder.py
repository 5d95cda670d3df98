"""Writes small ELF objects for the tests of this layer."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

ALLOC, WRITE, EXEC = 2, 1, 4
PROGBITS, SYMTAB, STRTAB, RELA, NOBITS, REL = 1, 2, 3, 4, 8, 9
NOTYPE, OBJECT, FUNC, SECTION = 0, 1, 2, 3
LOCAL, GLOBAL, WEAK = 0, 1, 2
ABS, COMMON = 0xFFF1, 0xFFF2
NOP = 0xD503201F


def words(*values: int) -> bytes:
    """Instruction words as bytes."""
    return struct.pack(f"<{len(values)}I", *values)


@dataclass
class _Section:
    name: str
    type: int
    flags: int
    align: int
    data: bytes
    size: int
    link: int = 0
    info: int = 0
    entsize: int = 0


@dataclass
class ElfBuilder:
    """Sections and symbols get their numbers in the order of the calls; ``build`` adds the tables behind them."""

    machine: int = 183
    kind: int = 1
    sections: list[_Section] = field(default_factory=lambda: [_Section("", 0, 0, 0, b"", 0)])
    symbols: list[tuple[str, int, int, int, int]] = field(default_factory=lambda: [("", 0, 0, 0, 0)])
    relocations: list[tuple[str, int, int, bytes]] = field(default_factory=list)

    def section(self, name, data=b"", flags=ALLOC, align=8, type=PROGBITS, size=None, entsize=0) -> int:
        size = len(data) if size is None else size
        self.sections.append(_Section(name, type, flags, align, data, size, entsize=entsize))
        return len(self.sections) - 1

    def text(self, name, *values, align=4) -> int:
        return self.section(name, words(*values), ALLOC | EXEC, align)

    def bss(self, name, size, align=8) -> int:
        return self.section(name, b"", ALLOC | WRITE, align, NOBITS, size)

    def symbol(self, name, section=0, value=0, size=0, bind=GLOBAL, type=NOTYPE) -> int:
        self.symbols.append((name, bind << 4 | type, section, value, size))
        return len(self.symbols) - 1

    def function(self, name, section, value=0, size=0) -> int:
        return self.symbol(name, section, value, size, GLOBAL, FUNC)

    def section_symbol(self, section) -> int:
        return self.symbol("", section, bind=LOCAL, type=SECTION)

    def rela(self, target, *entries, name=None, type=RELA) -> None:
        data = b"".join(struct.pack("<QIIq", offset, kind, symbol, addend) for offset, kind, symbol, addend in entries)
        self.relocations.append((name or ".rela" + self.sections[target].name, type, target, data))

    def build(self) -> bytes:
        sections = list(self.sections)
        symtab_number = len(sections) + len(self.relocations)
        for name, kind, target, data in self.relocations:
            sections.append(_Section(name, kind, 0, 8, data, len(data), symtab_number, target, 24))
        strings, symbols = bytearray(b"\0"), b""
        for name, info, section, value, size in self.symbols:
            symbols += struct.pack("<IBBHQQ", _add(strings, name), info, 0, section, value, size)
        sections.append(_Section(".symtab", SYMTAB, 0, 8, symbols, len(symbols), symtab_number + 1, 1, 24))
        sections.append(_Section(".strtab", STRTAB, 0, 1, bytes(strings), len(strings)))
        names = bytearray(b"\0")
        _add(names, ".shstrtab")
        offsets = [_add(names, section.name) for section in sections]
        sections.append(_Section(".shstrtab", STRTAB, 0, 1, bytes(names), len(names)))
        offsets.append(1)
        return _assemble(sections, offsets, self.machine, self.kind)


def _add(table: bytearray, name: str) -> int:
    if not name:
        return 0
    offset = len(table)
    table += name.encode() + b"\0"
    return offset


def _assemble(sections, names, machine, kind) -> bytes:
    body, headers = bytearray(64), b""
    for section, name in zip(sections, names):
        offset = 0
        if section.type:
            body += bytes(-len(body) % 8)
            offset = len(body)
            body += section.data
        headers += struct.pack(
            "<IIQQQQIIQQ", name, section.type, section.flags, 0, offset, section.size,
            section.link, section.info, section.align, section.entsize,
        )  # fmt: skip
    body += bytes(-len(body) % 8)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    count = len(sections)
    struct.pack_into(
        "<16sHHIQQQIHHHHHH", body, 0, ident, kind, machine, 1, 0, 0, len(body), 0, 64, 0, 0, 64, count, count - 1
    )
    return bytes(body + headers)


def module_builder() -> ElfBuilder:
    """A small EL2 module: both halves, a hyp relocation, struct module."""
    elf = ElfBuilder()
    text = elf.text(".text", NOP, 0x94000000, 0xD65F03C0)
    hyp_text = elf.text(".hyp.text", NOP, 0x90000000, 0xF9400000, 0xD65F03C0, align=4096)
    elf.bss(".hyp.bss", 4096, 4096)
    hyp_data = elf.section(".hyp.data", bytes(4096), ALLOC | WRITE, 4096)
    reloc = elf.section(".hyp.reloc", bytes(4), ALLOC, 4)
    this_module = elf.section(".gnu.linkonce.this_module", bytes(1024), ALLOC | WRITE, 64)
    init = elf.function("init_module", text, 0, 12)
    kernel = elf.symbol("_printk")
    hyp_init = elf.function("__kvm_nvhe_hyp_init", hyp_text, 0, 16)
    hyp_value = elf.symbol("__kvm_nvhe_value", hyp_data, 8, 8, type=OBJECT)
    elf.symbol("__this_module", this_module, 0, 1024, type=OBJECT)
    elf.rela(text, (4, 283, kernel, 0))
    elf.rela(hyp_text, (4, 275, hyp_value, 0), (8, 286, hyp_value, 0), name=".rela.text")
    elf.rela(hyp_data, (8, 257, hyp_init, 4), name=".rela.data")
    elf.rela(reloc, (0, 261, hyp_value, 0))
    elf.rela(this_module, (0x178, 257, init, 0))
    return elf
