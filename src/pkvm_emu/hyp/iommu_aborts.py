"""Aborts of the host that an IOMMU driver may answer before the hypervisor does.

A driver that keeps the registers of its IOMMU to itself emulates the host's accesses to them. Source:
``handle_host_mem_abort`` in arch/arm64/kvm/hyp/nvhe/mem_protect.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

_EC_SHIFT, _EC_DABT_LOW = 26, 0x24
_PAGE_MASK = 0xFFF
_RETRY = 0


class IommuAborts:
    """Asks a driver about the host's data aborts, once it was attached.

    Args:
        hyp: the hypervisor.
        wants: whether somebody has to be asked about the address, without running guest code.
        handle: ``handle(registers of the host (hyp VA), ESR_EL2, address)`` runs the driver; True: it did the access.
    """

    def __init__(self, hyp: Hypervisor, wants: Callable[[int], bool], handle: Callable[[int, int, int], bool]) -> None:
        self._hyp = hyp
        self._wants = wants
        self._handle = handle
        self._attached = False

    def attach(self) -> None:
        """Take a place in front of the hypervisor's own handling of aborts."""
        if not self._attached:
            self._attached = True
            self._hyp.add_firmware_service("op_host_mem_abort", self._abort, 1, self._asks)

    def _asks(self, _context: int) -> bool:
        hyp = self._hyp
        if hyp.machine.engine.read("esr_el2") >> _EC_SHIFT != _EC_DABT_LOW:
            return False
        address = self._address()
        if hyp.ownership.memory.is_memory(address) and not hyp.generation.faults.iommu_hook_on_memory:
            return False
        return self._wants(address)

    def _abort(self, context: int) -> tuple[int, int]:
        hyp, engine = self._hyp, self._hyp.machine.engine
        if self._asks(context):
            address = self._address()
            if self._handle(hyp.cpu.context_va, engine.read("esr_el2"), address):
                engine.write("elr_el2", engine.read("elr_el2") + 4)
                return _RETRY, address
        return hyp.traps.host_mem_abort(context)

    def _address(self) -> int:
        engine = self._hyp.machine.engine
        return (engine.read_sysreg("HPFAR_EL2") >> 4) << 12 | engine.read("far_el2") & _PAGE_MASK
