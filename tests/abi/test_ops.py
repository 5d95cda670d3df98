"""The op tables of the three layouts."""

import pytest

from pkvm_emu.abi.ops import CALLBACK_KCFI, callbacks, kcfi_mode_of, ops_table
from pkvm_emu.abi.ops_table import LAYOUTS, ROWS

# op, offsets in a14/a15/a16, plain id of a15, normalised id of a16: read from headers and from compiled objects.
KNOWN = """
create_private_mapping 0 0 0 b1ce2cc1 c6e3db7f
alloc_module_va 8 8 8 7fa7bbe7 1b587ce9
map_module_page 16 16 16 9ea0cc85 e7ec639b
register_serial_driver 24 24 24 4ee02395 1b25f7b6
putc - 32 32 99755e2b a2fce979
puts 32 40 40 492fff75 1e83e1ab
putx64 40 48 48 3e7ff605 b990318e
linear_map_early 64 72 88 345f5b75 51d044cf
flush_dcache_to_poc 80 88 104 43dbf732 a5ca5445
update_hcr_el2 88 96 112 a270647a 4507bf62
register_host_perm_fault_handler 104 112 128 dc3582a8 95a15b7f
host_stage2_mod_prot 112 120 136 c29d1d3f 41166eae
host_stage2_get_leaf 120 128 144 be5561e6 eb23eda9
register_host_smc_handler 128 136 168 ec145c79 514b5177
register_guest_smc_handler - - 176 - a584d656
register_illegal_abt_notifier 144 152 192 1c8f448e 4200eb39
register_psci_notifier 152 160 200 75d0f808 3ae4a3f6
register_unmask_serror - 176 216 96a611ad 3402ac43
host_donate_hyp 168 184 224 ca3d390a 5e47d2b0
host_donate_hyp_prot - 192 232 b7079458 ce6b49cd
host_donate_sglist_hyp - - 240 - f5916ee8
hyp_donate_host 176 200 248 6ff2262d 047bed87
host_share_hyp 184 208 256 d786ad22 d2d75b28
pin_shared_mem 200 224 272 7a328bc0 6f19f500
unpin_shared_mem 208 232 280 d2b5dd1f fffee5e4
memcpy 216 240 288 973e8484 e8e0b01f
memset 224 248 296 8827a475 97dfff63
hyp_pa 232 256 304 30ef0d73 41b78b02
kern_hyp_va 248 272 320 c73f595a b75ddcd6
tracing_reserve_entry - 384 328 03808a46 1b587ce9
tracing_mod_hyp_printk - - 344 - c2628caf
hyp_alloc - 280 352 03808a46 1b587ce9
hyp_alloc_missing_donations - 344 376 076db7b8 2fad8a96
iommu_donate_pages - 304 384 7d5964c3 b6cacdef
iommu_request - 320 - 08a98fa7 -
iommu_init_device - 328 400 f7856fa7 e0e84682
iommu_iotlb_gather_add_page - 368 416 607d334e 70db977c
pkvm_unuse_dma - - 424 - 047bed87
list_add_valid_or_report - 352 432 48d84cc5 a9bc7a30
list_del_entry_valid_or_report - 360 440 7f4446bd 2bee8c9b
register_hyp_event_ids - 376 - 3a1aeae4 -
iommu_snapshot_host_stage2 - 416 448 1b792681 0f8c5a40
iommu_donate_pages_atomic - 400 456 ce2b41e0 da7f466f
hyp_smp_processor_id - 424 472 36b1c5a6 6fbb3035
device_register_reset - - 480 - 30ea9d70
"""


@pytest.mark.parametrize("line", KNOWN.strip().splitlines(), ids=lambda line: line.split()[0])
def test_offsets_and_ids_are_those_of_the_branches(line):
    name, *offsets, plain, normalised = line.split()
    for layout, offset in zip(LAYOUTS, offsets, strict=True):
        table = ops_table(layout)
        found = table.by_name.get(name)
        if offset == "-":
            assert found is None or found.lts
        else:
            assert found.offset == int(offset)
    if plain != "-":
        assert ops_table("a15")[name].kcfi("plain") == int(plain, 16)
    if normalised != "-":
        assert ops_table("a16")[name].kcfi("normalised") == int(normalised, 16)


@pytest.mark.parametrize(
    ("layout", "size", "members", "last"), [("a14", 512, 32, 0xF8), ("a15", 688, 54, 0x1A8), ("a16", 744, 61, 0x1E0)]
)
def test_a_table_is_full_from_the_first_member_to_the_last_reserve(layout, size, members, last):
    table = ops_table(layout)
    assert table.size == size
    assert [slot.offset for slot in table] == list(range(0, size, 8))
    assert len(table.members) == members
    assert table.members[-1].offset == last
    assert [slot.reserve for slot in table.slots[members:]] == list(range(1, 33))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_lookups_reach_every_slot(layout):
    table = ops_table(layout)
    assert len(table.by_name) == len(table.by_offset) == len(table) == table.size // 8
    assert all(table[slot.name] is table.by_offset[slot.offset] is slot for slot in table)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_served_slot_says_what_it_does_and_has_ids_and_unused_reserves_have_none(layout):
    for slot in ops_table(layout):
        if slot.prototype:
            assert slot.semantics
            assert 0 < slot.kcfi_plain < 1 << 32
            assert 0 < slot.kcfi_normalised < 1 << 32
            assert slot.kcfi("none") is None
        else:
            assert slot.name == f"reserved{slot.reserve}"
            assert slot.kcfi("plain") is slot.kcfi("normalised") is None


