"""``struct pkvm_module_ops`` has the offsets and the prototypes of each generation.

The offsets and kCFI type ids are those of real kernels; a type id is a hash of the prototype, so an id that agrees
means that every argument and result has the right type.
"""

from __future__ import annotations

import pytest
from header_snippets import A14, A14_515, A15, A16, Compile, Generation

# member: (offset on android14, android15, android16; plain id on android15; normalised id on android16)
OPS: dict[str, tuple[int | None, int | None, int | None, int | None, int | None]] = {
    "create_private_mapping": (0, 0, 0, 0xB1CE2CC1, 0xC6E3DB7F),
    "alloc_module_va": (8, 8, 8, 0x7FA7BBE7, 0x1B587CE9),
    "map_module_page": (16, 16, 16, 0x9EA0CC85, 0xE7EC639B),
    "register_serial_driver": (24, 24, 24, 0x4EE02395, 0x1B25F7B6),
    "putc": (None, 32, 32, 0x99755E2B, 0xA2FCE979),
    "puts": (32, 40, 40, 0x492FFF75, 0x1E83E1AB),
    "putx64": (40, 48, 48, 0x3E7FF605, 0xB990318E),
    "fixmap_map": (48, 56, 56, 0x7FA7BBE7, 0x1B587CE9),
    "fixmap_unmap": (56, 64, 64, 0xA540670C, 0xE5C47D60),
    "fixblock_map": (None, None, 72, None, 0x1B587CE9),
    "fixblock_unmap": (None, None, 80, None, 0xE5C47D60),
    "linear_map_early": (64, 72, 88, 0x345F5B75, 0x51D044CF),
    "linear_unmap_early": (72, 80, 96, 0x43DBF732, 0xA5CA5445),
    "flush_dcache_to_poc": (80, 88, 104, 0x43DBF732, 0xA5CA5445),
    "update_hcr_el2": (88, 96, 112, 0xA270647A, 0x4507BF62),
    "update_hfgwtr_el2": (96, 104, 120, 0xA270647A, 0x4507BF62),
    "register_host_perm_fault_handler": (104, 112, 128, 0xDC3582A8, 0x95A15B7F),
    "host_stage2_mod_prot": (112, 120, 136, 0xC29D1D3F, 0x41166EAE),
    "host_stage2_get_leaf": (120, 128, 144, 0xBE5561E6, 0xEB23EDA9),
    "host_stage2_enable_lazy_pte": (None, None, 152, None, 0x047BED87),
    "host_stage2_disable_lazy_pte": (None, None, 160, None, 0x047BED87),
    "register_host_smc_handler": (128, 136, 168, 0xEC145C79, 0x514B5177),
    "register_guest_smc_handler": (None, None, 176, None, 0xA584D656),
    "register_default_trap_handler": (136, 144, 184, 0xEC145C79, 0x514B5177),
    "register_illegal_abt_notifier": (144, 152, 192, 0x1C8F448E, 0x4200EB39),
    "register_psci_notifier": (152, 160, 200, 0x75D0F808, 0x3AE4A3F6),
    "register_hyp_panic_notifier": (160, 168, 208, 0x1C8F448E, 0x4200EB39),
    "register_unmask_serror": (None, 176, 216, 0x96A611AD, 0x3402AC43),
    "host_donate_hyp": (168, 184, 224, 0xCA3D390A, 0x5E47D2B0),
    "host_donate_hyp_prot": (None, 192, 232, 0xB7079458, 0xCE6B49CD),
    "host_donate_sglist_hyp": (None, None, 240, None, 0xF5916EE8),
    "hyp_donate_host": (176, 200, 248, 0x6FF2262D, 0x047BED87),
    "host_share_hyp": (184, 208, 256, 0xD786AD22, 0xD2D75B28),
    "host_unshare_hyp": (192, 216, 264, 0xD786AD22, 0xD2D75B28),
    "pin_shared_mem": (200, 224, 272, 0x7A328BC0, 0x6F19F500),
    "unpin_shared_mem": (208, 232, 280, 0xD2B5DD1F, 0xFFFEE5E4),
    "memcpy": (216, 240, 288, 0x973E8484, 0xE8E0B01F),
    "memset": (224, 248, 296, 0x8827A475, 0x97DFFF63),
    "hyp_pa": (232, 256, 304, 0x30EF0D73, 0x41B78B02),
    "hyp_va": (240, 264, 312, 0x7FA7BBE7, 0x1B587CE9),
    "kern_hyp_va": (248, 272, 320, 0xC73F595A, 0xB75DDCD6),
    "tracing_reserve_entry": (None, 384, 328, 0x03808A46, 0x1B587CE9),
    "tracing_commit_entry": (None, 392, 336, 0xA540670C, 0xE5C47D60),
    "tracing_mod_hyp_printk": (None, None, 344, None, 0xC2628CAF),
    "hyp_alloc": (None, 280, 352, 0x03808A46, 0x1B587CE9),
    "hyp_alloc_errno": (None, 288, 360, 0x36B1C5A6, 0x6FBB3035),
    "hyp_free": (None, 296, 368, 0xA488EBFC, 0x0EF81B7D),
    "hyp_alloc_missing_donations": (None, 344, 376, 0x076DB7B8, 0x2FAD8A96),
    "iommu_donate_pages": (None, 304, 384, 0x7D5964C3, 0xB6CACDEF),
    "iommu_reclaim_pages": (None, 312, 392, 0x7C70DB7B, 0xDFEAE308),
    "iommu_init_device": (None, 328, 400, 0xF7856FA7, 0xE0E84682),
    "udelay": (None, 336, 408, 0xAECEE44B, 0xB990318E),
    "iommu_iotlb_gather_add_page": (None, 368, 416, 0x607D334E, 0x70DB977C),
    "pkvm_unuse_dma": (None, None, 424, None, 0x047BED87),
    "list_add_valid_or_report": (None, 352, 432, 0x48D84CC5, 0xA9BC7A30),
    "list_del_entry_valid_or_report": (None, 360, 440, 0x7F4446BD, 0x2BEE8C9B),
    "iommu_snapshot_host_stage2": (None, 416, 448, 0x1B792681, 0x0F8C5A40),
    "iommu_donate_pages_atomic": (None, 400, 456, 0xCE2B41E0, 0xDA7F466F),
    "iommu_reclaim_pages_atomic": (None, 408, 464, 0x7C70DB7B, 0xDFEAE308),
    "hyp_smp_processor_id": (None, 424, 472, 0x36B1C5A6, 0x6FBB3035),
    "device_register_reset": (None, None, 480, None, 0x30EA9D70),
    "iommu_request": (None, 320, None, 0x08A98FA7, None),
    "register_hyp_event_ids": (None, 376, None, 0x3A1AEAE4, None),
}

