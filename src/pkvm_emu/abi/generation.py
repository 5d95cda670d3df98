"""The Android generations whose module ABI is known, each as one immutable object.

>>> generation("16").name, generation("6.6").name, generation(14).name
('android16-6.12', 'android15-6.6', 'android14-6.1')
>>> generation("android16").hypercalls["register_hcall"]
18
>>> from_vermagic("6.6.30-android15-8-gabc SMP preempt mod_unload modversions aarch64").name
'android15-6.6'

Everything in which the generations differ is a value here, so that no code has to compare version numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pkvm_emu.abi.hypercalls import DYNAMIC_BASE, DYNAMIC_MAX, HypercallTable, hypercall_table
from pkvm_emu.abi.ops import Callback, OpsTable, callbacks, ops_table
from pkvm_emu.abi.ownership import RULES, OwnershipRules
from pkvm_emu.abi.prot import (
    PAGE_HYP,
    PAGE_HYP_EXEC,
    PAGE_HYP_RO,
    PAGE_STATES_PTE,
    PAGE_STATES_VMEMMAP,
)
from pkvm_emu.abi.rules import (
    BOOT,
    FAULTS,
    TRACING,
    BootRules,
    FaultRules,
    HypSection,
    TracingRules,
)
from pkvm_emu.abi.structs import INIT_PARAMS, KVM_CPU_CONTEXT, USER_PT_REGS, StructLayout, el2_module_layout
from pkvm_emu.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One Android branch.

    Attributes:
        name: ``android16-6.12``.
        android: Android version.
        kernel: kernel version, (major, minor).
        layout: which ops layout it has (``a14``, ``a15``, ``a16``); a key of the tables in this package.
        ops: the module ops table.
        el2_module: struct pkvm_el2_module.
        default_hyp_offset: offset of ``arch.hyp`` in struct module for stock builds. Debug, KASAN and RANDSTRUCT
            builds differ: prefer what the module's code does.
        module_struct_size: size of struct module for stock builds; None where it was not measured.
        token_section_field: member whose value EL1 code subtracts from a kernel address to get a hypervisor one.
        hypercalls: number by name.
        handler_context: C tag of the struct that handlers get.
        dyn_hcall_presets_x0: the hypervisor stores 0 into x0 before a dynamic handler runs.
        dyn_hcall_masks_hint: bit 16 of the id is ignored for dynamic calls (always for static ones).
        dyn_hcall_base, dyn_hcall_max: first id and number of dynamic hypercalls.
        init_module_arg: what the init_module hypercall gets: ``fn_hyp_va`` or ``struct_copy_kernel_va``.
        sections: the mapped sections, in descriptor order.
        el1_kcfi, el2_kcfi: ``none``, ``jump-table``, ``plain`` or ``normalised``.
        capabilities: CPU capability numbers that alternatives use, as far as known.
        smc_handler_slots, perm_fault_handler_slots, guest_smc_slots: how many handlers may register.
        leaf_level_bytes: bytes that host_stage2_get_leaf stores through its ``level`` argument.
        tracefs_dir: directory below tracing/.
        inter_module_imports: EL2 code may call functions of modules loaded earlier.
        page_states: encoding of the page states.
        ownership: the rules of page ownership, see abi/ownership.py.
        faults, tracing, boot: behaviour, see abi/rules.py.
        init_params: struct kvm_nvhe_init_params.
        topup_symbols: EL1 exports around the hypervisor heap.
        unverified: attributes (dotted for the rules) whose values were inferred and not read from sources.
    """

    name: str
    android: int
    kernel: tuple[int, int]
    layout: str
    default_hyp_offset: int
    module_struct_size: int | None
    token_section_field: str
    handler_context: str
    dyn_hcall_presets_x0: bool
    dyn_hcall_masks_hint: bool
    init_module_arg: str
    sections: tuple[HypSection, ...]
    el1_kcfi: str
    el2_kcfi: str
    capabilities: Mapping[str, int]
    smc_handler_slots: int
    perm_fault_handler_slots: int
    guest_smc_slots: int
    leaf_level_bytes: int
    tracefs_dir: str
    inter_module_imports: bool
    page_states: Mapping[str, int]
    topup_symbols: tuple[str, ...]
    unverified: frozenset[str] = frozenset()
    dyn_hcall_base: int = DYNAMIC_BASE
    dyn_hcall_max: int = DYNAMIC_MAX
    # Looked up by layout once, because attribute reads are frequent and the tables do not change.
    ops: OpsTable = field(init=False, repr=False)
    el2_module: StructLayout = field(init=False, repr=False)
    hypercalls: HypercallTable = field(init=False, repr=False)
    init_params: StructLayout = field(init=False, repr=False)
    ownership: OwnershipRules = field(init=False, repr=False)
    faults: FaultRules = field(init=False, repr=False)
    tracing: TracingRules = field(init=False, repr=False)
    boot: BootRules = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tables = {
            "ops": ops_table(self.layout),
            "el2_module": el2_module_layout(self.layout),
            "hypercalls": hypercall_table(self.layout),
            "init_params": INIT_PARAMS[self.layout],
            "ownership": RULES[self.name],
            "faults": FAULTS[self.layout],
            "tracing": TRACING[self.layout],
            "boot": BOOT[self.layout],
        }
        for name, value in tables.items():
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        return self.name

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def ops_size(self) -> int:
        """Bytes of struct pkvm_module_ops: 512, 688, 744."""
        return self.ops.size

    @property
    def hyp_init_to_base(self) -> int:
        """Bytes from the start of the descriptor to its ``init`` member: 80, 152, 192."""
        return self.el2_module.offset("init")

    @property
    def token_offset(self) -> int:
        """Offset in the descriptor of :attr:`token_section_field`."""
        return self.el2_module.offset(self.token_section_field)

    @property
    def prot_finalize(self) -> int:
        """Number of the hypercall that deprivileges the host; lower ones are refused afterwards."""
        return self.hypercalls["prot_finalize"]

    def is_gated(self, number: int) -> bool:
        """True for a static hypercall that is refused (x0 = -1) once the host is deprivileged."""
        return 0 <= number < self.prot_finalize

    def is_dynamic(self, number: int) -> bool:
        """True for an id in the range that modules register."""
        return self.dyn_hcall_base <= number < self.dyn_hcall_base + self.dyn_hcall_max

    @property
    def callbacks(self) -> Mapping[str, Callback]:
        """Prototypes and kCFI ids of what modules register, by kind."""
        return callbacks(self.layout)

    @property
    def context_layout(self) -> StructLayout:
        """Layout of :attr:`handler_context`."""
        return KVM_CPU_CONTEXT if self.handler_context == "kvm_cpu_context" else USER_PT_REGS


