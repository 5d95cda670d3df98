"""Protection bits, page states and owner ids of pKVM as they appear in arguments and descriptors.

Source: arch/arm64/include/asm/kvm_pgtable.h and arch/arm64/kvm/hyp/include/nvhe/mem_protect.h.

>>> Prot(0x6).describe()
'R W'
>>> prot_name(0xE)
'RW DEVICE'
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType

from pkvm_emu.arch.bitfield import Field, Register


class Prot(Register, flags=True):
    """``enum kvm_pgtable_prot``, 64 bits wide in every generation."""

    sw3 = Field(58)
    sw2 = Field(57)
    sw1 = Field(56)
    sw0 = Field(55)
    uxn = Field(6)
    pxn = Field(5)
    normal_nc = Field(4)
    device = Field(3)
    r = Field(2)
    w = Field(1)
    x = Field(0)


PROT_X = 1 << 0
PROT_W = 1 << 1
PROT_R = 1 << 2
PROT_DEVICE = 1 << 3
PROT_NORMAL_NC = 1 << 4
PROT_PXN = 1 << 5
PROT_UXN = 1 << 6
PROT_SW0 = 1 << 55
PROT_SW1 = 1 << 56
PROT_SW2 = 1 << 57
PROT_SW3 = 1 << 58
PROT_RW = PROT_R | PROT_W
PROT_RWX = PROT_R | PROT_W | PROT_X
PROT_HW = PROT_RWX | PROT_DEVICE | PROT_NORMAL_NC | PROT_PXN | PROT_UXN
"""What host_stage2_mod_prot accepts; anything else is -EINVAL."""
PAGE_HYP = PROT_RW
PAGE_HYP_EXEC = PROT_R | PROT_X
PAGE_HYP_RO = PROT_R
PAGE_HYP_DEVICE = PROT_RW | PROT_DEVICE
HOST_MEM_PROT = PROT_RWX
HOST_MMIO_PROT = PROT_RW

_TAIL = {PROT_DEVICE: "DEVICE", PROT_NORMAL_NC: "NC", PROT_PXN: "PXN", PROT_UXN: "UXN"}


def prot_name(prot: int) -> str:
    """``RWX``, ``RW DEVICE``, ``none``; software and unknown bits in hex."""
    parts = ["".join(c for c, bit in (("R", PROT_R), ("W", PROT_W), ("X", PROT_X)) if prot & bit)]
    parts += [name for bit, name in _TAIL.items() if prot & bit]
    if prot & ~PROT_HW:
        parts.append(f"+{prot & ~PROT_HW:#x}")
    return " ".join(part for part in parts if part) or "none"


class Component(IntEnum):
    """Owner ids, as annotated in invalid host stage-2 entries (bits 9:2).

    Read for android16; android14 and android15 have the same names, their numbers were not read.
    """

    HOST = 0
    HYP = 1
    FFA = 2
    GUEST = 3
    PROTECTED = 4


class PsciNotification(IntEnum):
    """``enum pkvm_psci_notification`` (4 bytes)."""

    CPU_SUSPEND = 0
    SYSTEM_SUSPEND = 1
    CPU_ENTRY = 2


PAGE_STATES_VMEMMAP: Mapping[str, int] = MappingProxyType(
    {
        "OWNED": 0,
        "SHARED_OWNED": 1,
        "SHARED_BORROWED": 2,
        "DMA": 3,
        "MODULE_OWNED": 1 << 2,
        "NOPAGE": 1 << 3,
        "RESTRICTED_PROT": 1 << 4,
        "MMIO": 1 << 5,
    }
)
"""``hyp_page.host_state`` from android15 on: values 0 to 3, then flags (numbers read for android16 only). A PTE keeps
the low two bits in its software bits 56:55."""

PAGE_STATES_PTE: Mapping[str, int] = MappingProxyType(
    {
        "OWNED": 0,
        "SHARED_OWNED": PROT_SW0,
        "SHARED_BORROWED": PROT_SW1,
        "NOPAGE": 1 << 0,
        "RESTRICTED_PROT": 1 << 1,
        "MODULE_OWNED": 1 << 2,
    }
)
"""android14: software bits of the host's stage-2 entry. The last three never reach a page table (MODULE_OWNED is a flag
of ``hyp_page.flags``); their numbers were not read and matter to nobody but this table."""
