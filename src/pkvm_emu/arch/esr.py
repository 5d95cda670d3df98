"""Exception syndromes: ESR_ELx and the ISS encodings that a hypervisor decodes.

Source: Arm ARM (DDI 0487), "ESR_EL2, Exception Syndrome Register (EL2)".

>>> Esr(0x5A000000).describe()
'EC=HVC64 IL=1 ISS=0x0'
"""

from __future__ import annotations

from enum import IntEnum

from pkvm_emu.arch.bitfield import Field, Register


class ExceptionClass(IntEnum):
    """ESR_ELx.EC."""

    UNKNOWN = 0x00
    WFX = 0x01
    CP15_32 = 0x03
    CP15_64 = 0x04
    CP14_MR = 0x05
    CP14_LS = 0x06
    FP_ASIMD = 0x07
    CP10_ID = 0x08
    PAUTH = 0x09
    OTHER = 0x0A
    CP14_64 = 0x0C
    BTI = 0x0D
    ILLEGAL_STATE = 0x0E
    SVC32 = 0x11
    HVC32 = 0x12
    SMC32 = 0x13
    SYS128 = 0x14
    SVC64 = 0x15
    HVC64 = 0x16
    SMC64 = 0x17
    SYS64 = 0x18
    SVE = 0x19
    ERET = 0x1A
    FPAC = 0x1C
    SME = 0x1D
    IABT_LOW = 0x20
    IABT_CUR = 0x21
    PC_ALIGN = 0x22
    DABT_LOW = 0x24
    DABT_CUR = 0x25
    SP_ALIGN = 0x26
    MOPS = 0x27
    FP_EXC32 = 0x28
    FP_EXC64 = 0x2C
    GCS = 0x2D
    SERROR = 0x2F
    BREAKPT_LOW = 0x30
    BREAKPT_CUR = 0x31
    SOFTSTP_LOW = 0x32
    SOFTSTP_CUR = 0x33
    WATCHPT_LOW = 0x34
    WATCHPT_CUR = 0x35
    BKPT32 = 0x38
    VECTOR32 = 0x3A
    BRK64 = 0x3C


class FaultStatus(IntEnum):
    """DFSC / IFSC: the fault status codes, with the level of the lookup."""

    ADDRESS_SIZE_L0 = 0x00
    ADDRESS_SIZE_L1 = 0x01
    ADDRESS_SIZE_L2 = 0x02
    ADDRESS_SIZE_L3 = 0x03
    TRANSLATION_L0 = 0x04
    TRANSLATION_L1 = 0x05
    TRANSLATION_L2 = 0x06
    TRANSLATION_L3 = 0x07
    ACCESS_FLAG_L0 = 0x08
    ACCESS_FLAG_L1 = 0x09
    ACCESS_FLAG_L2 = 0x0A
    ACCESS_FLAG_L3 = 0x0B
    PERMISSION_L0 = 0x0C
    PERMISSION_L1 = 0x0D
    PERMISSION_L2 = 0x0E
    PERMISSION_L3 = 0x0F
    SYNC_EXTERNAL = 0x10
    SYNC_TAG_CHECK = 0x11
    TRANSLATION_LM2 = 0x12
    SYNC_EXTERNAL_WALK_LM1 = 0x13
    SYNC_EXTERNAL_WALK_L0 = 0x14
    SYNC_EXTERNAL_WALK_L1 = 0x15
    SYNC_EXTERNAL_WALK_L2 = 0x16
    SYNC_EXTERNAL_WALK_L3 = 0x17
    SYNC_ECC = 0x18
    SYNC_ECC_WALK_LM1 = 0x1B
    SYNC_ECC_WALK_L0 = 0x1C
    SYNC_ECC_WALK_L1 = 0x1D
    SYNC_ECC_WALK_L2 = 0x1E
    SYNC_ECC_WALK_L3 = 0x1F
    ALIGNMENT = 0x21
    ADDRESS_SIZE_LM1 = 0x29
    TRANSLATION_LM1 = 0x2B
    TLB_CONFLICT = 0x30
    UNSUPPORTED_ATOMIC = 0x31
    LOCKDOWN = 0x34
    UNSUPPORTED_EXCLUSIVE = 0x35


class AccessSize(IntEnum):
    """SAS: size of the access that aborted; the value is log2 of the bytes."""

    BYTE = 0
    HALF = 1
    WORD = 2
    DOUBLE = 3


class Direction(IntEnum):
    """Direction bit of a trapped system-register access."""

    WRITE = 0
    READ = 1


class Esr(Register):
    """ESR_ELx, any class."""

    iss2 = Field(55, 32)
    ec = Field(31, 26, ExceptionClass)
    il = Field(25)
    iss = Field(24, 0)

    def describe(self) -> str:
        """``EC=… IL=… ISS=…``; ISS2 only when set."""
        text = f"{Esr.ec.text(int(self) >> 26 & 0x3F)} IL={self.il} ISS={self.iss:#x}"
        return f"{text} ISS2={self.iss2:#x}" if self.iss2 else text

    def detail(self) -> Esr:
        """The same value as the class that decodes its ISS (DataAbort, SysRegTrap, …), or itself."""
        return ISS_CLASSES.get(int(self.ec), Esr)(int(self))

    @property
    def from_lower_el(self) -> bool:
        """True for the abort and debug classes taken from a lower exception level."""
        return int(self.ec) in (0x20, 0x24, 0x30, 0x32, 0x34)


