"""Address translation as the MMU does it, computed from register values: for debuggers, reports and host access.

Nothing here changes state, and nothing is cached: the tables are read from guest memory each time. 4 KiB granule only,
as every Android kernel with pKVM uses it; another granule is a fault of kind ``GRANULE``. Sources: Arm Architecture
Reference Manual DDI 0487, D8 (translation process, permissions), D19 (TCR_ELx, VTCR_EL2, VTTBR_EL2).

>>> translate_stage2(memory, 0x4020_0000, vttbr=root, vtcr=0x8005_3590)
Translation(pa=0x40200000, level=1, read+write+execute)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from pkvm_emu.machine.pagetable import DESC_TABLE, DESC_VALID, LAST_LEVEL, PAGE_SHIFT, PhysMem

HCR_VM = 1 << 0
SCTLR_M = 1 << 0
SCTLR_WXN = 1 << 19
TCR_DS_EL1 = 1 << 59
TCR_DS_EL2 = 1 << 32
VTCR_DS = 1 << 32
VTCR_SL2 = 1 << 33
VTCR_HA = 1 << 21

_AF = 1 << 10


class FaultKind(Enum):
    """Why a translation ended; the values are the classes of the fault status code."""

    ADDRESS_SIZE = "address size"
    TRANSLATION = "translation"
    ACCESS_FLAG = "access flag"
    PERMISSION = "permission"
    GRANULE = "granule not supported here"


class Access(Enum):
    """What is asked for; ``ANY`` checks no permission."""

    ANY = "any"
    READ = "read"
    WRITE = "write"
    EXECUTE = "execute"


class Regime(Enum):
    """Stage-1 translation regimes; ``EL2`` with HCR_EL2.E2H set behaves as ``EL20`` (two ranges, EL1 format)."""

    EL10 = "EL1&0"
    EL2 = "EL2"
    EL20 = "EL2&0"


class Translation(NamedTuple):
    """A successful walk of one stage, or of both.

    ``pa`` is the output address in bytes, ``level`` the leaf's level, ``descriptor`` its 64 bits (0 when translation is
    off); the flags say what the asking exception level may do; ``attr_index`` is AttrIndx (stage 1) or MemAttr
    (stage 2).
    """

    pa: int
    level: int
    descriptor: int
    readable: bool
    writable: bool
    executable: bool
    attr_index: int

    def __repr__(self) -> str:
        flags = [n for n, on in (("read", self.readable), ("write", self.writable), ("execute", self.executable)) if on]
        return f"Translation(pa={self.pa:#x}, level={self.level}, {'+'.join(flags) or 'no access'})"


class Fault(NamedTuple):
    """A failed walk: which stage, at which level, why; ``on_walk`` says it hit a stage-1 table access (S1PTW)."""

    kind: FaultKind
    stage: int
    level: int
    address: int
    ipa: int
    descriptor: int = 0
    on_walk: bool = False

    @property
    def fsc(self) -> int:
        """Fault status code as ESR_ELx.ISS[5:0] has it (level -1 uses its own encodings)."""
        if self.level < 0:
            return 0x29 if self.kind is FaultKind.ADDRESS_SIZE else 0x2B
        return _FSC_BASE[self.kind] + self.level

    def __str__(self) -> str:
        where = f"stage-{self.stage} {self.kind.value} fault, level {self.level}, address {self.address:#x}"
        return where + (" (on a stage-1 table walk)" if self.on_walk else "")


_FSC_BASE = {
    FaultKind.ADDRESS_SIZE: 0x00,
    FaultKind.TRANSLATION: 0x04,
    FaultKind.ACCESS_FLAG: 0x08,
    FaultKind.PERMISSION: 0x0C,
    FaultKind.GRANULE: 0x04,
}
_PA_BITS = (32, 36, 40, 42, 44, 48, 52, 56)


@dataclass(frozen=True)
class Stage1Regs:
    """Registers of a stage-1 regime, by the ELx of that regime."""

    ttbr0: int
    tcr: int
    ttbr1: int = 0
    sctlr: int = SCTLR_M
    regime: Regime = Regime.EL10


@dataclass(frozen=True)
class Stage2Regs:
    """Registers of the stage-2 translation."""

    vttbr: int
    vtcr: int
    hcr: int = HCR_VM


class _Walk(NamedTuple):
    """Where a walk starts."""

    root: int
    bits: int
    level: int
    ds: bool
    offset: int
    pa_bits: int
    hardware_af: bool


def translate_stage2(
    mem: PhysMem, ipa: int, *, vttbr: int, vtcr: int, hcr: int = HCR_VM, access: Access = Access.ANY
) -> Translation | Fault:
    """IPA to PA by VTTBR_EL2/VTCR_EL2. With HCR_EL2.VM clear the address comes back unchanged.

    Args:
        ipa: intermediate physical address in bytes.
        access: the permission to check; execute is as for EL1.
    """
    if not hcr & HCR_VM:
        return Translation(ipa, 0, 0, True, True, True, 0xF)
    bits = 64 - (vtcr & 0x3F)
    if vtcr >> 14 & 3:
        return Fault(FaultKind.GRANULE, 2, 0, ipa, ipa)
    ds = bool(vtcr & VTCR_DS)
    level = -1 if ds and vtcr & VTCR_SL2 else (2, 1, 0, 3)[vtcr >> 6 & 3]
    if ipa >> bits:
        return Fault(FaultKind.TRANSLATION, 2, max(level, 0), ipa, ipa)
    start = _Walk(_base(vttbr, ds), bits, level, ds, ipa, _PA_BITS[vtcr >> 16 & 7], bool(vtcr & VTCR_HA))
    end = _descend(mem, start, None)
    if isinstance(end, Fault):
        return end._replace(stage=2, address=ipa, ipa=ipa)
    pa, level, descriptor, _ = end
    # XN[1:0]: 0 all, 1 not EL1, 2 none, 3 not EL0. Without FEAT_XNX only bit 54 counts, and 0 and 2 say the same then.
    executable = (descriptor >> 53 & 3) in (0, 3)
    found = Translation(
        pa, level, descriptor, bool(descriptor & 0x40), bool(descriptor & 0x80), executable, descriptor >> 2 & 0xF
    )
    return _checked(found, access, 2, ipa, ipa)


def translate_stage1(
    mem: PhysMem,
    va: int,
    regs: Stage1Regs,
    *,
    stage2: Stage2Regs | None = None,
    access: Access = Access.ANY,
    user: bool = False,
) -> Translation | Fault:
    """VA to IPA (to PA for EL2) by one stage-1 regime.

    Args:
        va: virtual address; top-byte-ignore follows TCR.
        regs: the regime's registers.
        stage2: translates the addresses of stage-1 tables too, as for a guest or the deprivileged host.
        access: the permission to check.
        user: check as EL0 instead of as the privileged level.
    """
    if not regs.sctlr & SCTLR_M:
        return Translation(va, 0, 0, True, True, True, 0)
    start = _stage1_start(va, regs)
    if isinstance(start, Fault):
        return start
    end = _descend(mem, start, stage2)
    if isinstance(end, Fault):
        return end if end.stage == 2 else end._replace(stage=1, address=va)
    pa, level, descriptor, hierarchical = end
    return _checked(_stage1_result(pa, level, descriptor, hierarchical, regs, user), access, 1, va, pa)


def translate(
    mem: PhysMem,
    va: int,
    regs: Stage1Regs,
    stage2: Stage2Regs,
    *,
    access: Access = Access.ANY,
    user: bool = False,
) -> Translation | Fault:
    """VA to PA through both stages; the permissions are those that both allow."""
    first = translate_stage1(mem, va, regs, stage2=stage2, access=access, user=user)
    if isinstance(first, Fault):
        return first
    second = translate_stage2(mem, first.pa, vttbr=stage2.vttbr, vtcr=stage2.vtcr, hcr=stage2.hcr, access=access)
    if isinstance(second, Fault):
        return second._replace(address=va)
    return first._replace(
        pa=second.pa,
        readable=first.readable and second.readable,
        writable=first.writable and second.writable,
        executable=first.executable and second.executable,
    )


def _stage1_start(va: int, regs: Stage1Regs) -> _Walk | Fault:
    tcr = regs.tcr
    single = regs.regime is Regime.EL2
    upper = not single and bool(va >> 55 & 1)
    ds = bool(tcr & (TCR_DS_EL2 if single else TCR_DS_EL1))
    size = (tcr >> 16 if upper else tcr) & 0x3F
    granule_ok = (tcr >> 30 & 3) == 2 if upper else not tcr >> 14 & 3
    disabled = not single and tcr >> (23 if upper else 7) & 1
    ignore_top = tcr >> (20 if single else 38 if upper else 37) & 1
    bits = 64 - size
    level = LAST_LEVEL + 1 - (bits - PAGE_SHIFT + 8) // 9
    if not granule_ok:
        return Fault(FaultKind.GRANULE, 1, 0, va, 0)
    high = (va & ((1 << 56) - 1 if ignore_top else -1)) >> bits
    want = ((1 << 56 if ignore_top else 1 << 64) - 1) >> bits if upper else 0
    if disabled or high != want or not 16 <= bits <= (52 if ds else 48):
        return Fault(FaultKind.TRANSLATION, 1, max(level, 0), va, 0)
    root = regs.ttbr1 if upper else regs.ttbr0
    pa_bits = _PA_BITS[tcr >> (16 if single else 32) & 7]
    hardware_af = bool(tcr >> (21 if single else 39) & 1)
    return _Walk(_base(root, ds), bits, level, ds, va & (1 << bits) - 1, pa_bits, hardware_af)


def _base(ttbr: int, ds: bool) -> int:
    """Root address of a TTBR: CnP and ASID/VMID left out; with DS bits 51:48 lie in bits 5:2."""
    root = ttbr & 0x0000_FFFF_FFFF_FFFE
    if ds:
        root = (ttbr & 0x0000_FFFF_FFFF_FFC0) | (ttbr >> 2 & 0xF) << 48
    return root


def _output(descriptor: int, ds: bool) -> int:
    if ds:
        return (descriptor & 0x0003_FFFF_FFFF_F000) | (descriptor >> 8 & 3) << 50
    return descriptor & 0x0000_FFFF_FFFF_F000


def _descend(mem: PhysMem, walk: _Walk, stage2: Stage2Regs | None) -> tuple[int, int, int, int] | Fault:
    """``(output address, level, leaf descriptor, hierarchical APTable/XNTable bits)`` or the fault."""
    table, level, hierarchical = walk.root, walk.level, 0
    root_mask = (1 << walk.bits >> _shift(level)) - 1 or 511
    while True:
        mask = root_mask if level == walk.level else 511
        entry = table + (walk.offset >> _shift(level) & mask) * 8
        if stage2 is not None:
            found = translate_stage2(
                mem, entry, vttbr=stage2.vttbr, vtcr=stage2.vtcr, hcr=stage2.hcr, access=Access.READ
            )
            if isinstance(found, Fault):
                return found._replace(on_walk=True)
            entry = found.pa
        descriptor = mem.read_u64(entry)
        if not descriptor & DESC_VALID or (level == LAST_LEVEL and descriptor & 3 != DESC_TABLE):
            return Fault(FaultKind.TRANSLATION, 1, level, walk.offset, 0, descriptor)
        if level < LAST_LEVEL and descriptor & 3 == DESC_TABLE:
            hierarchical |= descriptor >> 59 & 0xF
            table, level = _output(descriptor, walk.ds) & ~0xFFF, level + 1
            continue
        if level < (0 if walk.ds else 1):
            return Fault(FaultKind.TRANSLATION, 1, level, walk.offset, 0, descriptor)
        output = _output(descriptor, walk.ds)
        if output >> walk.pa_bits:
            return Fault(FaultKind.ADDRESS_SIZE, 1, level, walk.offset, 0, descriptor)
        if not (descriptor & _AF or walk.hardware_af):
            return Fault(FaultKind.ACCESS_FLAG, 1, level, walk.offset, 0, descriptor)
        low = (1 << _shift(level)) - 1
        return output & ~low | walk.offset & low, level, descriptor, hierarchical


def _shift(level: int) -> int:
    return PAGE_SHIFT + 9 * (LAST_LEVEL - level)


def _stage1_result(
    pa: int, level: int, descriptor: int, hierarchical: int, regs: Stage1Regs, user: bool
) -> Translation:
    two_levels = regs.regime is not Regime.EL2
    # Hierarchical bits: 0 PXNTable, 1 UXNTable (XNTable), 2 no EL0 access, 3 read only.
    read_only = bool(descriptor & 0x80 or hierarchical & 8)
    el0 = two_levels and bool(descriptor & 0x40) and not hierarchical & 4
    user_xn = bool(descriptor >> 54 & 1 or hierarchical & 2)
    privileged_xn = bool(descriptor >> 53 & 1 or hierarchical & 1) if two_levels else user_xn
    readable = el0 if user else True
    writable = readable and not read_only
    if user:
        executable = not user_xn
    else:
        # A page that EL0 may write is never executable at the privileged level.
        executable = not (privileged_xn or (el0 and not read_only))
    if writable and regs.sctlr & SCTLR_WXN:
        executable = False
    return Translation(pa, level, descriptor, readable, writable, executable, descriptor >> 2 & 7)


def _checked(found: Translation, access: Access, stage: int, address: int, ipa: int) -> Translation | Fault:
    allowed = {
        Access.ANY: True,
        Access.READ: found.readable,
        Access.WRITE: found.writable,
        Access.EXECUTE: found.executable,
    }[access]
    if allowed:
        return found
    return Fault(FaultKind.PERMISSION, stage, found.level, address, ipa, found.descriptor)
