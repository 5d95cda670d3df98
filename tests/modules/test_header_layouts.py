"""Structures and constants of the module headers have the layout of each generation."""

from __future__ import annotations

import pytest
from header_snippets import A14, A14_515, A15, A16, GENERATIONS, Compile, CompileError, Generation

HEADERS = """
#include <linux/module.h>
#include <linux/arm-smccc.h>
#include <linux/iommu.h>
#include <linux/trace_events.h>
#include <asm/kvm_hypevents_defs.h>
#include <asm/kvm_hyptrace.h>
#include <asm/kvm_mmu.h>
#include <asm/kvm_pkvm_module.h>
#define AT(type, member, offset) _Static_assert(offsetof(type, member) == (offset), #type "." #member);
#define SIZE(type, size) _Static_assert(sizeof(type) == (size), #type);
#define IS(expression, value) _Static_assert((expression) == (value), #expression);
"""

# the same in every generation
COMMON = """
SIZE(struct user_pt_regs, 272) AT(struct user_pt_regs, sp, 248) AT(struct user_pt_regs, pc, 256)
AT(struct user_pt_regs, pstate, 264)
AT(struct kvm_cpu_context, regs, 0) AT(struct kvm_cpu_context, spsr_abt, 272)
AT(struct kvm_cpu_context, fp_regs, 304) AT(struct kvm_cpu_context, sys_regs, 832)
AT(struct kvm_cpu_context, __hyp_running_vcpu, 3088) SIZE(struct kvm_cpu_context, 3104)
SIZE(struct arm_smccc_res, 32) SIZE(struct arm_smccc_1_2_regs, 144) AT(struct arm_smccc_1_2_regs, a17, 136)
SIZE(struct pkvm_sglist_page, 6) AT(struct pkvm_sglist_page, order, 5)
SIZE(struct pkvm_module_section, 16)
SIZE(enum pkvm_psci_notification, 4) IS(PKVM_PSCI_CPU_SUSPEND, 0) IS(PKVM_PSCI_SYSTEM_SUSPEND, 1)
IS(PKVM_PSCI_CPU_ENTRY, 2)
SIZE(enum kvm_pgtable_prot, 8) IS(KVM_PGTABLE_PROT_X, 1) IS(KVM_PGTABLE_PROT_W, 2) IS(KVM_PGTABLE_PROT_R, 4)
IS(KVM_PGTABLE_PROT_DEVICE, 8) IS(KVM_PGTABLE_PROT_PXN, 0x20) IS(KVM_PGTABLE_PROT_UXN, 0x40)
IS(KVM_PGTABLE_PROT_SW0, 1UL << 55) IS(KVM_PGTABLE_PROT_SW3, 1UL << 58)
IS(KVM_PGTABLE_PROT_RWX, 7) IS(PAGE_HYP, 6) IS(PAGE_HYP_EXEC, 5) IS(PAGE_HYP_RO, 4) IS(PAGE_HYP_DEVICE, 0xe)
SIZE(struct kvm_hyp_req, 24) AT(struct kvm_hyp_req, mem.dest, 8) AT(struct kvm_hyp_req, mem.nr_pages, 12)
AT(struct kvm_hyp_req, mem.sz_alloc, 16) AT(struct kvm_hyp_req, map.guest_ipa, 8) AT(struct kvm_hyp_req, map.size, 16)
SIZE(struct iommu_iotlb_gather, 64) AT(struct iommu_iotlb_gather, freelist, 24)
AT(struct iommu_iotlb_gather, queued, 40)
SIZE(struct hyp_event_id, 16) AT(struct hyp_event_id, data, 8)
SIZE(struct hyp_event, 72) AT(struct hyp_event, enabled, 32) AT(struct hyp_event, print_fmt, 40)
AT(struct hyp_event, fields, 48) AT(struct hyp_event, trace_func, 56) AT(struct hyp_event, id, 64)
SIZE(struct hyp_printk_fmt, 128) SIZE(struct hyp_entry_hdr, 2)
SIZE(struct trace_event_fields, 40) AT(struct trace_event_fields, name, 8) AT(struct trace_event_fields, size, 16)
AT(struct trace_event_fields, align, 20) AT(struct trace_event_fields, filter_type, 28)
AT(struct ht_iterator, ent, 16) AT(struct ht_iterator, seq, 72)
SIZE(struct kernel_param, 40) AT(struct kernel_param, mod, 8) AT(struct kernel_param, ops, 16)
AT(struct kernel_param, perm, 24) AT(struct kernel_param, level, 26) AT(struct kernel_param, flags, 27)
AT(struct kernel_param, arg, 32) SIZE(struct kernel_param_ops, 32) AT(struct kernel_param_ops, set, 8)
AT(struct mod_arch_specific, hyp, 32) AT(struct module, name, 24)
IS(KVM_HOST_SMCCC_ID(0), 0xC6000000) IS(KVM_HOST_SMCCC_ID(128), 0xC6000080) IS(KVM_HOST_SMCCC_ID(0x10001), 0xC6000001)
IS(SMCCC_RET_SUCCESS, 0) IS(SMCCC_RET_NOT_SUPPORTED, -1)
IS(PAGE_SIZE, 4096) IS(PAGE_OFFSET, 0xffffff8000000000) IS(PAGE_END, 0xffffffc000000000)
"""

