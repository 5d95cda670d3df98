"""Host hypercall numbers."""

import pytest

from pkvm_emu.abi.hypercalls import hypercall_table, short_name

ROWS = """
kvm_hyp_init 0 0 0
get_mdcr_el2 1 1 1
pkvm_init 2 2 2
create_private_mapping 3 3 3
vgic_v3_init_lrs 6 6 6
tlb_flush_vmid_ipa 9 9 9
tlb_flush_vmid_ipa_nsh - 10 10
tlb_flush_vmid 10 11 11
tlb_flush_vmid_range - 12 12
flush_cpu_context 11 13 13
alloc_module_va 12 14 14
map_module_page 13 15 15
unmap_module_page 14 16 16
init_module 15 17 17
register_hcall 16 18 18
iommu_init - 19 19
devices_init - - 20
prot_finalize 17 20 21
host_share_hyp 18 21 22
host_unshare_hyp 19 22 23
adjust_pc 21 30 32
vcpu_run 22 31 33
init_vm 26 35 37
vcpu_load 31 40 43
load_tracing 38 43 47
enable_event 43 47 52
hyp_alloc_mgt_refill - 48 57
host_hvc_pd - 58 67
host_get_ffa_version - - 75
set_stage2_memattr 44 - -
"""


@pytest.mark.parametrize("row", ROWS.strip().splitlines(), ids=lambda row: row.split()[0])
def test_numbers_of_each_branch(row):
    name, *numbers = row.split()
    for layout, number in zip(("a14", "a15", "a16"), numbers, strict=True):
        table = hypercall_table(layout)
        assert table.get(name) == (None if number == "-" else int(number))
        if number != "-":
            assert table.name(int(number)) == name


@pytest.mark.parametrize("layout", ["a14", "a15", "a16"])
def test_every_number_has_one_name_and_every_spelling_leads_to_it(layout):
    table = hypercall_table(layout)
    assert len(set(table)) == len(table) == len(table.functions)
    for number, (name, function) in enumerate(zip(table, table.functions, strict=True)):
        assert table[name] == table[function] == table[function.lstrip("_")] == number
        assert table.name(number) == name
    assert len(table) < 128


def test_two_functions_of_one_short_name_stay_apart():
    table = hypercall_table("a16")
    assert (table["tlb_flush_vmid"], table["__kvm_tlb_flush_vmid"]) == (11, 11)
    assert (table["pkvm_tlb_flush_vmid"], table["__pkvm_tlb_flush_vmid"]) == (56, 56)


def test_numbers_that_were_inferred_say_so():
    assert [hypercall_table(layout).verified for layout in ("a14", "a15", "a16")] == [False, True, True]


def test_numbers_outside_the_table_have_no_name():
    assert hypercall_table("a16").name(76) is None
    assert hypercall_table("a16").name(-1) is None
    assert short_name("__pkvm_init") == "pkvm_init"
    with pytest.raises(KeyError):
        hypercall_table("a14")["devices_init"]
