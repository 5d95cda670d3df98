"""Power domains of IOMMUs that the host switches by SCMI: the hypervisor looks into the messages on their way to the firmware.

The host writes a message into shared memory and makes an SMC. While the hypervisor handles it the page is its own. Before a
message goes on that switches a registered power domain off, the driver suspends its IOMMU; after one that switches it on, the
driver resumes it. Source: arch/arm64/kvm/hyp/nvhe/power/scmi.c; the layout of messages: Arm DEN 0056 (SCMI), chapters 4.2, 5.
"""

from __future__ import annotations

from errno import EINVAL, EIO, ENOSPC, ENXIO
from typing import TYPE_CHECKING, Any

from pkvm_emu.arch.bitfield import Field, Register
from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.iommu import MAX_POWER_DOMAINS, Iommu
from pkvm_emu.hyp.ops.memory import map_private
from pkvm_emu.hyp.pgtable import PAGE_HYP_DEVICE
from pkvm_emu.hyp.registry import hyp_part
from pkvm_emu.machine.pagetable import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from pkvm_emu.machine.state import State, StateList

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

#: Where a channel keeps what, in shared memory. The payload of POWER_STATE_SET is flags, domain, state; of its answer the status.
_STATUS, _HEADER, _PAYLOAD = 0x04, 0x18, 0x1C
_FLAGS, _DOMAIN, _STATE = _PAYLOAD, _PAYLOAD + 4, _PAYLOAD + 8
_FREE, _ERROR = 1, 2
_POWER_PROTOCOL, _STATE_SET = 0x11, 0x4
_ASYNC = 1
_ON, _OFF = 0, 1 << 30
#: What the firmware is told about an SMC.
_ANSWERED, _ASK_MODULES = 0, 1
#: struct kvm_power_domain: smc_id, domain_id, shmem_base, shmem_size.
_SMC_ID, _DOMAIN_ID, _SHMEM_BASE, _SHMEM_SIZE = 8, 12, 16, 24


class Header(Register):
    """The header of an SCMI message."""

    WIDTH = 32
    token = Field(27, 18)
    protocol = Field(17, 10)
    type = Field(9, 8)
    message = Field(7, 0)


@hyp_part
class ScmiPower(State):
    """The one SCMI channel that the hypervisor follows.

    Attributes:
        smc_id: function id of the SMC that sends a message.
        shmem: PA of the shared memory; 0 before an IOMMU was registered.
        iommus: hyp VAs of the ``struct kvm_hyp_iommu`` that were registered, in order.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.scmi")
        self._hyp = hyp
        self._attached = False
        self.smc_id = 0
        self.shmem = 0
        self.iommus: StateList[int] = StateList(hyp.machine.journal)

    def register(self, iommu: int) -> int:
        """Register the power domain of an IOMMU: 0, -EINVAL (shared memory), -ENXIO (another channel), -ENOSPC (32 are there),
        or what mapping the shared memory returns.
        """
        domain = iommu + self._hyp.part(Iommu).rules.power_domain
        smc_id = self._u32(domain + _SMC_ID)
        base, size = (self._hyp.load_u64(domain + at, "kvm_power_domain") for at in (_SHMEM_BASE, _SHMEM_SIZE))
        if base & PAGE_MASK or size < PAGE_SIZE:
            return -EINVAL
        if not self.shmem:
            error, _ = map_private(self._hyp, base, size, PAGE_HYP_DEVICE)
            if error:
                return error
            self.smc_id, self.shmem = smc_id, base
        elif (self.shmem, self.smc_id) != (base, smc_id):
            return -ENXIO
        if len(self.iommus) == MAX_POWER_DOMAINS:
            return -ENOSPC
        self.iommus.append(iommu)
        if not self._attached:
            self._attached = True
            self._hyp.add_firmware_service("op_host_smc", self._smc, 1, self._switches)
        return 0

    def _smc(self, context: int) -> int | tuple[int, ...]:
        """An SMC of the host: PSCI and FF-A come first, the modules after the channel."""
        answer = self._hyp.traps.host_smc(context)
        if answer != _ASK_MODULES or not self.owns(self._hyp.host_context[0]):
            return answer
        self.handle(self._hyp.host_context)
        return _ANSWERED

    def _switches(self, _context: int) -> bool:
        return self.owns(self._hyp.host_context[0])

    def owns(self, function: int) -> bool:
        """Whether an SMC of the host sends a message on the channel."""
        return bool(self.shmem) and function == self.smc_id

    def handle(self, registers: Any) -> None:
        """Handle the SMC with these registers of the host.

        Raises:
            HypBug: the shared page is not the host's, or a message asks for an asynchronous switch: WARNs at EL2.
        """
        ownership, pfn = self._hyp.ownership, self.shmem >> PAGE_SHIFT
        if ownership.host_donate_hyp(pfn, 1, origin="SCMI"):
            raise HypBug(f"the host does not own the SCMI page {self.shmem:#x} alone: WARN in kvm_host_scmi_handler")
        self._message(registers)
        if ownership.hyp_donate_host(pfn, 1, origin="SCMI"):
            raise HypBug(f"the SCMI page {self.shmem:#x} cannot be given back: WARN in kvm_host_scmi_handler")

    def _message(self, registers: Any) -> None:
        if self._word(_STATUS) & (_FREE | _ERROR):
            return
        header = Header(self._word(_HEADER))
        if header.protocol != _POWER_PROTOCOL or header.message != _STATE_SET:
            self._forward(registers)
            return
        if self._word(_FLAGS) & _ASYNC:
            raise HypBug("the host asks for an asynchronous SCMI power switch: WARN in __kvm_host_scmi_handler")
        iommu, core = self._find(self._word(_DOMAIN)), self._hyp.part(Iommu)
        if iommu is None:
            self._forward(registers)
            return
        state = self._word(_STATE)
        if state == _ON:
            if not self._run(registers):
                core.switch_power(iommu, True)
        elif state == _OFF:
            core.switch_power(iommu, False)
            if self._run(registers):
                core.switch_power(iommu, True)

    def _find(self, domain: int) -> int | None:
        at = self._hyp.part(Iommu).rules.power_domain + _DOMAIN_ID
        return next((iommu for iommu in self.iommus if self._u32(iommu + at) == domain), None)

    def _run(self, registers: Any) -> int:
        """Have the firmware answer, and look at what it says: 0 or -EIO."""
        self._forward(registers)
        status = self._word(_STATUS)
        if not status & (_FREE | _ERROR):
            # The firmware has answered when the SMC returns; it will not change its mind.
            raise HypBug("the firmware leaves the SCMI channel busy for more than a second: WARN in scmi_run_command")
        return -EIO if status & _ERROR or self._word(_PAYLOAD) else 0

    def _forward(self, registers: Any) -> None:
        values = tuple(registers[number] for number in range(18))
        for number, value in enumerate(self._hyp.el3.answer(values)):
            registers[number] = value

    def _word(self, offset: int) -> int:
        return self._hyp.machine.ram.read_u32(self.shmem + offset)

    def _u32(self, va: int) -> int:
        return int.from_bytes(self._hyp.load(va, 4, "kvm_power_domain"), "little")
