"""An Arm SMMUv3: identification, queues, stream table, and translation of other models' DMA.

Registers answer at once: CR0ACK follows CR0, GBPA.UPDATE is clear, and a write of CMDQ_PROD has every command consumed. DMA of a
model whose node has ``iommus = <&smmu ID>`` goes through the stream table and the tables that the driver wrote; a refusal is an
event record in its queue. There is no TLB: a missing invalidation is not noticed. Source: Arm IHI 0070
(SMMU architecture, version 3).
"""

from __future__ import annotations

from pkvm_emu.devices.model import DmaError, Field, Model, Reg, Register, model
from pkvm_emu.devices.models.smmu_v3_tables import Fault, StreamTable

_CMD_SIZE, _EVENT_SIZE = 16, 32
_ERR_SHIFT, _RD_MASK = 24, 0xF_FFFF
CERROR_ILL, CERROR_ABT = 1, 2
COMMANDS = {
    0x01: "PREFETCH_CONFIG", 0x02: "PREFETCH_ADDR",
    0x03: "CFGI_STE", 0x04: "CFGI_STE_RANGE", 0x05: "CFGI_CD", 0x06: "CFGI_CD_ALL", 0x07: "CFGI_VMS_PIDM",
    0x10: "TLBI_NH_ALL", 0x11: "TLBI_NH_ASID", 0x12: "TLBI_NH_VA", 0x13: "TLBI_NH_VAA",
    0x20: "TLBI_EL2_ALL", 0x21: "TLBI_EL2_ASID", 0x22: "TLBI_EL2_VA", 0x23: "TLBI_EL2_VAA",
    0x28: "TLBI_S12_VMALL", 0x2A: "TLBI_S2_IPA", 0x30: "TLBI_NSNH_ALL",
    0x40: "ATC_INV", 0x41: "PRI_RESP", 0x44: "RESUME", 0x45: "STALL_TERM", 0x46: "SYNC",
}  # fmt: skip
_SYNC, _CS_MSI = 0x46, 1


class Idr0(Register):
    """SMMU_IDR0"""

    WIDTH = 32
    s2p = Field(0)
    s1p = Field(1)
    ttf = Field(3, 2)
    cohacc = Field(4)
    btm = Field(5)
    httu = Field(7, 6)
    hyp = Field(9)
    ats = Field(10)
    asid16 = Field(12)
    msi = Field(13)
    sev = Field(14)
    pri = Field(16)
    vmid16 = Field(18)
    cd2l = Field(19)
    ttendian = Field(22, 21)
    stall_model = Field(25, 24)
    term_model = Field(26)
    st_level = Field(28, 27)


class Idr1(Register):
    """SMMU_IDR1"""

    WIDTH = 32
    sidsize = Field(5, 0)
    ssidsize = Field(10, 6)
    priqs = Field(15, 11)
    eventqs = Field(20, 16)
    cmdqs = Field(25, 21)


class Idr5(Register):
    """SMMU_IDR5"""

    WIDTH = 32
    oas = Field(2, 0)
    gran4k = Field(4)
    gran16k = Field(5)
    gran64k = Field(6)
    vax = Field(11, 10)


class Cr0(Register, flags=True):
    """SMMU_CR0 and SMMU_CR0ACK"""

    WIDTH = 32
    smmuen = Field(0)
    priqen = Field(1)
    eventqen = Field(2)
    cmdqen = Field(3)
    atschk = Field(4)
    vmw = Field(8, 6)


class Cr2(Register, flags=True):
    """SMMU_CR2"""

    WIDTH = 32
    e2h = Field(0)
    recinvsid = Field(1)
    ptm = Field(2)


class Gbpa(Register, flags=True):
    """SMMU_GBPA"""

    WIDTH = 32
    update = Field(31)
    abort = Field(20)
    shcfg = Field(13, 12)


class Gerror(Register, flags=True):
    """SMMU_GERROR and SMMU_GERRORN"""

    WIDTH = 32
    cmdq_err = Field(0)
    eventq_abt_err = Field(2)
    sfm_err = Field(8)


class IrqCtrl(Register, flags=True):
    """SMMU_IRQ_CTRL and SMMU_IRQ_CTRLACK"""

    WIDTH = 32
    gerror_irqen = Field(0)
    priq_irqen = Field(1)
    eventq_irqen = Field(2)


