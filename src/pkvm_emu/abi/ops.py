"""``struct pkvm_module_ops``: which op lies at which offset, with which prototype and which kCFI id.

>>> ops_table("a16")["host_share_hyp"].offset
256
>>> hex(ops_table("a16")["puts"].kcfi_normalised)
'0x1e83e1ab'

Callback prototypes (what modules hand to ``register_*``) are here too, since the same kCFI rule applies to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from pkvm_emu.abi.kcfi import kcfi_type_id
from pkvm_emu.abi.ops_table import LAYOUTS, LTS_ROWS, ROWS

SLOT_SIZE = 8
_RESERVES = 32
_RESERVE_BASE = {"a14": 256, "a15": 432, "a16": 488}
_CONTEXT = {"a14": "kvm_cpu_context", "a15": "user_pt_regs", "a16": "user_pt_regs"}


@dataclass(frozen=True, slots=True)
class OpSlot:
    """One function pointer of the table.

    Attributes:
        name: the member; ``reserved1`` to ``reserved32`` for reserve slots that no release uses.
        offset: bytes from the start of the struct.
        prototype: C prototype; empty for unused reserves.
        semantics: what it does, in a line.
        lts: a reserve slot that a later release of the branch gave this meaning.
        reserve: number of the reserve slot (1 to 32), None for ordinary members.
        verified: False where the prototype was inferred and not read.
    """

    name: str
    offset: int
    prototype: str
    semantics: str
    lts: bool = False
    reserve: int | None = None
    verified: bool = True

    @property
    def kcfi_plain(self) -> int | None:
        """kCFI id without integer normalisation; None for unused reserves."""
        return kcfi_type_id(self.prototype) if self.prototype else None

    @property
    def kcfi_normalised(self) -> int | None:
        """kCFI id with integer normalisation (android16); None for unused reserves."""
        return kcfi_type_id(self.prototype, normalised=True) if self.prototype else None

    def kcfi(self, mode: str) -> int | None:
        """The id under ``plain`` or ``normalised``; None for the modes without ids (``none``, ``jump-table``)."""
        if mode == "normalised":
            return self.kcfi_normalised
        return self.kcfi_plain if mode == "plain" else None


class OpsTable:
    """All slots of one layout, in offset order.

    Attributes:
        layout: ``a14``, ``a15`` or ``a16``.
        slots: every slot, reserves included.
        by_name, by_offset: lookups.
        size: bytes of the struct.
    """

    __slots__ = ("by_name", "by_offset", "layout", "size", "slots")

    def __init__(self, layout: str, slots: tuple[OpSlot, ...]) -> None:
        self.layout = layout
        self.slots = slots
        self.by_name: Mapping[str, OpSlot] = MappingProxyType({slot.name: slot for slot in slots})
        self.by_offset: Mapping[int, OpSlot] = MappingProxyType({slot.offset: slot for slot in slots})
        self.size = slots[-1].offset + SLOT_SIZE

    def __getitem__(self, name: str) -> OpSlot:
        return self.by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self.by_name

    def __iter__(self) -> Iterator[OpSlot]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def members(self) -> tuple[OpSlot, ...]:
        """The slots that were members when the branch froze."""
        return tuple(slot for slot in self.slots if slot.reserve is None)

    @property
    def served(self) -> tuple[OpSlot, ...]:
        """The slots that mean something: members, and reserves with a later use."""
        return tuple(slot for slot in self.slots if slot.prototype)

    def __repr__(self) -> str:
        return f"OpsTable({self.layout!r}, {len(self.served)} ops, {self.size} bytes)"


@cache
def ops_table(layout: str) -> OpsTable:
    """The table of a layout.

    Raises:
        ValueError: no such layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"no ops layout {layout!r}; known: {', '.join(LAYOUTS)}")
    slots: dict[int, OpSlot] = {}
    for row in ROWS:
        offset = row.offset(layout)
        if offset is not None:
            slots[offset] = OpSlot(row.name, offset, row.prototype_in(layout, _CONTEXT[layout]), row.semantics)
    base = _RESERVE_BASE[layout]
    for number in range(1, _RESERVES + 1):
        offset = base + SLOT_SIZE * (number - 1)
        slots[offset] = OpSlot(f"reserved{number}", offset, "", "reserve slot, 0", reserve=number)
    for lts in LTS_ROWS:
        if lts.layout == layout:
            slots[lts.offset] = OpSlot(
                lts.name,
                lts.offset,
                lts.prototype,
                lts.semantics,
                lts=True,
                reserve=(lts.offset - base) // SLOT_SIZE + 1,
                verified=lts.verified,
            )
    return OpsTable(layout, tuple(slots[offset] for offset in sorted(slots)))