# slots that were reserved at first: (generation, slot offset, member, plain id or None where not known)
LATER_MEMBERS = [
    (14, 256, "host_stage2_mod_prot_range", None),
    (15, 432, "iommu_flush_unmap_cache", 0x22EB563E),
    (15, 440, "host_stage2_enable_lazy_pte", 0x6FF2262D),
    (15, 448, "host_stage2_disable_lazy_pte", 0x6FF2262D),
    (15, 456, "register_guest_smc_handler", 0x20434CD1),
    (15, 464, "guest_stage2_pa", 0x6CFAD669),
    (16, 488, "register_guest_trng_ops", 0x6EF6201D),
    (16, 496, "map_module_pages", None),
    (16, 504, "unmap_module_pages", None),
    (16, 512, "request_hyp_alloc", 0x36B1C5A6),
]
SIZES = {14: 512, 15: 688, 16: 744}
RESERVED = {14: 256, 15: 432, 16: 488}
HEAD = "#include <asm/kvm_pkvm_module.h>\n"


def offset_of(member: str, android: int) -> int | None:
    return OPS[member][android - 14]


def type_ids(compile_c: Compile, generation: Generation, members: list[str], normalise: bool) -> dict[str, int]:
    source = HEAD
    for member in members:
        source += f"extern typeof(*((struct pkvm_module_ops *)0)->{member}) op_{member};\n"
        source += f"void *at_{member} = (void *)op_{member};\n"
    flags = ["-fsanitize=kcfi"] + ["-fsanitize-cfi-icall-experimental-normalize-integers"] * normalise
    built = compile_c(source, generation, level=2, flags=flags)
    return {member: built.absolute(f"__kcfi_typeid_op_{member}") & 0xFFFFFFFF for member in members}