_TEXT = HypSection("text", ".hyp.text", PAGE_HYP_EXEC)
_BSS = HypSection("bss", ".hyp.bss", PAGE_HYP)
_RODATA = HypSection("rodata", ".hyp.rodata", PAGE_HYP_RO)
_DATA = HypSection("data", ".hyp.data", PAGE_HYP)
_EVENT_IDS = HypSection("event_ids", ".hyp.event_ids", PAGE_HYP_RO)
_PATCHABLE = HypSection("patchable_function_entries", ".hyp.patchable_function_entries", PAGE_HYP_RO)

RELOC_SECTION = ".hyp.reloc"
EVENTS_SECTION = "_hyp_events"
PRINTK_SECTION = ".hyp.printk_fmts"

_LOAD_SYMBOLS = ("__pkvm_load_el2_module", "__pkvm_register_el2_call")


# Below android16 these follow from what is known of android16, or from silence.
_INFERRED = frozenset(
    {
        *("page_states", "context_layout", "tracing.core_events", "boot.hyp_stack_bytes", "boot.init_error_is_fatal"),
    }
)


def _android14(name: str, kernel: tuple[int, int], el1_kcfi: str, capabilities: Mapping[str, int]) -> Generation:
    return Generation(
        name=name,
        android=14,
        kernel=kernel,
        layout="a14",
        default_hyp_offset=0x240,
        module_struct_size=None,
        token_section_field="text.start",
        handler_context="kvm_cpu_context",
        dyn_hcall_presets_x0=True,
        dyn_hcall_masks_hint=False,
        init_module_arg="fn_hyp_va",
        sections=(_TEXT, _BSS, _RODATA, _DATA),
        el1_kcfi=el1_kcfi,
        el2_kcfi="none",
        capabilities=MappingProxyType(dict(capabilities)),
        smc_handler_slots=1,
        perm_fault_handler_slots=1,
        guest_smc_slots=0,
        leaf_level_bytes=4,
        tracefs_dir="hyp",
        inter_module_imports=False,
        page_states=PAGE_STATES_PTE,
        topup_symbols=(),
        unverified=_INFERRED | {"hypercalls", "tracing.unknown_event_message"},
    )


