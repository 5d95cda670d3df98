"""``system.create_vm()``: virtual machines as the host makes them, enough for what modules have to do with them.

>>> vm = system.create_vm()
>>> vm.donate(0x4800_0000, ipa=0x8000_0000)
0
>>> vm.write(0x8000_0000, 0x55).ok, system.host.read(0x4800_0000).fault.kind
(True, 'injected')
>>> vm.smc(0x8200_0001, 1, 2).registers[0]
0
>>> vm.destroy()

What the host does goes through its hypercalls; what the guest does runs on the CPU, at EL1 behind the VM's own stage-2 table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import errno_name
from pkvm_emu.arch.esr import Esr
from pkvm_emu.errors import EmulatorError, ModuleError, UsageError
from pkvm_emu.hyp import vm as ctx
from pkvm_emu.hyp.devices import Devices
from pkvm_emu.hyp.host_requests import HostRequest, MapRequest
from pkvm_emu.hyp.memcache import HostMemcache
from pkvm_emu.hyp.ownership_guest import guest_state
from pkvm_emu.hyp.page_state import state_name
from pkvm_emu.hyp.pgtable import PROT_RWX
from pkvm_emu.hyp.pviommu import Route
from pkvm_emu.hyp.vm import IPA_BITS, Vm
from pkvm_emu.hyp.vms import Vms
from pkvm_emu.results import HvcResult, signed
from pkvm_emu.vm_requests import serve
from pkvm_emu.vm_results import GuestAccess, GuestCallResult

if TYPE_CHECKING:
    from pkvm_emu.system import System

PAGE_SIZE, PAGE_SHIFT = 4096, 12
#: Where the page lies that the emulated guest runs.
CODE_IPA = 0x7FC0_0000
#: Pages that the host donates for a new VM: the vCPU's, the root of the table, and some for tables below it.
_FIRST_PAGES = 8
_SIZES = (1, 2, 4, 8)
_REGISTERS = 18
_MEM_SHARE, _MEM_UNSHARE = 0xC600_0003, 0xC600_0004
_EC_WFX, _EC_HVC64, _EC_SMC64 = 0x01, 0x16, 0x17
_EC_ABORTS = (0x20, 0x24)
_EL1H_MASKED = 0x3C5
_NOT_SUPPORTED = (1 << 64) - 1
_MASK64 = (1 << 64) - 1
_MOST_EXITS = 16


class VirtualMachine:
    """A VM with one vCPU. Made by :meth:`pkvm_emu.system.System.create_vm`.

    Methods that make hypercalls return their errno (0 or negative), as ``system.hvc`` does; ``system.explain()`` says why.
    """

    def __init__(
        self, system: System, protected: bool, smc_forwarded: bool, iommus: Mapping[int, Sequence[Route]]
    ) -> None:
        self._system = system
        self._kernel, self._hyp = system.kernel, system.hyp
        self._vms = system.hyp.part(Vms)
        kvm = self._announce_iommus(iommus) if iommus else 0
        self._vm: Vm = self._vms.create(self._hand_over(_FIRST_PAGES), protected, smc_forwarded, kvm)
        self._handle = self._vm.handle
        code, self._labels = self._vms.guest_code
        page = self._host_page()
        system.machine.patch_code(page, code)
        error = self._give(page, CODE_IPA, 1, PROT_RWX)
        if error:
            raise EmulatorError(f"the first page of a VM is refused: {errno_name(error)}")

    def __enter__(self) -> VirtualMachine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self.is_alive:
            self.destroy()

    # Facts

    @property
    def handle(self) -> int:
        """What modules are told as ``handle``."""
        return self._handle

    @property
    def protected(self) -> bool:
        """The host has no access to the VM's memory."""
        return self._vm.protected

    @property
    def vmid(self) -> int:
        """VMID of its translations."""
        return self._vm.vmid

    @property
    def is_alive(self) -> bool:
        """Not destroyed."""
        return self._vms.table.get(self._handle) is self._vm

    def pa_of(self, ipa: int) -> int | None:
        """The physical address behind a guest address, or None."""
        return self._vm.pa_of(ipa)

    def state(self, ipa: int) -> str:
        """The guest's state of its page at ``ipa``: ``OWNED``, ``SHARED_OWNED``, ``SHARED_BORROWED``, ``NOPAGE``, ..."""
        return state_name(guest_state(self._vm.reader.walk(ipa).descriptor))

    def mappings(self) -> list[tuple[int, int, int, str]]:
        """``(IPA, PA, bytes, state)`` of all that is mapped, ascending; the emulator's own code page is one of them."""
        return [(ipa, pa, size, state_name(state)) for ipa, pa, size, state in self._vm.mappings()]

    def check(self) -> list[str]:
        """Compare the guest's page states with the host's; one line for each disagreement."""
        return self._vm.check()

    @property
    def requests(self) -> list[HostRequest | MapRequest]:
        """What the guest's last call lacked; the host sees to it before the VM runs again."""
        return list(self._vm.requests)

    def forget_requests(self) -> None:
        """They have been seen to."""
        self._vm.requests.clear()

    # What the host does with it

    def add_iommu_pages(self, pa: int, order: int) -> None:
        """Have ``2**order`` host pages ready for the tables of the guest's IOMMU domains."""
        cache = HostMemcache(self._system.machine.ram, self._vm.iommu_cache, self._vm.iommu_cached)
        cache.push(pa, order)
        self._vm.iommu_cache, self._vm.iommu_cached = cache.head, cache.count

    def donate(self, pa: int, ipa: int, pages: int = 1) -> int:
        """Give host pages to a protected VM, at guest address ``ipa``. Both page aligned.

        Errors: -EINVAL (not a protected VM, not RAM on android16, references), -EPERM (not the host's own, or something is mapped
        at ``ipa``), -ERANGE (beyond the guest's 44 bits of address).
        """
        self._need_alignment(pa, ipa)
        if self._vms.rules.map_hypercall is None:
            return self._loaded(ipa, pages, "host_donate_guest", pa >> PAGE_SHIFT, ipa >> PAGE_SHIFT, pages)
        if not self.protected:
            raise UsageError(
                f"{self._system.generation.name} decides by the VM: pages are shared with this one (host_share)"
            )
        return self._give(pa, ipa, pages, PROT_RWX)

    def host_share(self, pa: int, ipa: int, pages: int = 1, prot: int = PROT_RWX) -> int:
        """Share host pages with a VM that is not protected, with protection ``prot`` (``abi.prot``) there; errno."""
        self._need_alignment(pa, ipa)
        if self._vms.rules.map_hypercall is None:
            return self._loaded(ipa, pages, "host_share_guest", pa >> PAGE_SHIFT, ipa >> PAGE_SHIFT, prot, pages)
        if self.protected:
            raise UsageError(
                f"{self._system.generation.name} decides by the VM: pages are donated to this one (donate)"
            )
        return self._give(pa, ipa, pages, prot)

    def host_unshare(self, ipa: int, pages: int = 1) -> int:
        """Take a page (or the 512 pages of a block) back that is shared with a VM that is not protected; errno.

        Raises:
            UsageError: the generation has no such hypercall.
        """
        name = self._vms.rules.unshare_hypercall
        if name is None:
            raise UsageError(f"{self._system.generation.name} has no hypercall that ends a share with a guest")
        return self._call(name, self.handle, ipa >> PAGE_SHIFT, pages)

    def assign(self, pa: int, ipa: int) -> int:
        """Give an assignable device to the VM and map the page of its registers at ``pa`` at guest address ``ipa``.

        The device's registers go to the hypervisor first; its reset handler is called with ``host_to_guest`` true. That the
        guest has asked for the page (its MMIO guard) is taken for granted.

        Errors: -ENODEV (no assignable device, or no reset handler), -EBUSY (another VM has it), -EPERM.

        Raises:
            UsageError: the generation has no such hypercalls.
        """
        self._need_alignment(pa, ipa)
        if not self._vms.rules.assigns_devices:
            raise UsageError(f"{self._system.generation.name} cannot assign devices to guests")
        devices = self._hyp.part(Devices)
        number = devices.find(pa)
        group = [] if number is None else [n for n, one in enumerate(devices.groups) if one == devices.groups[number]]
        for member in group:
            for base, size in devices.resources[member] if member not in devices.owners else ():
                error = self._call("host_donate_hyp_mmio", base >> PAGE_SHIFT, size >> PAGE_SHIFT)
                if error:
                    return error
        return self._loaded(ipa, 1, "host_map_guest_mmio", pa >> PAGE_SHIFT, ipa >> PAGE_SHIFT)

    def destroy(self) -> None:
        """Tear the VM down: every page returns to the host, zeroed where the guest owned it, and devices are reset.

        Raises:
            EmulatorError: the hypervisor refuses a step.
        """
        self._must("start_teardown_vm", self.handle)
        for ipa, pa, size, _ in self._vm.mappings():
            if pa not in self._system.machine.ram:
                continue
            if not self.protected and self._vms.rules.unshare_hypercall is not None:
                self._must(self._vms.rules.unshare_hypercall, self.handle, ipa >> PAGE_SHIFT, size >> PAGE_SHIFT)
                continue
            order = (size >> PAGE_SHIFT).bit_length() - 1
            self._must("reclaim_dying_guest_page", self.handle, pa >> PAGE_SHIFT, ipa >> PAGE_SHIFT, order)
        self._must("finalize_teardown_vm", self.handle)
        ram = self._system.machine.ram
        for pa in self._vm.given:
            ram.write(pa, bytes(PAGE_SIZE))
            if error := self._hyp.ownership.hyp_donate_host(pa >> PAGE_SHIFT, 1, origin="finalize_teardown_vm"):
                raise EmulatorError(f"page {pa:#x} of a VM cannot be given back: {errno_name(error)}")

    # What the guest does

    def smc(self, *registers: int) -> GuestCallResult:
        """``smc #0`` in the guest with x0, x1, ... (up to x17) as given.

        PSCI, FF-A and the other standard services go to the host. The rest is offered to the modules' guest SMC handlers:
        android16 asks all of them in order, android15 (later releases) the one of this VM. What nobody wants is NOT_SUPPORTED.
        """
        return self._guest_call("guest_does_smc", registers)

    def hvc(self, *registers: int) -> GuestCallResult:
        """``hvc #0`` in the guest with x0, x1, ... (up to x17) as given."""
        return self._guest_call("guest_does_hvc", registers)

    def share(self, ipa: int, pages: int = 1) -> int:
        """The (protected) guest shares its own pages with the host; how many were, or SMCCC_RET_INVALID_PARAMETER (-3).

        -1 where the guest has no page there: the host is asked to give one.
        """
        return self._memory_call(_MEM_SHARE, ipa, pages)

    def unshare(self, ipa: int, pages: int = 1) -> int:
        """The guest ends a sharing with the host; as :meth:`share`."""
        return self._memory_call(_MEM_UNSHARE, ipa, pages)

    def read(self, ipa: int, size: int = 8) -> GuestAccess:
        """A load of 1, 2, 4 or 8 bytes by the guest, its MMU off; ``ipa`` a multiple of the size."""
        return self._guest_access("load", ipa, size, 0)

    def write(self, ipa: int, value: int, size: int = 8) -> GuestAccess:
        """A store of 1, 2, 4 or 8 bytes by the guest, its MMU off; ``ipa`` a multiple of the size."""
        return self._guest_access("store", ipa, size, value & (1 << 8 * size) - 1)

    # Parts: the host

    def _announce_iommus(self, iommus: Mapping[int, Sequence[Route]]) -> int:
        """Put endpoints behind the IOMMUs of a VM to be made; the kernel VA that names it."""
        if not self._vms.rules.assigns_devices:
            raise UsageError(f"{self._system.generation.name} gives guests no IOMMUs")
        kvm = self._kernel.memory.linear_va(self._host_page())
        for number, routes in iommus.items():
            self._announce("pviommu_attach", kvm, number)
            for vsid, iommu, sid in routes:
                self._announce("pviommu_add_vsid", kvm, number, iommu, sid, vsid)
        return kvm

    def _announce(self, name: str, *args: int) -> None:
        if error := self._call(name, *args):
            raise UsageError(f"{name}({', '.join(map(hex, args[1:]))}) is refused: {errno_name(error)}")

    def _host_page(self) -> int:
        pa = self._kernel.pages.alloc_pages(0, zero=True)
        if pa is None:
            raise EmulatorError("the host has no free page for a VM")
        return pa

    def _hand_over(self, count: int) -> list[int]:
        """Host pages, donated to the hypervisor for a VM."""
        pages = [self._host_page() for _ in range(count)]
        for pa in pages:
            error = self._hyp.ownership.host_donate_hyp(pa >> PAGE_SHIFT, 1, origin="memory of a VM", op="init_vm")
            if error:
                raise EmulatorError(f"page {pa:#x} for a VM is refused: {errno_name(error)}")
        return pages

    def _give(self, pa: int, ipa: int, pages: int, prot: int) -> int:
        rules = self._vms.rules
        if rules.map_hypercall is None:
            if self.protected:
                return self._loaded(ipa, pages, "host_donate_guest", pa >> PAGE_SHIFT, ipa >> PAGE_SHIFT, pages)
            return self._loaded(ipa, pages, "host_share_guest", pa >> PAGE_SHIFT, ipa >> PAGE_SHIFT, prot, pages)
        step = rules.pages_per_call or pages
        for done in range(0, pages, step):
            pfn, gfn = (pa >> PAGE_SHIFT) + done, (ipa >> PAGE_SHIFT) + done
            error = self._loaded(ipa, pages, rules.map_hypercall, pfn, gfn, step, prot)
            if error:
                return error
        return 0

    def _loaded(self, ipa: int, pages: int, name: str, *args: int) -> int:
        """A hypercall with the vCPU loaded and enough pages for its tables."""
        if not self.is_alive:
            raise UsageError(f"VM {self.handle:#x} is destroyed")
        if 0 <= ipa < 1 << IPA_BITS and pages < 1 << 20:
            missing = self._vm.tables_for(ipa, pages << PAGE_SHIFT) - len(self._vm.pool)
            if missing > 0:
                self._vm.give(self._hand_over(missing))
        return signed(self._with_vcpu(name, *args))

    def _with_vcpu(self, name: str, *args: int) -> int:
        # Nothing is put away after an exception: the hypervisor has panicked.
        self._hvc("vcpu_load", self.handle, 0, 0)
        result = self._system.hvc(self._system.generation.hypercalls[name], *args)
        self._hvc("vcpu_put")
        return self._checked(name, result)

    def _hvc(self, name: str, *args: int) -> int:
        return self._checked(name, self._system.hvc(self._system.generation.hypercalls[name], *args))

    def _checked(self, name: str, result: HvcResult) -> int:
        if result.x0:
            raise EmulatorError(f"the hypercall {name} is not served on {self._system.generation.name}")
        return result.x1

    def _call(self, name: str, *args: int) -> int:
        return signed(self._hvc(name, *args))

    def _must(self, name: str, *args: int) -> None:
        error = self._call(name, *args)
        if error:
            raise EmulatorError(f"{name} of VM {self.handle:#x}: {errno_name(error)}")

    @staticmethod
    def _need_alignment(pa: int, ipa: int) -> None:
        if (pa | ipa) % PAGE_SIZE:
            raise UsageError(f"page {pa:#x} at guest address {ipa:#x}: both must be multiples of {PAGE_SIZE}")

    # Parts: the guest

    def _guest_call(self, label: str, registers: tuple[int, ...]) -> GuestCallResult:
        if len(registers) > _REGISTERS:
            raise UsageError(f"{len(registers)} registers: a call has x0 to x17")
        exited = False
        self._begin(label, registers)
        for _ in range(_MOST_EXITS):
            kind = self._run() >> 26
            if self._vm.requests:
                exited = True
                serve(self._system, self)
                continue
            if kind == _EC_WFX:
                return GuestCallResult(tuple(self._vm[8 * n] for n in range(_REGISTERS)), exited)
            if kind not in (_EC_SMC64, _EC_HVC64):
                break
            exited = True
            # The host knows none of these calls, and skips the one that EL2 has not skipped.
            self._vm[0] = _NOT_SUPPORTED
            if self._vm[ctx.CTX_PC] == CODE_IPA + self._labels[label]:
                self._vm[ctx.CTX_PC] += 4
        raise EmulatorError(f"the guest stopped with ESR_EL2 {self._vm[ctx.CTX_ESR]:#x} in a call")

    def _memory_call(self, function: int, ipa: int, pages: int) -> int:
        if not self.protected:
            raise UsageError("only a protected VM has memory of its own to share")
        registers = self.hvc(function, ipa, pages).registers
        return registers[1] if not registers[0] else signed(registers[0])

    def _guest_access(self, verb: str, ipa: int, size: int, value: int) -> GuestAccess:
        if size not in _SIZES or ipa % size:
            raise UsageError(f"{verb} of {size} bytes at {ipa:#x}: 1, 2, 4 or 8 bytes at a multiple of the size")
        self._begin(f"guest_{verb}{8 * size}", (ipa, value))
        esr = self._run()
        if esr >> 26 == _EC_WFX:
            return GuestAccess(self._vm[0] if verb == "load" else value)
        if esr >> 26 not in _EC_ABORTS:
            raise EmulatorError(f"the guest stopped with ESR_EL2 {esr:#x} in an access")
        fault = self._vm[ctx.CTX_HPFAR] >> 4 << 12 | self._vm[ctx.CTX_FAR] & 0xFFF
        return GuestAccess(None, Esr(esr), fault)

    def _begin(self, label: str, registers: tuple[int, ...]) -> None:
        if not self.is_alive:
            raise UsageError(f"VM {self.handle:#x} is destroyed")
        for number in range(31):
            self._vm[8 * number] = registers[number] & _MASK64 if number < len(registers) else 0
        self._vm[ctx.CTX_PC] = CODE_IPA + self._labels[label]
        self._vm[ctx.CTX_PSTATE] = _EL1H_MASKED

    def _run(self) -> int:
        """Run the vCPU until the host is needed; ESR_EL2."""
        self._with_vcpu("vcpu_run")
        return self._vm[ctx.CTX_ESR]


def create(
    system: System, protected: bool, smc_forwarded: bool, iommus: Mapping[int, Sequence[Route]] | None = None
) -> VirtualMachine:
    """Make a VM; see :meth:`pkvm_emu.system.System.create_vm`."""
    kernel = system.kernel
    if not kernel.protected:
        raise UsageError("VMs behind pKVM need protected mode, which kvm-arm.mode= switched off")
    if not kernel.deprivileged:
        raise UsageError("the host is not deprivileged yet: VMs come after the boot")
    if protected and not system.is_secure:
        failed = next(outcome.name for outcome in system.boot_report.outcomes if outcome.status != "loaded")
        raise ModuleError(f"protected VMs are refused: the system is insecure, because {failed} was not loaded")
    return VirtualMachine(system, protected, smc_forwarded, iommus or {})