@pytest.mark.parametrize("generation", [A14_515, A14, A15, A16], ids=str)
def test_every_member_stands_at_its_offset(compile_c: Compile, generation: Generation) -> None:
    source = HEAD
    for member in OPS:
        offset = offset_of(member, generation.android)
        if offset is not None:
            source += f'_Static_assert(offsetof(struct pkvm_module_ops, {member}) == {offset}, "{member}");\n'
    for android, offset, member, _ in LATER_MEMBERS:
        if android == generation.android:
            source += f'_Static_assert(offsetof(struct pkvm_module_ops, {member}) == {offset}, "{member}");\n'
    source += f'_Static_assert(sizeof(struct pkvm_module_ops) == {SIZES[generation.android]}, "size");\n'
    for level in (1, 2):
        compile_c(source, generation, level)


@pytest.mark.parametrize("android", [14, 15, 16])
def test_the_rows_fill_the_table_without_a_gap(android: int) -> None:
    offsets = sorted(o for m in OPS if (o := offset_of(m, android)) is not None)
    assert offsets == list(range(0, RESERVED[android], 8))
    assert RESERVED[android] + 32 * 8 == SIZES[android]


def test_prototypes_of_android15_have_the_type_ids_of_its_kernel(compile_c: Compile) -> None:
    expected = {m: row[3] for m, row in OPS.items() if row[3] is not None}
    expected |= {m: i for android, _, m, i in LATER_MEMBERS if android == 15 and i is not None}
    assert type_ids(compile_c, A15, list(expected), normalise=False) == expected


def test_prototypes_of_android16_have_the_normalised_type_ids_of_its_kernel(compile_c: Compile) -> None:
    expected = {m: row[4] for m, row in OPS.items() if row[4] is not None}
    assert type_ids(compile_c, A16, list(expected), normalise=True) == expected


def test_later_members_of_android16_have_the_type_ids_of_its_kernel(compile_c: Compile) -> None:
    expected = {m: i for android, _, m, i in LATER_MEMBERS if android == 16 and i is not None}
    assert type_ids(compile_c, A16, list(expected), normalise=False) == expected


@pytest.mark.parametrize(
    ("generation", "normalise", "init", "hypercall"),
    [(A15, False, 0xC382D712, 0xE76381D2), (A16, True, 0xF175F853, 0x878C2790), (A14, False, 0xC382D712, 0x0B81A1CD)],
    ids=["android15", "android16", "android14"],
)
def test_functions_of_a_module_have_the_ids_the_hypervisor_checks(
    compile_c: Compile, generation: Generation, normalise: bool, init: int, hypercall: int
) -> None:
    source = HEAD + (
        "extern int hyp_init(const struct pkvm_module_ops *ops);\n"
        "extern typeof(*(dyn_hcall_t)0) handler;\n"
        "void *at[] = { (void *)hyp_init, (void *)handler };\n"
    )
    flags = ["-fsanitize=kcfi"] + ["-fsanitize-cfi-icall-experimental-normalize-integers"] * normalise
    built = compile_c(source, generation, level=2, flags=flags)
    assert built.absolute("__kcfi_typeid_hyp_init") & 0xFFFFFFFF == init
    assert built.absolute("__kcfi_typeid_handler") & 0xFFFFFFFF == hypercall