@dataclass(frozen=True, slots=True)
class Callback:
    """A kind of function that lives in a module and is called by the hypervisor or the kernel.

    Attributes:
        kind: the key in :data:`CALLBACK_KCFI`.
        prototype: C prototype.
        kcfi_plain, kcfi_normalised: the two ids.
    """

    kind: str
    prototype: str

    @property
    def kcfi_plain(self) -> int:
        """kCFI id without integer normalisation."""
        return kcfi_type_id(self.prototype)

    @property
    def kcfi_normalised(self) -> int:
        """kCFI id with integer normalisation."""
        return kcfi_type_id(self.prototype, normalised=True)

    def kcfi(self, mode: str) -> int | None:
        """The id under ``plain`` or ``normalised``; None for the modes without ids."""
        if mode == "normalised":
            return self.kcfi_normalised
        return self.kcfi_plain if mode == "plain" else None


# Kinds with {regs} exist once per handler context.
_CALLBACKS = {
    "module_init": "int (void)",
    "module_exit": "void (void)",
    "el2_init": "int (const struct pkvm_module_ops *ops)",
    "hcall": "void (struct {regs} *regs)",
    "smc_handler": "bool (struct {regs} *regs)",
    "default_trap_handler": "bool (struct {regs} *regs)",
    "perm_fault_handler": "int (struct {regs} *regs, u64 esr, u64 addr)",
    "illegal_abt_notifier": "void (struct {regs} *regs)",
    "hyp_panic_notifier": "void (struct {regs} *regs)",
    "psci_notifier": "void (enum pkvm_psci_notification notif, struct {regs} *regs)",
    "serial_putc": "void (char c)",
    "unmask_serror": "bool (void)",
    "mask_serror": "void (void)",
    "device_reset": "int (void *cookie, bool host_to_guest)",
    "trng_rnd64": "int (u64 *entropy, int nbits)",
}
_GUEST_SMC = {
    "a15": "bool (struct arm_smccc_1_2_regs *regs, struct arm_smccc_res *res, u32 handle)",
    "a16": "bool (struct arm_smccc_1_2_regs *in, struct arm_smccc_1_2_regs *res, u32 handle)",
}


@cache
def callbacks(layout: str) -> Mapping[str, Callback]:
    """Callback kinds of a layout with their prototypes and ids."""
    rows = {kind: text.replace("{regs}", _CONTEXT[layout]) for kind, text in _CALLBACKS.items()}
    if layout in _GUEST_SMC:
        rows["guest_smc_handler"] = _GUEST_SMC[layout]
    return MappingProxyType({kind: Callback(kind, text) for kind, text in rows.items()})


CALLBACK_KCFI: Mapping[str, Mapping[str, Callback]] = MappingProxyType(
    {layout: callbacks(layout) for layout in LAYOUTS}
)
"""Layout → callback kind → prototype and ids."""


def kcfi_mode_of(word: int, kind: str) -> str | None:
    """Which kCFI mode the word in front of a function of callback ``kind`` betrays, None if it is no id of it.

    >>> kcfi_mode_of(0x6fbb3035, "module_init"), kcfi_mode_of(0xc382d712, "el2_init"), kcfi_mode_of(0, "el2_init")
    ('normalised', 'plain', None)
    """
    for table in CALLBACK_KCFI.values():
        callback = table.get(kind)
        if callback is not None and word == callback.kcfi_normalised:
            return "normalised"
        if callback is not None and word == callback.kcfi_plain:
            return "plain"
    return None
