"""Alternatives and static keys: what is patched, and where moved branches go."""

from __future__ import annotations

import struct

import pytest

from pkvm_emu.elf.alternatives import apply_alternatives, parse_alternatives
from pkvm_emu.elf.instruction import IMM19, IMM26, decode_adr
from pkvm_emu.elf.layout import Layout
from pkvm_emu.elf.link import LinkedImage, link
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.elf.static_keys import apply_static_key, static_keys
from pkvm_emu.errors import InputError

from .elf_builder import ALLOC, NOP, WRITE, ElfBuilder

BASE = 0xFFFF_FFC0_0000_0000
KERNEL = BASE + 0x100_0000
RET = 0xD65F03C0
BRK = 0xD4210000


def with_alternatives(code: list[int], *entries: tuple[int, object, int, int, int]) -> LinkedImage:
    """Entries are (original offset, replacement offset or callback name, capability, lengths)."""
    elf = ElfBuilder()
    text = elf.text(".text", *code)
    table = elf.section(
        ".altinstructions",
        b"".join(struct.pack("<iiHBB", 0, 0, capability, *lengths) for _, _, capability, *lengths in entries),
    )
    base = elf.section_symbol(text)
    for number, (original, replacement, *_) in enumerate(entries):
        by_name = isinstance(replacement, str)
        elf.rela(
            table,
            (12 * number, 261, base, original),
            (12 * number + 4, 261, elf.symbol(replacement) if by_name else base, 0 if by_name else replacement),
        )
    module = ModuleFile.parse(elf.build(), "m.ko")
    return link(module, Layout.assign(module, BASE), lambda name: KERNEL)


def code(image: LinkedImage) -> list[int]:
    size = image.module.section(".text").size
    return list(struct.unpack(f"<{size // 4}I", image.read(image.section_va(".text"), size)))


def test_entries_are_read_with_their_callback():
    image = with_alternatives([NOP] * 4, (4, "alt_cb_patch_nops", 0x8001, 4, 0), (0, 8, 51, 8, 8))
    assert parse_alternatives(image) == [
        (BASE + 4, KERNEL, 1, 4, 0, True, "alt_cb_patch_nops"),
        (BASE, BASE + 8, 51, 8, 8, False, None),
    ]


def test_protected_mode_test_of_a_module_is_patched_into_the_load_path():
    # b BUG / nop / ret / BUG: brk / load: ret / replacement: b load
    image = with_alternatives(
        [0x14000003, NOP, RET, BRK, RET, 0x17FFFFFF], (0, "alt_cb_patch_nops", 0x8001, 4, 0), (4, 20, 51, 4, 4)
    )
    report = apply_alternatives(image, lambda capability: capability in (1, 51))
    assert len(report.applied) == 2
    assert code(image)[:2] == [NOP, 0x14000003]


def test_unwanted_capabilities_keep_their_originals():
    image = with_alternatives([RET, NOP, BRK, BRK], (0, 8, 33, 8, 8))
    assert apply_alternatives(image, lambda capability: False).applied == []
    assert code(image) == [RET, NOP, BRK, BRK]


@pytest.mark.parametrize(
    ("word", "field"), [(0x14000000, IMM26), (0x94000000, IMM26), (0x54000001, IMM19), (0xB4000007, IMM19)]
)
def test_branch_out_of_the_replacement_keeps_its_target(word, field):
    image = with_alternatives([NOP] * 6 + [field.encode(word, -4), NOP], (4, 24, 2, 8, 8))
    apply_alternatives(image, lambda capability: True)
    moved = code(image)[1]
    assert field.encode(moved, 0) == field.encode(word, 0)
    assert 4 + 4 * field.decode(moved) == 24 - 16


def test_branch_inside_of_the_replacement_moves_along():
    image = with_alternatives([NOP] * 4 + [0x14000001, RET], (0, 16, 2, 8, 8))
    apply_alternatives(image, lambda capability: True)
    assert code(image)[:2] == [0x14000001, RET]


def test_adrp_keeps_its_target_page():
    image = with_alternatives([NOP] + [RET] * 1023 + [0xB0000003], (0, 4096, 2, 4, 4))
    apply_alternatives(image, lambda capability: True)
    assert decode_adr(code(image)[0]) == 2
    assert code(image)[0] & 0x1F == 3


@pytest.mark.parametrize("word", [0x10000000, 0x58000000, 0x98000000])
def test_literal_references_cannot_be_moved(word):
    image = with_alternatives([NOP, word], (0, 4, 2, 4, 4))
    with pytest.raises(
        InputError, match=r"m\.ko: the alternative at \.text\+0x4 is PC-relative code .* moved to \.text\+0x0"
    ):
        apply_alternatives(image, lambda capability: True)


