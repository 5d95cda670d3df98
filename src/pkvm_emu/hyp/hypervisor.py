"""The EL2 hypervisor: its address space, its tables in EL2 memory, and the answers to what its firmware asks.

The firmware (``firmware/el2.S`` and its parts) takes the exceptions and walks the handler chains; this model owns what those
chains are made of: the page tables, the page ownership, the tables of handlers, ``struct pkvm_module_ops`` and its stubs.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar

from pkvm_emu.abi.generation import Generation
from pkvm_emu.firmware import image as firmware
from pkvm_emu.hyp import hypercalls, layout, ops, registry
from pkvm_emu.hyp.el3 import El3Firmware
from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.ffa import FfaProxy
from pkvm_emu.hyp.host_stage2 import HostStage2
from pkvm_emu.hyp.hyp_memory import HypMemory
from pkvm_emu.hyp.hyp_stage1 import HypStage1
from pkvm_emu.hyp.op_table import OpTable
from pkvm_emu.hyp.ownership import Ownership
from pkvm_emu.hyp.ownership_setup import MemoryLayout, build_ownership
from pkvm_emu.hyp.page_state import HypVmemmap, Region
from pkvm_emu.hyp.panic import PanicPath
from pkvm_emu.hyp.per_cpu import PerCpu
from pkvm_emu.hyp.pgtable import PAGE_HYP, PAGE_HYP_EXEC, PAGE_HYP_RO, TableFeatures
from pkvm_emu.hyp.psci_relay import PsciRelay
from pkvm_emu.hyp.service import el2_service
from pkvm_emu.hyp.traps import Traps
from pkvm_emu.machine.core import ServiceResult
from pkvm_emu.machine.machine import Machine
from pkvm_emu.machine.state import State, StateDict

PAGE_SIZE = 4096
P = TypeVar("P")


class Hypervisor(HypMemory, PerCpu, State):
    """The hypervisor of one generation on one machine.

    Args:
        machine: the board.
        generation: which Android branch it is.
        image_pa: PA of the room in the kernel image for EL2's code and data.
        reserved: ``(PA, bytes)`` of the memory that the host reserved for EL2 at boot.
        memstart: start of the kernel's linear map in physical memory.
    """

    def __init__(
        self,
        machine: Machine,
        generation: Generation,
        image_pa: int,
        reserved: tuple[int, int],
        memstart: int,
    ) -> None:
        super().__init__(machine.journal, "hyp")
        self._machine = machine
        self._generation = generation
        self._firmware = firmware.load("el2")
        self._image_pa = image_pa
        profile, ram = machine.profile, machine.ram
        ram.write(image_pa, self._firmware.code)
        text_size = self._firmware.text_size
        data_size = len(self._firmware.code) - text_size
        self._ops_pa = image_pa + len(self._firmware.code)
        built = build_ownership(
            machine.journal,
            ram,
            generation.name,
            MemoryLayout(
                regions=(Region(ram.base, ram.size),),
                reserve_base=reserved[0],
                reserve_size=reserved[1],
                linear_offset=layout.linear_offset(memstart),
                hyp_va_bits=layout.VA_BITS,
            ),
            TableFeatures(lpa2=profile.lpa2, hvhe=profile.hvhe, bti=profile.bti),
            flush_host=machine.engine.flush_tlb,
            flush_hyp=machine.engine.flush_tlb,
            claims=(
                (image_pa, text_size, PAGE_HYP_EXEC),
                (image_pa + text_size, data_size, PAGE_HYP),
                (self._ops_pa, PAGE_SIZE, PAGE_HYP_RO),
                (self._ops_pa + PAGE_SIZE, (OpTable.PAGES - 1) * PAGE_SIZE, PAGE_HYP_EXEC),
            ),
        )
        self._ownership, self._stage1, self._host = built.ownership, built.hyp, built.host
        self._vmemmap, self._pool = built.vmemmap, built.hyp_pool
        built.hyp.on_change = built.host.table.on_change = machine.engine.note_translation_change
        #: The private range grows upwards and is never given back.
        self.private_cursor = layout.PRIVATE_BASE
        self.finalised = False
        #: An IOMMU driver of a module follows the host's stage-2: services may have to call it.
        self.tells_modules = False
        #: Which kCFI type ids are checked at EL2: ``none``, ``plain`` or ``normalised``.
        self.kcfi_flavour = "none"
        self.hcr = StateDict(machine.journal, "hyp.hcr")
        self.hfgwtr = StateDict(machine.journal, "hyp.hfgwtr")
        self._cpus = [self._make_cpu(index) for index in range(profile.cpus)]
        for va, pa, size in self._vmemmap.mappings(layout.VMEMMAP_BASE):
            self._stage1.map(va, size, pa, PAGE_HYP)
        self.private_cursor = layout.FIRST_MODULE_VA
        self._panic = PanicPath(self)
        self._parts: dict[type[Any], Any] = {cls: cls(self) for cls in registry.PARTS}
        self._ops = OpTable(self)
        self._configure_firmware()
        self._el3 = El3Firmware(self)
        self._psci = PsciRelay(self)
        self._ffa = FfaProxy(self)
        self._traps = Traps(self)
        self._memstart = memstart

    # Parts

    @property
    def machine(self) -> Machine:
        """The board."""
        return self._machine

    @property
    def generation(self) -> Generation:
        """The Android generation."""
        return self._generation

    @property
    def ownership(self) -> Ownership:
        """Who owns which page."""
        return self._ownership

    @property
    def host(self) -> HostStage2:
        """The host's stage-2."""
        return self._host

    @property
    def stage1(self) -> HypStage1:
        """EL2's own translation table."""
        return self._stage1

    @property
    def ops(self) -> OpTable:
        """``struct pkvm_module_ops`` and its stubs."""
        return self._ops

    @property
    def el3(self) -> El3Firmware:
        """What answers SMCs."""
        return self._el3

    @property
    def psci(self) -> PsciRelay:
        """PSCI as the host reaches it."""
        return self._psci

    @property
    def ffa(self) -> FfaProxy:
        """FF-A as the host reaches it."""
        return self._ffa

    @property
    def traps(self) -> Traps:
        """Traps of the host."""
        return self._traps

    @property
    def panic(self) -> PanicPath:
        """How it ends."""
        return self._panic

    @property
    def vmemmap(self) -> HypVmemmap:
        """``struct hyp_page`` of every page of RAM."""
        return self._vmemmap

    @property
    def text(self) -> tuple[int, int]:
        """PA and bytes of its own code."""
        return self._image_pa, self._firmware.text_size

    def part(self, kind: type[P]) -> P:
        """This hypervisor's object of a class registered with ``hyp_part``."""
        found: P = self._parts[kind]
        return found

    # Set-up

    def _configure_firmware(self) -> None:
        generation = self._generation
        self.write_word("config_hcall_base", 0xC600_0000 + generation.dyn_hcall_base)
        self.write_word("config_hcall_hint_mask", 1 << 16 if generation.dyn_hcall_masks_hint else 0)
        self.write_word32("config_hcall_presets_x0", int(generation.dyn_hcall_presets_x0))
        self.write_word32("config_perm_stops_at_zero", int(generation.faults.perm_fault_chain == "first-zero"))
        self.write_word32("config_pauth", int(self._machine.profile.pauth))
        core = self._machine.core
        core.add_exit(self.entry("return_to_python"), 2)

    def expect_kcfi(self, flavour: str) -> None:
        """Check and plant kCFI type ids of one flavour (``none``, ``plain``, ``normalised``) from now on."""
        self._ops.plant_kcfi(flavour)
        self.kcfi_flavour = flavour
        for label, kind in (
            ("kcfi_hcall", "hcall"),
            ("kcfi_init", "el2_init"),
            ("kcfi_smc_handler", "smc_handler"),
            ("kcfi_trap_handler", "default_trap_handler"),
            ("kcfi_perm_handler", "perm_fault_handler"),
            ("kcfi_notifier", "hyp_panic_notifier"),
            ("kcfi_psci", "psci_notifier"),
            ("kcfi_unmask_serror", "unmask_serror"),
            ("kcfi_mask_serror", "mask_serror"),
            ("kcfi_serial_putc", "serial_putc"),
        ):
            self.write_word32(label, self._generation.callbacks[kind].kcfi(flavour) or 0)

    def add_firmware_service(
        self,
        label: str,
        function: Callable[..., ServiceResult],
        nargs: int,
        runs_guest: bool | Callable[..., bool] = False,
    ) -> None:
        """Let Python answer an EL2 firmware entry by its label; arguments as for :func:`el2_service`."""
        self._machine.core.add_service(self.entry(label), el2_service(self, label, nargs, function, runs_guest))

    def call_module(self, function: int, kcfi: int, *args: int) -> int:
        """Call a function of a module at EL2 from a service that the run loop performs; its x0.

        Args:
            function: hyp VA.
            kcfi: type id that has to be in front of it; 0: not checked.
            args: x0 to x8.
        """
        registers = [*args, *[0] * (9 - len(args)), function, *[0] * 6, kcfi]
        return self._machine.core.call(self.entry("fw_call_module"), *registers)[0]

    def caller(self) -> str:
        """Who calls the op that is being served: its return address, for page histories; the host where it is a hypercall."""
        address = self._machine.engine.read("x30") - 4
        if 0 <= address - self.entry("hyp_vectors") < self._firmware.text_size:
            return "host"
        return f"EL2 {address:#x}"

    def unmap_module_page(self, pfn: int, va: int) -> None:
        """Give a module page back to the host and take it out of EL2."""
        error = self._ownership.hyp_donate_host(pfn, 1, origin="unmap_module_page")
        if error:
            raise HypBug(f"unmap_module_page: page {pfn:#x} cannot be given back: {self._ownership.last_refusal}")
        if self._stage1.unmap(va, PAGE_SIZE) != PAGE_SIZE:
            raise HypBug(f"unmap_module_page: nothing is mapped at {va:#x}")

    def variadic(self, registers: tuple[int, ...], first: int) -> Any:
        """EL2 functions here take no variadic arguments."""
        raise TypeError("no op takes variadic arguments")

    def reserve_private(self, size: int) -> int | None:
        """``size`` bytes (page aligned) of the private range, or None when it would cross the vmemmap."""
        base = self.private_cursor
        if base + size > layout.VMEMMAP_BASE:
            return None
        self.private_cursor = base + size
        return base


def register_all() -> None:
    """Import every op and hypercall, so that the registries are filled."""
    for package in (hypercalls, ops):
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
