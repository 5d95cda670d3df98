"""Google's S2MPU: it lets DMA through or not, by a table of permissions that the hypervisor keeps, and translates nothing.

Two kinds: ``google,s2mpu`` (here the one with contexts, version 2.0) and ``google,s2mpu-v9`` (version 9.0). A first-level register
a gigabyte and VID holds a permission or points at a table in memory, with two (v9: four) bits a page. A refused access sets the
fault registers and raises the interrupt. ``google,sysmmu_sync`` tells when invalidations have reached the walkers behind it.

Sources: ``arch/arm64/include/asm/kvm_s2mpu.h`` of android13-5.10 (registers, versions, table format); for v9 what the drivers of
5.15 and 6.1 write (permissions in the upper half of each nibble, protection per VID at 0x50), and their fault handlers.
"""

from __future__ import annotations

from pkvm_emu.devices.model import DmaError, Field, Model, Reg, Register, model

_VIDS, _GIGABYTES = 8, 64
_GIGABYTE = 1 << 30
_READ, _WRITE = 1, 2
_FAULT_ACCESS, _FAULT_CONTEXT = 2, 4
_VERSION_2, _VERSION_9 = 0x2000_0000, 0x9000_0000
_L2_ADDRESS_SHIFT = 4
_PAGE_SHIFT = 12


class Control(Register):
    """``CTRL0``."""

    enable = Field(0)
    interrupt_enable = Field(1)
    fault_resp = Field(2)


class L1Attributes(Register):
    """``L1ENTRY_ATTR``: a table, or the permission of the whole gigabyte."""

    l2table_en = Field(0)
    prot = Field(2, 1)
    gran = Field(5, 4)


class FaultInfo(Register):
    """``FAULT_INFO`` of a VID."""

    vid = Field(26, 24)
    kind = Field(23, 21)
    is_write = Field(20)
    length = Field(19, 16)
    id = Field(15, 0)


@model(compatible="google,s2mpu")
class S2mpu(Model):
    """An S2MPU of version 2.0 with a context for each VID.

    Poke ``version`` for another one (0x11000000 has no contexts), ``num_context`` for fewer contexts.
    """

    ctrl0 = Reg(0x00, Control)
    ctrl1 = Reg(0x04)
    cfg = Reg(0x10)
    interrupt_enable_per_vid = Reg(0x20)
    interrupt_clear = Reg(0x2C, access="wo")
    version = Reg(0x60, reset=_VERSION_2, access="ro")
    info = Reg(0x68, access="ro")
    num_context = Reg(0x100, reset=_VIDS, access="ro")
    context_cfg_valid_vid = Reg(0x104)
    all_invalidation = Reg(0x1000, access="wo")
    range_invalidation = Reg(0x1020, access="wo")
    range_start_ppn = Reg(0x1024)
    range_end_ppn = Reg(0x1028)
    sync_cmd = Reg(0x102C, access="wo")
    sync_comp = Reg(0x1030, access="ro")
    fault_status = Reg(0x2000, access="ro")
    fault_pa_low = Reg(0x2004, access="ro", count=_VIDS, stride=0x20)
    fault_pa_high = Reg(0x2008, access="ro", count=_VIDS, stride=0x20)
    fault_info = Reg(0x2010, FaultInfo, access="ro", count=_VIDS, stride=0x20)
    l1entry_l2table_addr = Reg(0x4000, count=_VIDS * _GIGABYTES, stride=8)
    l1entry_attr = Reg(0x4004, L1Attributes, count=_VIDS * _GIGABYTES, stride=8)

    #: How many bits a page has in a table, and where in them its permission is.
    BITS, PROT_SHIFT = 2, 0

    def write_sync_cmd(self, value: int) -> None:
        """An invalidation has reached everything at once."""
        self.sync_comp = value & 1

    def write_interrupt_clear(self, value: int) -> None:
        """Forget the faults of these VIDs."""
        self.fault_status &= ~value

    def protects(self, vid: int) -> bool:
        """Whether accesses of a VID are checked."""
        return bool(self.ctrl0.enable)

    def permission(self, vid: int, address: int) -> int:
        """What a VID may do at an address: bit 0 reads, bit 1 writes."""
        entry = vid * _GIGABYTES + address // _GIGABYTE
        attributes = self.l1entry_attr[entry]
        if not attributes.l2table_en:
            return int(attributes.prot)
        page = address % _GIGABYTE >> _PAGE_SHIFT
        in_word = 32 // self.BITS
        word = (self.l1entry_l2table_addr[entry] << _L2_ADDRESS_SHIFT) + page // in_word * 4
        value = self._machine.ram.read_u32(word)
        return value >> page % in_word * self.BITS + self.PROT_SHIFT & (_READ | _WRITE)

    def translate(self, stream: int, address: int, is_write: bool) -> int:
        """``address`` itself where VID ``stream`` may access it.

        Raises:
            DmaError: it may not; the fault registers say so.
        """
        vid = stream % _VIDS
        if not self.protects(vid):
            return address
        kind = 0
        if not self._has_context(vid):
            kind = _FAULT_CONTEXT
        elif address >= _GIGABYTES * _GIGABYTE or not self.permission(vid, address) & (_WRITE if is_write else _READ):
            kind = _FAULT_ACCESS
        if not kind:
            return address
        self.fault_pa_low[vid], self.fault_pa_high[vid] = address & 0xFFFF_FFFF, address >> 32
        self.fault_info[vid] = int(FaultInfo(vid << 24 | kind << 21 | is_write << 20))
        self.fault_status |= 1 << vid
        if self.interrupt_enable_per_vid >> vid & 1 and self._interrupts:
            self.irq(0)
        raise DmaError(f"{self.name} refuses VID {vid} a DMA {'write' if is_write else 'read'} at {address:#x}")

    def _has_context(self, vid: int) -> bool:
        contexts = (self.context_cfg_valid_vid >> 4 * index & 0xF for index in range(_VIDS))
        return self.version < _VERSION_2 or any(one == 8 | vid for one in contexts)


@model(compatible="google,s2mpu-v9")
class S2mpuV9(S2mpu):
    """An S2MPU of version 9.0: four bits a page, and protection switched on for each VID."""

    version = Reg(0x60, reset=_VERSION_9, access="ro")
    interrupt_enable_clear = Reg(0x24, access="wo")
    ctrl_prot_en_per_vid_set = Reg(0x50)
    ctrl_prot_en_per_vid_clr = Reg(0x54, access="wo")
    ctrl_fault_resp_type_per_vid_set = Reg(0x70)

    BITS, PROT_SHIFT = 4, 2

    def write_ctrl_prot_en_per_vid_set(self, value: int) -> None:
        """Switch protection on for these VIDs."""
        self.ctrl_prot_en_per_vid_set |= value

    def write_ctrl_prot_en_per_vid_clr(self, value: int) -> None:
        """Switch it off."""
        self.ctrl_prot_en_per_vid_set &= ~value

    def protects(self, vid: int) -> bool:
        """Whether accesses of a VID are checked."""
        return bool(self.ctrl_prot_en_per_vid_set >> vid & 1)


@model(compatible="google,sysmmu_sync")
class SysmmuSync(Model):
    """A SysMMU-sync block; the S2MPU driver uses its second half, at 0x8000."""

    sync_cmd = Reg(0x8000, access="wo")
    sync_comp = Reg(0x8004, access="ro")

    def write_sync_cmd(self, value: int) -> None:
        """An invalidation has reached everything at once."""
        self.sync_comp = value & 1