# struct, then member: (android14, android15, android16); None where the generation has no such member
MODULE_STRUCTS: dict[str, dict[str, tuple[int | None, int | None, int | None]]] = {
    "struct pkvm_el2_module": {
        "text": (0, 0, 0),
        "bss": (16, 16, 16),
        "rodata": (32, 32, 32),
        "data": (48, 48, 48),
        "event_ids": (None, 64, 64),
        "patchable_function_entries": (None, None, 80),
        "sections": (None, 80, 96),
        "hyp_va": (None, None, 112),
        "hyp_events": (None, 96, 120),
        "hyp_printk_fmts": (None, None, 128),
        "nr_hyp_events": (None, 104, 136),
        "nr_hyp_printk_fmts": (None, None, 140),
        "relocs": (64, 112, 144),
        "node": (None, 120, 152),
        "ext_symbols": (None, None, 168),
        "token": (None, 136, None),
        "nr_relocs": (72, 144, 184),
        "init": (80, 152, 192),
    },
    "struct module": {
        "arch.hyp": (0x240, 0x3D8, 0x3D8),
        "arch.hyp.init": (0x290, 0x470, 0x498),
        "init": (None, 392, 392),
    },
}
SIZES = {
    "struct pkvm_el2_module": (88, 160, 200),
    "struct mod_arch_specific": (120, 192, 232),
    "struct module": (0x400, 0x600, 0x640),
}
HYPERCALLS = {
    "__kvm_hyp_init": (0, 0, 0),
    "__pkvm_create_private_mapping": (3, 3, 3),
    "__kvm_tlb_flush_vmid": (10, 11, 11),
    "__kvm_flush_cpu_context": (11, 13, 13),
    "__pkvm_alloc_module_va": (12, 14, 14),
    "__pkvm_map_module_page": (13, 15, 15),
    "__pkvm_unmap_module_page": (14, 16, 16),
    "__pkvm_init_module": (15, 17, 17),
    "__pkvm_register_hcall": (16, 18, 18),
    "__pkvm_iommu_init": (None, 19, 19),
    "__pkvm_devices_init": (None, None, 20),
    "__pkvm_prot_finalize": (17, 20, 21),
    "__pkvm_host_share_hyp": (18, 21, 22),
    "__pkvm_host_unshare_hyp": (19, 22, 23),
}


@pytest.mark.parametrize("generation", GENERATIONS, ids=str)
def test_shared_structures_and_constants_are_those_of_the_kernel(compile_c: Compile, generation: Generation) -> None:
    for level in (1, 2):
        compile_c(HEADERS + COMMON, generation, level)


@pytest.mark.parametrize("generation", GENERATIONS, ids=str)
def test_structures_that_grew_have_the_layout_of_their_generation(compile_c: Compile, generation: Generation) -> None:
    column = generation.android - 14
    source = HEADERS
    for struct, members in MODULE_STRUCTS.items():
        for member, offsets in members.items():
            if offsets[column] is not None:
                source += f"AT({struct}, {member}, {offsets[column]})\n"
    for struct, sizes in SIZES.items():
        source += f"SIZE({struct}, {sizes[column]})\n"
    for name, numbers in HYPERCALLS.items():
        if numbers[column] is not None:
            source += f"IS(KVM_HOST_SMCCC_FUNC({name}), 0xC6000000 + {numbers[column]})\n"
    compile_c(source, generation)


def test_a_wrong_layout_does_not_compile(compile_c: Compile) -> None:
    with pytest.raises(CompileError, match=r"struct hyp_event\.id"):
        compile_c(HEADERS + "AT(struct hyp_event, id, 68)\n")