class _Decoded(Esr):
    """An ESR whose ISS fields are declared: describes them in place of the raw ISS."""

    def describe(self) -> str:
        own = [f for f in self.FIELDS.values() if f.name not in ("iss2", "ec", "il", "iss")]
        head = f"{Esr.ec.text(int(self) >> 26 & 0x3F)} IL={self.il}"
        return " ".join([head, *(f.text((int(self) >> f.lsb) & f.mask) for f in own)])


class _Abort(_Decoded):
    """What data and instruction aborts have in common."""

    fnv = Field(10, label="FnV")
    ea = Field(9)
    s1ptw = Field(7)

    @property
    def status(self) -> int:
        """DFSC or IFSC (same bits), a :class:`FaultStatus` where the code has a name."""
        return FaultStatus(int(self) & 0x3F) if int(self) & 0x3F in _STATUS else int(self) & 0x3F

    @property
    def level(self) -> int | None:
        """Level of the lookup that faulted (-2 to 3), None where the status has no level."""
        return fault_level(int(self) & 0x3F)

    @property
    def is_translation(self) -> bool:
        """A translation fault, any level."""
        return fault_kind(int(self) & 0x3F) == "translation"

    @property
    def is_permission(self) -> bool:
        """A permission fault, any level."""
        return fault_kind(int(self) & 0x3F) == "permission"


class DataAbort(_Abort):
    """ESR with the ISS of a data abort (EC 0x24, 0x25)."""

    isv = Field(24)
    sas = Field(23, 22, AccessSize)
    sse = Field(21)
    srt = Field(20, 16)
    sf = Field(15)
    ar = Field(14)
    vncr = Field(13)
    set_ = Field(12, 11, label="SET")
    cm = Field(8)
    wnr = Field(6, label="WnR")
    dfsc = Field(5, 0, FaultStatus)

    @property
    def access_bytes(self) -> int | None:
        """Bytes of the access; None unless ISV is set."""
        return 1 << int(self.sas) if self.isv else None


class InstructionAbort(_Abort):
    """ESR with the ISS of an instruction abort (EC 0x20, 0x21)."""

    set_ = Field(12, 11, label="SET")
    ifsc = Field(5, 0, FaultStatus)


class SysRegTrap(_Decoded):
    """ESR of a trapped MSR, MRS or system instruction (EC 0x18)."""

    op0 = Field(21, 20, label="Op0")
    op2 = Field(19, 17, label="Op2")
    op1 = Field(16, 14, label="Op1")
    crn = Field(13, 10, label="CRn")
    rt = Field(9, 5, label="Rt")
    crm = Field(4, 1, label="CRm")
    direction = Field(0, enum=Direction, label="DIR")

    @property
    def encoding(self) -> tuple[int, int, int, int, int]:
        """``(op0, op1, crn, crm, op2)``, the order of :func:`pkvm_emu.arch.sysreg.by_encoding`."""
        return self.op0, self.op1, self.crn, self.crm, self.op2

    @property
    def is_read(self) -> bool:
        """True for MRS."""
        return bool(int(self) & 1)


class CallSyndrome(_Decoded):
    """ESR of HVC, SMC, SVC or BRK: the 16-bit immediate of the instruction."""

    imm16 = Field(15, 0, label="imm16")


class WfxTrap(_Decoded):
    """ESR of a trapped WFI or WFE (EC 0x01)."""

    cv = Field(24)
    cond = Field(23, 20)
    rn = Field(9, 5, label="Rn")
    rv = Field(2)
    ti = Field(1, 0)


class BtiTrap(_Decoded):
    """ESR of a branch-target exception (EC 0x0d)."""

    btype = Field(1, 0)


ISS_CLASSES: dict[int, type[Esr]] = {
    ExceptionClass.WFX: WfxTrap,
    ExceptionClass.BTI: BtiTrap,
    ExceptionClass.SVC64: CallSyndrome,
    ExceptionClass.HVC64: CallSyndrome,
    ExceptionClass.SMC64: CallSyndrome,
    ExceptionClass.BRK64: CallSyndrome,
    ExceptionClass.SYS64: SysRegTrap,
    ExceptionClass.IABT_LOW: InstructionAbort,
    ExceptionClass.IABT_CUR: InstructionAbort,
    ExceptionClass.DABT_LOW: DataAbort,
    ExceptionClass.DABT_CUR: DataAbort,
}

_STATUS = frozenset(int(code) for code in FaultStatus)
_KINDS = ("address-size", "translation", "access-flag", "permission")
_LEVEL_OUT_OF_LINE = {0x12: -2, 0x13: -1, 0x1B: -1, 0x29: -1, 0x2B: -1}


def fault_kind(status: int) -> str:
    """Group of a fault status: ``translation``, ``permission``, ``access-flag``, ``address-size`` or ``other``."""
    if status < 0x10:
        return _KINDS[status >> 2]
    if status in (0x12, 0x2B):
        return "translation"
    return "address-size" if status == 0x29 else "other"


def fault_level(status: int) -> int | None:
    """Lookup level of a fault status code (-2 to 3); None for codes without one."""
    if status < 0x10 or status >> 2 in (5, 7):
        return status & 3
    return _LEVEL_OUT_OF_LINE.get(status)


def fault_status(kind: str, level: int) -> FaultStatus:
    """The code of a fault ``kind`` (as :func:`fault_kind` names them) at ``level`` 0 to 3.

    Raises:
        ValueError: unknown kind or level.
    """
    if kind not in _KINDS or not 0 <= level <= 3:
        raise ValueError(f"no fault status for {kind!r} at level {level}")
    return FaultStatus(_KINDS.index(kind) << 2 | level)