@pytest.mark.parametrize(
    ("layout", "offset", "name", "plain", "normalised"),
    [
        ("a15", 432, "iommu_flush_unmap_cache", 0x22EB563E, 0xD820F466),
        ("a15", 440, "host_stage2_enable_lazy_pte", 0x6FF2262D, 0x047BED87),
        ("a15", 456, "register_guest_smc_handler", 0x20434CD1, 0x52CF486E),
        ("a15", 464, "guest_stage2_pa", 0x6CFAD669, 0x273D8197),
        ("a16", 488, "register_guest_trng_ops", 0x6EF6201D, 0x54D67674),
        ("a16", 496, "map_module_pages", 0xAFF093DE, 0xAC9A14E8),
        ("a16", 504, "unmap_module_pages", 0x829016A7, 0xAED2893A),
        ("a16", 512, "request_hyp_alloc", 0x36B1C5A6, 0x6FBB3035),
    ],
)
def test_later_releases_put_ops_into_reserve_slots(layout, offset, name, plain, normalised):
    slot = ops_table(layout).by_offset[offset]
    assert (slot.name, slot.lts) == (name, True)
    assert (slot.kcfi_plain, slot.kcfi_normalised) == (plain, normalised)


def test_android14_has_one_later_op_in_its_first_reserve_slot():
    slot = ops_table("a14").by_offset[256]
    assert (slot.name, slot.reserve, slot.lts) == ("host_stage2_mod_prot_range", 1, True)


def test_arguments_differ_where_the_branches_differ():
    assert ops_table("a14")["host_donate_hyp"].prototype == "int (u64 pfn, u64 nr_pages)"
    assert "accept_mmio" in ops_table("a15")["host_donate_hyp"].prototype
    assert "u32 *level" in ops_table("a15")["host_stage2_get_leaf"].prototype
    assert "s8 *level" in ops_table("a16")["host_stage2_get_leaf"].prototype
    assert "kvm_cpu_context" in ops_table("a14")["register_host_smc_handler"].prototype
    assert not any("{" in slot.prototype for layout in LAYOUTS for slot in ops_table(layout))


def test_no_op_is_declared_twice():
    assert len({row.name for row in ROWS}) == len(ROWS) == 63


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="known: a14, a15, a16"):
        ops_table("a13")


@pytest.mark.parametrize(
    ("layout", "kind", "plain", "normalised"),
    [
        ("a14", "hcall", 0x0B81A1CD, 0xB92115EB),
        ("a16", "hcall", 0xE76381D2, 0x878C2790),
        ("a16", "el2_init", 0xC382D712, 0xF175F853),
        ("a15", "smc_handler", 0x0FFEA198, 0x422F2FBF),
        ("a14", "smc_handler", 0xB76B14DF, 0x8B4D0E1A),
        ("a15", "guest_smc_handler", 0x67970809, 0xCA6BA9B6),
        ("a16", "guest_smc_handler", 0x26D1E76E, 0x43D8BE93),
        ("a16", "perm_fault_handler", 0x40937329, 0xAC9F3860),
        ("a16", "psci_notifier", 0xE0C0B8FE, 0x9D21DC06),
        ("a16", "serial_putc", 0x99755E2B, 0xA2FCE979),
        ("a16", "unmask_serror", 0x7F318E9B, 0x2FAD8A96),
        ("a16", "mask_serror", 0xA540670C, 0xE5C47D60),
        ("a16", "device_reset", 0x851588C7, 0xB2A4BA31),
        ("a16", "trng_rnd64", 0xD50B1C84, 0x8BAB26B5),
        ("a16", "module_init", 0x36B1C5A6, 0x6FBB3035),
        ("a16", "module_exit", 0xA540670C, 0xE5C47D60),
    ],
)
def test_callbacks_have_the_ids_of_compiled_modules(layout, kind, plain, normalised):
    callback = CALLBACK_KCFI[layout][kind]
    assert (callback.kcfi_plain, callback.kcfi_normalised) == (plain, normalised)


def test_the_word_before_a_function_tells_the_kcfi_mode():
    assert kcfi_mode_of(0x6FBB3035, "module_init") == "normalised"
    assert kcfi_mode_of(0x36B1C5A6, "module_init") == "plain"
    assert kcfi_mode_of(0xD503201F, "module_init") is None
    assert "guest_smc_handler" not in callbacks("a14")