@pytest.mark.parametrize(
    ("generation", "member"),
    [(A14, "sections"), (A14, "token"), (A15, "hyp_va"), (A15, "ext_symbols"), (A16, "token")],
    ids=str,
)
def test_members_of_other_generations_are_absent(compile_c: Compile, generation: Generation, member: str) -> None:
    with pytest.raises(CompileError, match=f"no member named '{member}'"):
        compile_c(f"{HEADERS} AT(struct pkvm_el2_module, {member}, 0)\n", generation)


def test_the_name_of_the_non_cacheable_permission_changed_with_android16(compile_c: Compile) -> None:
    compile_c(HEADERS + "IS(KVM_PGTABLE_PROT_NC, 0x10)\n", A15)
    compile_c(HEADERS + "IS(KVM_PGTABLE_PROT_NORMAL_NC, 0x10)\n", A16)
    with pytest.raises(CompileError, match="KVM_PGTABLE_PROT_NC"):
        compile_c(HEADERS + "IS(KVM_PGTABLE_PROT_NC, 0x10)\n", A16)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-UPKVM_EMU_ANDROID"], "PKVM_EMU_ANDROID is not set"),
        (["-UPKVM_EMU_KERNEL_MINOR"], "PKVM_EMU_KERNEL_MINOR are not set"),
        (["-UPKVM_EMU_ANDROID", "-DPKVM_EMU_ANDROID=13"], "must be 14, 15 or 16"),
    ],
)
def test_a_build_without_a_generation_is_told_so(compile_c: Compile, flags: list[str], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        compile_c("int x;", flags=flags)


def test_linux_version_code_follows_the_build(compile_c: Compile) -> None:
    source = '#include <linux/version.h>\n_Static_assert(LINUX_VERSION_CODE == KERNEL_VERSION({}), "version");'
    compile_c(source.format("5, 15, 0"), A14_515)
    compile_c(source.format("6, 12, 23"), A16, flags=["-DPKVM_EMU_KERNEL_PATCH=23"])


def test_options_can_be_asked_in_all_three_ways(compile_c: Compile) -> None:
    compile_c(
        """
        #define CONFIG_AS_A_MODULE_MODULE 1
        _Static_assert(IS_ENABLED(CONFIG_KVM) && IS_BUILTIN(CONFIG_KVM) && !IS_MODULE(CONFIG_KVM), "y");
        _Static_assert(IS_ENABLED(CONFIG_AS_A_MODULE) && !IS_BUILTIN(CONFIG_AS_A_MODULE), "m");
        _Static_assert(IS_MODULE(CONFIG_AS_A_MODULE) && IS_REACHABLE(CONFIG_AS_A_MODULE), "m");
        _Static_assert(!IS_ENABLED(CONFIG_NOT_THERE), "n");
        #if !IS_ENABLED(CONFIG_ARM64) || IS_ENABLED(CONFIG_NOT_THERE)
        #error preprocessor
        #endif
        """
    )


@pytest.mark.parametrize(("generation", "has"), [(A14, False), (A15, True), (A16, True)], ids=str)
def test_tracing_and_hardened_lists_came_with_android15(compile_c: Compile, generation: Generation, has: bool) -> None:
    source = '_Static_assert(IS_ENABLED(CONFIG_TRACING) == {0} && IS_ENABLED(CONFIG_LIST_HARDENED) == {0}, "");'
    compile_c(source.format(int(has)), generation)


def test_helpers_compute_what_their_names_say(compile_c: Compile) -> None:
    compile_c(
        """
        #include <linux/kernel.h>
        #include <linux/bitfield.h>
        #include <linux/mm.h>
        #include <linux/sizes.h>
        #define IS(e, v) _Static_assert((e) == (v), #e);
        IS(GENMASK(7, 4), 0xf0) IS(GENMASK_ULL(63, 60), 0xf000000000000000) IS(BIT_ULL(63), 1ULL << 63)
        IS(ALIGN(4097UL, 4096), 8192) IS(ALIGN_DOWN(4097UL, 4096), 4096) IS(PAGE_ALIGN(1UL), 4096)
        IS(DIV_ROUND_UP(7, 2), 4) IS(round_up(9, 8), 16) IS(round_down(15, 8), 8)
        IS(upper_32_bits(0x1122334455667788), 0x11223344) IS(lower_32_bits(0x1122334455667788), 0x55667788)
        IS(FIELD_GET(0xf0, 0xab), 0xa) IS(FIELD_PREP(0xf0, 0x5), 0x50) IS(ilog2(SZ_4K), 12)
        IS(ARRAY_SIZE(((int[7]){0})), 7) IS(sizeof_field(struct list_head, next), 8)
        """
    )
    with pytest.raises(CompileError):
        compile_c("#include <linux/kernel.h>\nint f(int *p) { return ARRAY_SIZE(p); }")