class StrtabBase(Register):
    """SMMU_STRTAB_BASE"""

    ra = Field(62)
    addr = Field(51, 6)


class StrtabBaseCfg(Register):
    """SMMU_STRTAB_BASE_CFG"""

    WIDTH = 32
    log2size = Field(5, 0)
    split = Field(10, 6)
    fmt = Field(17, 16)


class QueueBase(Register):
    """SMMU_CMDQ_BASE and SMMU_EVENTQ_BASE"""

    ra = Field(62)
    addr = Field(51, 5)
    log2size = Field(4, 0)


@model(compatible="arm,smmu-v3")
class SmmuV3(Model):
    """One SMMUv3 with stage 1 and 2, 4 KiB granule, two-level stream tables, 16-bit VMIDs and ASIDs, 48-bit addresses.

    Attributes:
        commands: how many commands of each kind were consumed, by name.
    """

    idr0 = Reg(0x00, Idr0, access="ro", reset=Idr0.build(
        s2p=1, s1p=1, ttf=2, cohacc=1, asid16=1, msi=1, vmid16=1, cd2l=1, ttendian=2, stall_model=1, term_model=1, st_level=1,
    ))  # fmt: skip
    idr1 = Reg(0x04, Idr1, access="ro", reset=Idr1.build(sidsize=16, ssidsize=5, eventqs=15, cmdqs=15))
    idr2 = Reg(0x08, access="ro")
    idr3 = Reg(0x0C, access="ro")
    idr4 = Reg(0x10, access="ro")
    idr5 = Reg(0x14, Idr5, access="ro", reset=Idr5.build(oas=5, gran4k=1))
    iidr = Reg(0x18, access="ro", reset=0x43B)
    aidr = Reg(0x1C, access="ro", reset=2)
    cr0 = Reg(0x20, Cr0)
    cr0ack = Reg(0x24, Cr0, access="ro")
    cr1 = Reg(0x28)
    cr2 = Reg(0x2C, Cr2)
    statusr = Reg(0x40, access="ro")
    gbpa = Reg(0x44, Gbpa)
    irq_ctrl = Reg(0x50, IrqCtrl)
    irq_ctrlack = Reg(0x54, IrqCtrl, access="ro")
    gerror = Reg(0x60, Gerror, access="ro")
    gerrorn = Reg(0x64, Gerror)
    gerror_irq_cfg0 = Reg(0x68, width=64)
    gerror_irq_cfg1 = Reg(0x70)
    gerror_irq_cfg2 = Reg(0x74)
    strtab_base = Reg(0x80, StrtabBase, width=64)
    strtab_base_cfg = Reg(0x88, StrtabBaseCfg)
    cmdq_base = Reg(0x90, QueueBase, width=64)
    cmdq_prod = Reg(0x98)
    cmdq_cons = Reg(0x9C)
    eventq_base = Reg(0xA0, QueueBase, width=64)
    eventq_prod0 = Reg(0xA8, label="EVENTQ_PROD")
    eventq_cons0 = Reg(0xAC, label="EVENTQ_CONS")
    eventq_irq_cfg0 = Reg(0xB0, width=64)
    eventq_irq_cfg1 = Reg(0xB8)
    eventq_irq_cfg2 = Reg(0xBC)
    eventq_prod = Reg(0x1_00A8)
    eventq_cons = Reg(0x1_00AC)

    def reset(self) -> None:
        """No commands yet."""
        self.commands: dict[str, int] = {}

    # Control

    def write_cr0(self, value: Cr0) -> None:
        """CR0ACK follows at once; enabling the command queue consumes what is in it."""
        self.cr0 = value
        self.cr0ack = value
        self._consume()

    def write_gbpa(self, value: Gbpa) -> None:
        """Takes effect only with UPDATE, which is clear again."""
        if value.update:
            self.gbpa = value.replace(update=0)

    def write_irq_ctrl(self, value: IrqCtrl) -> None:
        """IRQ_CTRLACK follows at once."""
        self.irq_ctrl = value
        self.irq_ctrlack = value

    def write_gerrorn(self, value: Gerror) -> None:
        """Acknowledges errors; a command queue that had stopped goes on."""
        self.gerrorn = value
        self._consume()

    def read_eventq_prod0(self) -> int:
        """The alias of EVENTQ_PROD in page 0."""
        return int(self.eventq_prod)

    def read_eventq_cons0(self) -> int:
        """The alias of EVENTQ_CONS in page 0."""
        return int(self.eventq_cons)

    def write_eventq_prod0(self, value: int) -> None:
        """The alias of EVENTQ_PROD in page 0."""
        self.eventq_prod = value

    def write_eventq_cons0(self, value: int) -> None:
        """The alias of EVENTQ_CONS in page 0."""
        self.eventq_cons = value

    # Commands

    def write_cmdq_prod(self, value: int) -> None:
        """Every command up to there is consumed before the write is over."""
        self.cmdq_prod = value
        self._consume()

    def _consume(self) -> None:
        base = self.cmdq_base
        wrap = 1 << base.log2size
        while self.cr0.cmdqen and not (self.gerror ^ self.gerrorn) & 1:
            cons = self.cmdq_cons & _RD_MASK
            if cons & 2 * wrap - 1 == self.cmdq_prod & 2 * wrap - 1:
                return
            error = self._execute((base.addr << 5) + (cons & wrap - 1) * _CMD_SIZE)
            if error:
                self.cmdq_cons = error << _ERR_SHIFT | cons
                self._raise_error(Gerror.build(cmdq_err=1))
                return
            self.cmdq_cons = cons + 1 & 2 * wrap - 1

    def _execute(self, address: int) -> int:
        """Run one command: 0 or a CERROR code."""
        try:
            data = self.physical_read(address, _CMD_SIZE)
        except DmaError:
            return CERROR_ABT
        low, high = (int.from_bytes(data[at : at + 8], "little") for at in (0, 8))
        name = COMMANDS.get(low & 0xFF)
        if name is None:
            return CERROR_ILL
        self.commands[name] = self.commands.get(name, 0) + 1
        target = high & 0xF_FFFF_FFFF_FFFC
        if low & 0xFF == _SYNC and low >> 12 & 3 == _CS_MSI and target:
            try:
                self.physical_write(target, (low >> 32).to_bytes(4, "little"))
            except DmaError:
                return CERROR_ABT
        return 0

    def _raise_error(self, bit: Gerror) -> None:
        self.gerror = self.gerror ^ bit
        if self.irq_ctrl.gerror_irqen:
            self._signal("gerror")

    def _signal(self, name: str) -> None:
        for one in (name, "combined"):
            if self.has_irq(one):
                self.irq(one)
                return

    # DMA of other models

    def translate(self, stream: int, address: int, is_write: bool) -> int:
        """The physical address behind one that device ``stream`` uses; a refusal is recorded as an event."""
        if not self.cr0.smmuen:
            if self.gbpa.abort:
                raise DmaError(f"{self.name}: disabled, and GBPA.ABORT refuses {address:#x} of stream {stream:#x}")
            return address
        table = StreamTable(self.physical_read, self.strtab_base.addr << 6, self.strtab_base_cfg)
        try:
            return table.translate(stream, address, is_write)
        except Fault as fault:
            self._event(fault, stream, address, is_write)
            kind = "write" if is_write else "read"
            raise DmaError(f"{self.name}: {fault} for a {kind} at {address:#x} of stream {stream:#x}") from fault

    def _event(self, fault: Fault, stream: int, address: int, is_write: bool) -> None:
        base = self.eventq_base
        wrap = 1 << base.log2size
        prod, cons = self.eventq_prod & 2 * wrap - 1, self.eventq_cons & 2 * wrap - 1
        if not self.cr0.eventqen or prod ^ cons == wrap or fault.code is None:
            return
        details = 0 if fault.ipa is None else 1 << 39
        words = (
            fault.code | stream << 32,
            details | int(not is_write) << 35 | 2 << 40,
            address,
            (fault.ipa or 0) & ~0xFFF,
        )
        record = b"".join(word.to_bytes(8, "little") for word in words)
        try:
            self.physical_write((base.addr << 5) + (prod & wrap - 1) * _EVENT_SIZE, record)
        except DmaError:
            self._raise_error(Gerror.build(eventq_abt_err=1))
            return
        self.eventq_prod = prod + 1 & 2 * wrap - 1
        if self.irq_ctrl.eventq_irqen:
            self._signal("eventq")