GENERATIONS: tuple[Generation, ...] = (
    # 5.15 asks by static keys: cpu_hwcap_keys is an array by capability number.
    _android14("android14-5.15", (5, 15), "jump-table", {"PAN": 27, "KVM_PROTECTED_MODE": 37}),
    _android14("android14-6.1", (6, 1), "plain", {"ALWAYS_SYSTEM": 1, "PAN": 29, "KVM_PROTECTED_MODE": 40}),
    Generation(
        name="android15-6.6",
        android=15,
        kernel=(6, 6),
        layout="a15",
        default_hyp_offset=0x3D8,
        module_struct_size=None,
        token_section_field="sections.start",
        handler_context="user_pt_regs",
        dyn_hcall_presets_x0=False,
        dyn_hcall_masks_hint=True,
        init_module_arg="fn_hyp_va",
        sections=(_TEXT, _BSS, _RODATA, _DATA, _EVENT_IDS),
        el1_kcfi="plain",
        el2_kcfi="plain",
        capabilities=MappingProxyType({"ALWAYS_SYSTEM": 1, "LSE": 33, "PAN": 38, "KVM_PROTECTED_MODE": 51}),
        smc_handler_slots=1,
        perm_fault_handler_slots=16,
        guest_smc_slots=1,
        leaf_level_bytes=4,
        tracefs_dir="hyp",
        inter_module_imports=False,
        page_states=PAGE_STATES_VMEMMAP,
        topup_symbols=(
            *("__pkvm_topup_hyp_alloc", "__pkvm_topup_hyp_alloc_mgt", "__pkvm_topup_hyp_alloc_mgt_gfp"),
            "__pkvm_topup_hyp_alloc_mgt_mc",
        ),
        unverified=_INFERRED
        | {
            "perm_fault_handler_slots",
            "guest_smc_slots",
            "el1_kcfi",
            "tracing.has_trace_clock",
            "boot.iommu_and_devices",
        },
    ),
    Generation(
        name="android16-6.12",
        android=16,
        kernel=(6, 12),
        layout="a16",
        default_hyp_offset=0x3D8,
        module_struct_size=1600,
        token_section_field="sections.start",
        handler_context="user_pt_regs",
        dyn_hcall_presets_x0=False,
        dyn_hcall_masks_hint=True,
        init_module_arg="struct_copy_kernel_va",
        sections=(_TEXT, _BSS, _RODATA, _DATA, _EVENT_IDS, _PATCHABLE),
        el1_kcfi="normalised",
        el2_kcfi="normalised",
        capabilities=MappingProxyType({"ALWAYS_SYSTEM": 1, "LSE": 37, "PAN": 40, "KVM_PROTECTED_MODE": 55}),
        smc_handler_slots=16,
        perm_fault_handler_slots=16,
        guest_smc_slots=16,
        leaf_level_bytes=1,
        tracefs_dir="hypervisor",
        inter_module_imports=True,
        page_states=PAGE_STATES_VMEMMAP,
        topup_symbols=("__pkvm_topup_hyp_alloc", "__pkvm_topup_hyp_alloc_mgt_gfp"),
    ),
)
"""All known generations, oldest first."""

latest = GENERATIONS[-1]
"""The newest generation, and the default where none is asked for or detected."""


def _spellings(gen: Generation) -> set[str]:
    major, minor = gen.kernel
    return {gen.name, f"android{gen.android}", f"a{gen.android}", str(gen.android), f"{major}.{minor}"}


def generation(spec: str | int | Generation | None = None) -> Generation:
    """The generation that ``spec`` names.

    Args:
        spec: ``16``, ``"16"``, ``"android16"``, ``"android16-6.12"`` or ``"6.12"``; None for :data:`latest`; a
            Generation comes back as it is. Where an Android version has two kernels, the newer one is meant.

    Raises:
        UsageError: no such generation; the text lists the known ones.
    """
    if spec is None:
        return latest
    if isinstance(spec, Generation):
        return spec
    wanted = str(spec).strip().lower()
    for gen in reversed(GENERATIONS):
        if wanted in _spellings(gen):
            return gen
    known = ", ".join(gen.name for gen in GENERATIONS)
    raise UsageError(f"unknown Android generation {str(spec)!r}: use one of {known}")


_VERMAGIC = re.compile(r"^(\d+)\.(\d+)(?:\.\d+)?(\S*)")
_TAG = re.compile(r"-android(\d+)(?:-|$)")


def from_vermagic(text: str) -> Generation | None:
    """The generation of a module by its ``vermagic`` (or of a kernel by its release string).

    An ``-androidN-`` tag has to agree; without a tag the kernel version decides. None if no generation fits.

    >>> from_vermagic("5.15.110-android13-8-g0 SMP preempt mod_unload aarch64") is None
    True
    """
    match = _VERMAGIC.match(text.strip())
    if match is None:
        return None
    kernel = (int(match[1]), int(match[2]))
    tag = _TAG.search(match[3])
    for gen in GENERATIONS:
        if gen.kernel == kernel and (tag is None or int(tag[1]) == gen.android):
            return gen
    return None