def test_branch_that_would_leave_its_range_is_refused():
    filler = [NOP] * 8200
    # tbz w0, #0, .+0x7ffc moved down by 0x8020 bytes is out of ±32 KiB.
    image = with_alternatives([NOP, *filler, 0x3603FFE0], (0, 4 * 8201, 2, 4, 4))
    with pytest.raises(InputError, match="cannot be moved"):
        apply_alternatives(image, lambda capability: True)


def test_shorter_replacement_is_padded_with_nops():
    image = with_alternatives([RET, RET, BRK, 0xD503203F], (0, 12, 2, 12, 4))
    apply_alternatives(image, lambda capability: True)
    assert code(image)[:3] == [0xD503203F, NOP, NOP]


def test_callback_that_nobody_serves_is_reported_and_changes_nothing():
    image = with_alternatives([RET], (0, "alt_cb_unknown", 0x8001, 4, 0))
    report = apply_alternatives(image, lambda capability: True)
    assert [entry.callback for entry in report.unserved] == ["alt_cb_unknown"]
    assert (report.applied, code(image)) == ([], [RET])


def test_callback_without_the_flag_bit_is_known_by_its_empty_replacement():
    image = with_alternatives([RET, RET], (0, "alt_cb_patch_nops", 60, 8, 0))
    apply_alternatives(image, lambda capability: capability == 60)
    assert code(image) == [NOP, NOP]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ((0, 4, 1, 3, 3), "is not made of whole instructions"),
        ((2, 4, 1, 4, 4), "is not made of whole instructions"),
        ((1 << 20, 0, 1, 4, 4), "patches 0x[0-9a-f]+, outside of the module's sections"),
        ((12, 0, 1, 8, 8), "patches 0x[0-9a-f]+, outside of the module's sections"),
        ((0, 1 << 20, 1, 4, 4), "takes code from 0x[0-9a-f]+, outside of the module's sections"),
        ((0, 4, 1, 4, 8), "replaces 4 bytes by 8"),
    ],
)
def test_unsound_entry_is_refused(entry, reason):
    with pytest.raises(InputError, match=rf"m\.ko: \.altinstructions entry 0 {reason}"):
        apply_alternatives(with_alternatives([NOP] * 4, entry), lambda capability: False)


def with_static_keys(likely: int = 0) -> LinkedImage:
    elf = ElfBuilder()
    text = elf.text(".text", NOP, NOP, RET, BRK)
    data = elf.section(".data", bytes(32), ALLOC | WRITE)
    table = elf.section("__jump_table", bytes(48), ALLOC | WRITE)
    base, keys, own = elf.section_symbol(text), elf.symbol("cpu_hwcap_keys"), elf.section_symbol(data)
    elf.symbol("my_key", data, 16, 16, type=1)
    for entry, place, key, addend in ((0, 0, keys, 0x290), (16, 4, keys, 0x10), (32, 4, own, 16)):
        elf.rela(table, (entry, 261, base, place), (entry + 4, 261, base, 12), (entry + 8, 260, key, addend | likely))
    module = ModuleFile.parse(elf.build(), "m.ko")
    return link(module, Layout.assign(module, BASE), lambda name: KERNEL)


def test_static_keys_are_named_by_symbol_and_offset():
    entries = static_keys(with_static_keys())
    assert [(part.key, part.key_offset, part.code, part.target) for part in entries] == [
        ("cpu_hwcap_keys", 0x290, BASE, BASE + 12),
        ("cpu_hwcap_keys", 0x10, BASE + 4, BASE + 12),
        ("my_key", 0, BASE + 4, BASE + 12),
    ]
    assert entries[0].key_va == KERNEL + 0x290


@pytest.mark.parametrize(
    ("likely", "enabled", "word"), [(0, True, 0x14000003), (0, False, NOP), (1, True, NOP), (1, False, 0x14000003)]
)
def test_static_key_becomes_a_branch_or_a_nop(likely, enabled, word):
    image = with_static_keys(likely)
    assert apply_static_key(image, "cpu_hwcap_keys", enabled, 0x290) == 1
    assert code(image) == [word, NOP, RET, BRK]


def test_all_places_of_a_key_array_are_set_without_an_offset():
    image = with_static_keys()
    assert apply_static_key(image, "cpu_hwcap_keys", True) == 2
    assert code(image)[:2] == [0x14000003, 0x14000002]
    assert apply_static_key(image, "unknown_key", True) == 0


def test_static_key_outside_of_the_module_is_refused():
    elf = ElfBuilder()
    elf.section("__jump_table", struct.pack("<iiq", 1 << 20, 0, 0), ALLOC | WRITE)
    module = ModuleFile.parse(elf.build(), "m.ko")
    image = link(module, Layout.assign(module, BASE), lambda name: None)
    with pytest.raises(InputError, match=r"__jump_table entry 0 patches 0x[0-9a-f]+, which is no instruction"):
        static_keys(image)
