"""SMC calling convention: function ids, owners, return codes.

Source: Arm DEN 0028; include/linux/arm-smccc.h for the ids that KVM adds.

>>> FunctionId(0xC600_0015).describe()
'FAST=1 SMC64=1 OWNER=VENDOR_HYP FUNC=0x15'
>>> hex(kvm_host_id(128))
'0xc6000080'
"""

from __future__ import annotations

from enum import IntEnum

from pkvm_emu.arch import ffa, sdei
from pkvm_emu.arch.bitfield import Field, Register
from pkvm_emu.arch.psci import psci_name


class Owner(IntEnum):
    """Service owners (bits 29:24)."""

    ARCH = 0
    CPU = 1
    SIP = 2
    OEM = 3
    STANDARD = 4
    STANDARD_HYP = 5
    VENDOR_HYP = 6
    TRUSTED_APP = 48
    TRUSTED_APP_LAST = 49
    TRUSTED_OS = 50
    TRUSTED_OS_LAST = 63


class FunctionId(Register):
    """W0 of an SMC or HVC."""

    WIDTH = 32

    fast = Field(31)
    smc64 = Field(30)
    owner = Field(29, 24, Owner)
    hints = Field(23, 16)
    func = Field(15, 0)

    def describe(self) -> str:
        """``FAST=1 SMC64=1 OWNER=… FUNC=…``; the hints only when set."""
        fields = [f for f in self.FIELDS.values() if f.name != "hints" or self.hints]
        return " ".join(f.text((int(self) >> f.lsb) & f.mask) for f in fields)


SVE_HINT = 1 << 16
"""Bit of the function id by which a caller says that it has no live SVE state."""

MASK64 = (1 << 64) - 1

SUCCESS = 0
NOT_SUPPORTED = -1
NOT_REQUIRED = -2
INVALID_PARAMETER = -3

SMCCC_RET_SUCCESS = 0
SMCCC_RET_NOT_SUPPORTED = MASK64
"""-1 as it stands in x0."""
SMCCC_RET_NOT_REQUIRED = MASK64 - 1
SMCCC_RET_INVALID_PARAMETER = MASK64 - 2

SMCCC_VERSION = 0x8000_0000
SMCCC_ARCH_FEATURES = 0x8000_0001
SMCCC_ARCH_SOC_ID = 0x8000_0002
SMCCC_ARCH_WORKAROUND_1 = 0x8000_8000
SMCCC_ARCH_WORKAROUND_2 = 0x8000_7FFF
SMCCC_ARCH_WORKAROUND_3 = 0x8000_3FFF
STANDARD_TRNG_VERSION = 0x8400_0050
STANDARD_TRNG_FEATURES = 0x8400_0051
STANDARD_TRNG_GET_UUID = 0x8400_0052
STANDARD_TRNG_RND32 = 0x8400_0053
STANDARD_TRNG_RND64 = 0xC400_0053
HYP_PV_TIME_FEATURES = 0xC500_0020
HYP_PV_TIME_ST = 0xC500_0021
VENDOR_HYP_CALL_UID = 0x8600_FF01
VENDOR_HYP_KVM_FEATURES = 0x8600_0000
VENDOR_HYP_KVM_PTP = 0x8600_0001
VENDOR_HYP_KVM_HYP_MEMINFO = 0xC600_0002
VENDOR_HYP_KVM_MEM_SHARE = 0xC600_0003
VENDOR_HYP_KVM_MEM_UNSHARE = 0xC600_0004
VENDOR_HYP_KVM_MMIO_GUARD_INFO = 0xC600_0005
VENDOR_HYP_KVM_MMIO_GUARD_ENROLL = 0xC600_0006
VENDOR_HYP_KVM_MMIO_GUARD_MAP = 0xC600_0007
VENDOR_HYP_KVM_MMIO_GUARD_UNMAP = 0xC600_0008
VENDOR_HYP_KVM_MEM_RELINQUISH = 0xC600_0009
KNOWN_IDS: dict[int, str] = {
    value: name
    for name, value in sorted(globals().items())
    if name.startswith(("SMCCC_VERSION", "SMCCC_ARCH", "STANDARD_TRNG", "HYP_PV", "VENDOR_HYP"))
}
"""Name by function id."""

KVM_HOST_ID_BASE = 0xC600_0000
"""First host hypercall id: fast, SMC64, owner vendor-hyp."""


def function_id(owner: int, func: int, *, smc64: bool = True, fast: bool = True) -> int:
    """The 32-bit id of function ``func`` (16 bits) of ``owner``."""
    return int(FunctionId.build(fast=int(fast), smc64=int(smc64), owner=owner, func=func))


def kvm_host_id(number: int) -> int:
    """The id that EL1 puts into x0 for host hypercall ``number`` (only its low 16 bits count)."""
    return KVM_HOST_ID_BASE | number & 0xFFFF


def kvm_host_number(x0: int) -> int | None:
    """The host hypercall number of an id in x0, the SVE hint ignored; None if it is no such id.

    The hypervisor compares the whole register, so ids with high bits set are not calls either.
    """
    masked = x0 & MASK64 & ~SVE_HINT
    return masked - KVM_HOST_ID_BASE if masked >> 16 == KVM_HOST_ID_BASE >> 16 else None


OWNER_NAMES: dict[int, str] = {
    Owner.ARCH: "arch",
    Owner.CPU: "cpu",
    Owner.SIP: "sip",
    Owner.OEM: "oem",
    Owner.STANDARD: "standard",
    Owner.STANDARD_HYP: "hyp",
    Owner.VENDOR_HYP: "vendor-hyp",
    **dict.fromkeys(range(Owner.TRUSTED_APP, Owner.TRUSTED_APP_LAST + 1), "ta"),
    **dict.fromkeys(range(Owner.TRUSTED_OS, Owner.TRUSTED_OS_LAST + 1), "tos"),
}
"""Short name of each owner; the numbers between are reserved."""


def call_name(func_id: int) -> str:
    """What a function id is called: by its name where the specifications give it one, else by owner and number.

    >>> call_name(0x8400_0063), call_name(0xC400_0003), call_name(0xC200_0834), call_name(0x3200_0001)
    ('FFA_VERSION', 'PSCI_CPU_ON', 'sip 0x834', 'tos 0x1 (SMC32, yielding)')
    """
    value = func_id & 0xFFFF_FFFF & ~SVE_HINT
    psci = psci_name(value)
    named = KNOWN_IDS.get(value) or ffa.Ffa.name_of(value) or sdei.Sdei.name_of(value)
    if named is not None or psci is not None:
        return named or f"PSCI_{psci}"
    fid = FunctionId(value)
    owner = OWNER_NAMES.get(int(fid.owner), f"reserved owner {int(fid.owner)}")
    kinds = ["SMC32"] * (not fid.smc64) + ["yielding"] * (not fid.fast)
    return f"{owner} {value & 0xFFFF:#x}" + (f" ({', '.join(kinds)})" if kinds else "")


# Stub hypercalls: what the bare EL2 stub answers before the hypervisor is initialised (asm/virt.h).
HVC_SET_VECTORS = 0
HVC_SOFT_RESTART = 1
HVC_RESET_VECTORS = 2
HVC_FINALISE_EL2 = 3
HVC_STUB_ERR = 0xBADCA11
