"""Kernel structures that the emulator reads from, or writes into, guest memory: field offsets as data.

>>> USER_PT_REGS.size
272
>>> layout = el2_module_layout("a16")
>>> layout.size, layout.offset("init"), layout.offset("sections.start")
(200, 192, 96)
>>> SGLIST_PAGE.read(SGLIST_PAGE.pack(pfn=0x48000, order=2))
{'pfn': 294912, 'order': 2}

All numbers are little-endian. Sources: arch/arm64/include/asm/{kvm_pkvm_module,kvm_asm,kvm_host,ptrace}.h,
arch/arm64/include/asm/kvm_hypevents_defs.h and arch/arm64/kvm/hyp/include/nvhe/memory.h of the branches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import NamedTuple


class Member(NamedTuple):
    """Offset and size of a field, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class StructLayout:
    """Fields of one C structure.

    Attributes:
        name: the C tag.
        size: bytes of the structure, padding included.
        fields: field → (offset, size). Sizes 1 to 8 are unsigned numbers, larger fields are bytes.
    """

    name: str
    size: int
    fields: Mapping[str, Member]

    def offset(self, field: str) -> int:
        """Byte offset of ``field``.

        Raises:
            KeyError: the structure has no such field.
        """
        return self.fields[field].offset

    def __contains__(self, field: object) -> bool:
        return field in self.fields

    def get(self, data: bytes | bytearray | memoryview, field: str) -> int:
        """One numeric field out of ``data``, which begins with the structure."""
        offset, size = self.fields[field]
        return int.from_bytes(data[offset : offset + size], "little")

    def set(self, data: bytearray | memoryview, field: str, value: int) -> None:
        """Store one numeric field; the value is cut to the field's size."""
        offset, size = self.fields[field]
        data[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def read(self, data: bytes | bytearray | memoryview) -> dict[str, int | bytes]:
        """All fields of ``data``: ints, bytes for fields above 8 bytes.

        Raises:
            ValueError: ``data`` is shorter than the structure.
        """
        if len(data) < self.size:
            raise ValueError(f"struct {self.name} takes {self.size} bytes, got {len(data)}")
        return {
            name: int.from_bytes(data[offset : offset + size], "little")
            if size <= 8
            else bytes(data[offset : offset + size])
            for name, (offset, size) in self.fields.items()
        }

    def pack(self, **values: int | bytes) -> bytes:
        """The structure with the given fields (dots in names written as two underscores), the rest zero.

        Negative numbers are stored in two's complement.

        Raises:
            KeyError: no such field.
            ValueError: a value does not fit its field.
        """
        out = bytearray(self.size)
        for key, value in values.items():
            name = key if key in self.fields else key.replace("__", ".")
            offset, size = self.fields[name]
            if isinstance(value, bytes):
                if len(value) > size:
                    raise ValueError(f"{self.name}.{name} holds {size} bytes, got {len(value)}")
                out[offset : offset + len(value)] = value
                continue
            if not -(1 << 8 * size - 1) <= value < 1 << 8 * size:
                raise ValueError(f"{self.name}.{name} holds {size} bytes, got {value:#x}")
            out[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        return bytes(out)


def layout(name: str, size: int, rows: Iterable[tuple[str, int, int]]) -> StructLayout:
    """A layout from rows ``(field, offset, size)``."""
    return StructLayout(name, size, MappingProxyType({field: Member(at, width) for field, at, width in rows}))


def _words(*names: str, start: int = 0) -> list[tuple[str, int, int]]:
    return [(name, start + 8 * index, 8) for index, name in enumerate(names)]


def _sections(*rows: tuple[str, int]) -> list[tuple[str, int, int]]:
    return [(f"{name}.{end}", at + 8 * i, 8) for name, at in rows for i, end in enumerate(("start", "end"))]


def _list_head(name: str, at: int) -> list[tuple[str, int, int]]:
    return [(f"{name}.next", at, 8), (f"{name}.prev", at + 8, 8)]


_CORE_SECTIONS = (("text", 0), ("bss", 16), ("rodata", 32), ("data", 48))


@cache
def el2_module_layout(layout_name: str) -> StructLayout:
    """``struct pkvm_el2_module`` (``arch.hyp`` of ``struct module``) of the ops layout ``a14``, ``a15`` or ``a16``."""
    rows = {
        "a14": [*_sections(*_CORE_SECTIONS), ("relocs", 64, 8), ("nr_relocs", 72, 4), ("init", 80, 8)],
        "a15": [
            *_sections(*_CORE_SECTIONS, ("event_ids", 64), ("sections", 80)),
            ("hyp_events", 96, 8),
            ("nr_hyp_events", 104, 4),
            ("relocs", 112, 8),
            *_list_head("node", 120),
            ("token", 136, 8),
            ("nr_relocs", 144, 4),
            ("init", 152, 8),
        ],
        "a16": [
            *_sections(*_CORE_SECTIONS, ("event_ids", 64), ("patchable_function_entries", 80), ("sections", 96)),
            ("hyp_va", 112, 8),
            ("hyp_events", 120, 8),
            ("hyp_printk_fmts", 128, 8),
            ("nr_hyp_events", 136, 4),
            ("nr_hyp_printk_fmts", 140, 4),
            ("relocs", 144, 8),
            *_list_head("node", 152),
            *_list_head("ext_symbols", 168),
            ("nr_relocs", 184, 4),
            ("init", 192, 8),
        ],
    }[layout_name]
    return layout("pkvm_el2_module", {"a14": 88, "a15": 160, "a16": 200}[layout_name], rows)


USER_PT_REGS = layout(
    "user_pt_regs", 272, [*_words(*(f"x{n}" for n in range(31))), ("sp", 248, 8), ("pc", 256, 8), ("pstate", 264, 8)]
)
"""Handler argument from android15 on; host traps maintain only x0 to x30."""

KVM_CPU_CONTEXT = layout(
    "kvm_cpu_context",
    3104,
    [
        *((name, at, size) for name, (at, size) in USER_PT_REGS.fields.items()),
        ("spsr_abt", 272, 8),
        ("fp_regs", 304, 528),
        ("sys_regs", 832, 2256),
        ("__hyp_running_vcpu", 3088, 8),
    ],
)
"""Handler argument on android14, and the host context of all generations. Sizes were computed for android16; the
general registers come first everywhere."""

_INIT_PARAMS = (
    *("mair_el2", "tcr_el2", "tpidr_el2", "stack_hyp_va", "stack_pa"),
    *("pgd_pa", "hcr_el2", "hfgwtr_el2", "vttbr", "vtcr"),
)
INIT_PARAMS = {
    "a14": layout("kvm_nvhe_init_params", 80, _words(*_INIT_PARAMS)),
    "a15": layout("kvm_nvhe_init_params", 80, _words(*_INIT_PARAMS)),
    "a16": layout("kvm_nvhe_init_params", 88, _words(*_INIT_PARAMS, "tmp")),
}
"""``struct kvm_nvhe_init_params`` by layout; android16 adds ``tmp``."""

STACKTRACE_INFO = layout("kvm_nvhe_stacktrace_info", 32, _words("stack_base", "overflow_stack_base", "fp", "pc"))
SMCCC_1_2_REGS = layout("arm_smccc_1_2_regs", 144, _words(*(f"a{n}" for n in range(18))))
SMCCC_RES = layout("arm_smccc_res", 32, _words("a0", "a1", "a2", "a3"))
LIST_HEAD = layout("list_head", 16, _words("next", "prev"))

HYP_EVENT_ID = layout("hyp_event_id", 16, [("id", 0, 2), ("data", 8, 8)])
HYP_EVENT = layout(
    "hyp_event",
    72,
    [
        ("name", 0, 32),
        ("enabled", 32, 8),
        ("print_fmt", 40, 8),
        ("fields", 48, 8),
        ("trace_func", 56, 8),
        ("id", 64, 4),
    ],
)
HYP_PRINTK_FMT = layout("hyp_printk_fmt", 128, [("fmt", 0, 127), ("nul", 127, 1)])
TRACE_EVENT_FIELDS = layout(
    "trace_event_fields",
    40,
    [
        ("type", 0, 8),
        ("name", 8, 8),
        ("size", 16, 4),
        ("align", 20, 4),
        ("is_signed", 24, 4),
        ("filter_type", 28, 4),
    ],
)

SGLIST_PAGE = layout("pkvm_sglist_page", 6, [("pfn", 0, 5), ("order", 5, 1)])
"""Packed: a 40-bit page number and an order."""
HYP_PAGE = layout(
    "hyp_page",
    8,
    [("refcount", 0, 2), ("order", 2, 1), ("host_state", 3, 1), ("host_share_guest_count", 4, 4)],
)
"""android16."""
HYP_MEMCACHE = layout("kvm_hyp_memcache", 48, [*_words("head", "nr_pages", "flags", "mapping")])
"""android16; ``head`` is an address with the order in its low 12 bits, two reserves end the struct."""

HYP_REQ_MEM = layout(
    "kvm_hyp_req", 24, [("type", 0, 1), ("mem.dest", 8, 1), ("mem.nr_pages", 12, 4), ("mem.sz_alloc", 16, 4)]
)
HYP_REQ_MAP = layout("kvm_hyp_req", 24, [("type", 0, 1), ("map.guest_ipa", 8, 8), ("map.size", 16, 8)])
HYP_REQ_MAX = 10
"""Requests in the per-vCPU page."""
HYP_REQ_TYPES = MappingProxyType({"LAST": 0, "MEM": 1, "MAP": 2})
HYP_REQ_DESTS = MappingProxyType({"HYP_ALLOC": 1, "VCPU_MEMCACHE": 2, "HYP_IOMMU": 3})

HYP_IOMMU = layout("kvm_hyp_iommu", 96, [("lock", 0, 4), ("power_domain", 8, 48), ("power_is_off", 56, 1)])
HYP_IOMMU_DOMAIN = layout(
    "kvm_hyp_iommu_domain", 40, [("refs", 0, 4), ("domain_id", 4, 4), ("priv", 8, 8), ("vm", 16, 8)]
)
IOTLB_GATHER = layout(
    "iommu_iotlb_gather", 64, [*_words("start", "end", "pgsize"), *_list_head("freelist", 24), ("queued", 40, 1)]
)
IOMMU_SG = layout("kvm_iommu_sg", 24, _words("phys", "pgsize", "pgcount"))

IOMMU_OPS_A16 = layout(
    "kvm_iommu_ops",
    200,
    _words(
        *("init", "alloc_domain", "free_domain", "get_iommu_by_id", "attach_dev", "detach_dev", "map_pages"),
        *("unmap_pages", "iova_to_phys", "iotlb_sync", "dabt_handler", "host_stage2_idmap"),
        *("host_stage2_idmap_complete", "suspend", "resume", "dev_block_dma", "get_iommu_token_by_id"),
        *(f"reserved{n}" for n in range(1, 9)),
    ),
)
"""android16's table of IOMMU driver callbacks; the first four are mandatory (-ENODEV without)."""

PKVM_DEVICE = layout(
    "pkvm_device",
    1072,
    [
        ("resources", 0, 512),
        ("iommus", 512, 512),
        ("nr_resources", 1024, 4),
        ("nr_iommus", 1028, 4),
        ("group_id", 1032, 4),
        ("ctxt", 1040, 8),
        ("refcount", 1048, 2),
        ("reset_handler", 1056, 8),
        ("cookie", 1064, 8),
    ],
)
"""android16."""

BUG_ENTRY = layout("bug_entry", 12, [("bug", 0, 4), ("file", 4, 4), ("line", 8, 2), ("flags", 10, 2)])
"""``__bug_table``: both references are relative to their own place, signed."""
ALT_INSTR = layout(
    "alt_instr",
    12,
    [("orig_offset", 0, 4), ("alt_offset", 4, 4), ("cpucap", 8, 2), ("orig_len", 10, 1), ("alt_len", 11, 1)],
)
"""``.altinstructions``: references as in bug_entry; bit 15 of cpucap: alt is a callback."""
ALT_CALLBACK = 1 << 15

STRUCTS: Mapping[str, StructLayout] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            *(USER_PT_REGS, KVM_CPU_CONTEXT, STACKTRACE_INFO, SMCCC_1_2_REGS, SMCCC_RES, LIST_HEAD, HYP_EVENT_ID),
            *(HYP_EVENT, HYP_PRINTK_FMT, TRACE_EVENT_FIELDS, SGLIST_PAGE, HYP_PAGE, HYP_MEMCACHE, HYP_IOMMU),
            *(HYP_IOMMU_DOMAIN, IOTLB_GATHER, IOMMU_SG, IOMMU_OPS_A16, PKVM_DEVICE, BUG_ENTRY, ALT_INSTR),
        )
    }
)
"""The layouts that do not depend on the generation (or are known for one), by C tag."""
