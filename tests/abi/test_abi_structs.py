"""Structure layouts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkvm_emu.abi import structs
from pkvm_emu.abi.structs import STRUCTS, el2_module_layout

ALL = [
    *STRUCTS.values(),
    *structs.INIT_PARAMS.values(),
    *(structs.HYP_REQ_MEM, structs.HYP_REQ_MAP),
    *(el2_module_layout(name) for name in ("a14", "a15", "a16")),
]


@pytest.mark.parametrize("entry", ALL, ids=lambda entry: f"{entry.name}-{entry.size}")
def test_fields_lie_inside_the_structure_and_do_not_overlap(entry):
    end = 0
    for offset, size in entry.fields.values():
        assert offset >= end
        assert size > 0
        end = offset + size
    assert end <= entry.size


@pytest.mark.parametrize("entry", ALL, ids=lambda entry: f"{entry.name}-{entry.size}")
@given(data=st.data())
def test_what_is_packed_is_read_back(entry, data):
    numbers = {
        name: data.draw(st.integers(0, (1 << 8 * size) - 1)) for name, (_, size) in entry.fields.items() if size <= 8
    }
    blob = entry.pack(**numbers)
    assert len(blob) == entry.size
    read = entry.read(blob)
    assert {name: read[name] for name in numbers} == numbers


@pytest.mark.parametrize(
    ("layout", "size", "offsets"),
    [
        ("a14", 88, {"text.start": 0, "data.end": 56, "relocs": 64, "nr_relocs": 72, "init": 80}),
        ("a15", 160, {"event_ids.start": 64, "sections.start": 80, "hyp_events": 96, "token": 136, "init": 152}),
        ("a16", 200, {"sections.start": 96, "hyp_va": 112, "relocs": 144, "nr_relocs": 184, "init": 192}),
    ],
)
def test_the_module_descriptor_of_each_branch(layout, size, offsets):
    entry = el2_module_layout(layout)
    assert entry.size == size
    assert {name: entry.offset(name) for name in offsets} == offsets


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("user_pt_regs", 272),
        ("kvm_cpu_context", 3104),
        ("arm_smccc_1_2_regs", 144),
        ("hyp_event", 72),
        ("hyp_event_id", 16),
        ("hyp_printk_fmt", 128),
        ("pkvm_sglist_page", 6),
        ("kvm_iommu_ops", 200),
        ("pkvm_device", 1072),
        ("hyp_page", 8),
        ("kvm_hyp_memcache", 48),
    ],
)
def test_structures_have_the_sizes_of_compiled_kernels(name, size):
    assert STRUCTS[name].size == size


def test_general_registers_come_first_in_both_handler_contexts():
    for entry in (structs.USER_PT_REGS, structs.KVM_CPU_CONTEXT):
        assert [entry.offset(f"x{n}") for n in range(31)] == list(range(0, 248, 8))


def test_a_sglist_entry_is_40_bits_of_page_number_and_an_order():
    assert structs.SGLIST_PAGE.pack(pfn=0x12_3456_789A, order=9) == bytes.fromhex("9a7856341209")


def test_dotted_fields_pack_by_double_underscore_and_negative_numbers_wrap():
    entry = el2_module_layout("a14")
    assert entry.pack(text__start=-1)[:8] == b"\xff" * 8
    assert structs.HYP_REQ_MEM.read(structs.HYP_REQ_MEM.pack(type=1, mem__nr_pages=7))["mem.nr_pages"] == 7


def test_single_fields_are_set_and_read_in_place():
    data = bytearray(structs.BUG_ENTRY.size)
    structs.BUG_ENTRY.set(data, "line", 0x1_0203)
    assert structs.BUG_ENTRY.get(data, "line") == 0x0203
    assert sum(1 for byte in data if byte) == 2


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="takes 272 bytes, got 8"):
        structs.USER_PT_REGS.read(bytes(8))
    with pytest.raises(ValueError, match="holds 1 bytes"):
        structs.SGLIST_PAGE.pack(order=256)
    with pytest.raises(ValueError, match="holds 32 bytes"):
        structs.HYP_EVENT.pack(name=b"x" * 33)
    with pytest.raises(KeyError):
        structs.HYP_PAGE.pack(colour=1)
