"""HCR_EL2 and HCRX_EL2: what the hypervisor turns on and traps.

Source: Arm ARM (DDI 0487), "HCR_EL2, Hypervisor Configuration Register".

>>> Hcr(0x80080001).describe()
'RW TSC VM'
"""

from __future__ import annotations

from pkvm_emu.arch.bitfield import Field, Register


class Hcr(Register, flags=True):
    """HCR_EL2."""

    twedel = Field(63, 60, label="TWEDEL")
    tweden = Field(59, label="TWEDEn")
    tid5 = Field(58)
    dct = Field(57)
    ata = Field(56)
    ttlbos = Field(55)
    ttlbis = Field(54)
    enscxt = Field(53, label="EnSCXT")
    tocu = Field(52)
    amvoffen = Field(51)
    ticab = Field(50)
    tid4 = Field(49)
    gpf = Field(48)
    fien = Field(47)
    fwb = Field(46)
    nv2 = Field(45)
    at = Field(44)
    nv1 = Field(43)
    nv = Field(42)
    api = Field(41)
    apk = Field(40)
    tme = Field(39)
    miocnce = Field(38)
    tea = Field(37)
    terr = Field(36)
    tlor = Field(35)
    e2h = Field(34)
    id_ = Field(33, label="ID")
    cd = Field(32)
    rw = Field(31)
    trvm = Field(30)
    hcd = Field(29)
    tdz = Field(28)
    tge = Field(27)
    tvm = Field(26)
    ttlb = Field(25)
    tpu = Field(24)
    tpcp = Field(23)
    tsw = Field(22)
    tacr = Field(21)
    tidcp = Field(20)
    tsc = Field(19)
    tid3 = Field(18)
    tid2 = Field(17)
    tid1 = Field(16)
    tid0 = Field(15)
    twe = Field(14)
    twi = Field(13)
    dc = Field(12)
    bsu = Field(11, 10)
    fb = Field(9)
    vse = Field(8)
    vi = Field(7)
    vf = Field(6)
    amo = Field(5)
    imo = Field(4)
    fmo = Field(3)
    ptw = Field(2)
    swio = Field(1)
    vm = Field(0)


class Hcrx(Register, flags=True):
    """HCRX_EL2."""

    pttwi = Field(16, label="PTTWI")
    sctlr2en = Field(15, label="SCTLR2En")
    tcr2en = Field(14, label="TCR2En")
    mscen = Field(11, label="MSCEn")
    mce2 = Field(10)
    cmow = Field(9)
    vfnmi = Field(8)
    vinmi = Field(7)
    tallint = Field(6)
    smpme = Field(5)
    fgtnxs = Field(4, label="FGTnXS")
    fnxs = Field(3, label="FnXS")
    enasr = Field(2, label="EnASR")
    enals = Field(1, label="EnALS")
    enas0 = Field(0, label="EnAS0")


HOST_HCR = int(Hcr.build(rw=1, api=1, apk=1))
"""What every host runs with: 64-bit EL1, pointer authentication not trapped."""
HOST_PROTECTED_HCR = HOST_HCR | int(Hcr.build(tsc=1))
"""The protected-mode host before finalisation; VM is added at finalise, E2H under hVHE, ATA with MTE."""
