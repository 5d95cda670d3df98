"""``system.host``: the host as an attacker. Every access runs on the CPU, at EL1 or EL0, through the real tables.

>>> print(system.host.read(0x7FA0_0000))
read of 8 bytes at 0x7fa00000 from EL1: Unable to handle kernel access to hypervisor-protected memory at virtual address ...
>>> system.host.read(0x4800_0000).value
0

A fault is an answer here and not an exception: it is what the EL1 vector saw, and what a kernel would have made of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pkvm_emu.arch.esr import Esr, ExceptionClass, fault_kind, fault_level
from pkvm_emu.arch.insn import ret
from pkvm_emu.errors import UsageError
from pkvm_emu.kernel.faults import FaultHandler
from pkvm_emu.kernel.vsprintf_env import GuestFault
from pkvm_emu.machine.engine import BusError

if TYPE_CHECKING:
    from pkvm_emu.machine.machine import Machine
    from pkvm_emu.system import System

PAGE_SIZE = 4096
SIZES = (1, 2, 4, 8)
REGISTERS = 18
#: Physical address bits of the emulated CPU.
PA_BITS = 44
#: Windows for pages that the linear map does not have as wanted: mapped for one access. The kernel's is so far above vmalloc.
_WINDOW_ABOVE_VMALLOC = 0x1000_0000
USER_TEXT, USER_WINDOW = 0x40_0000, 0x10_0000_0000
_S1PTW = 1 << 7
_FETCH_CLASSES = (ExceptionClass.IABT_LOW, ExceptionClass.IABT_CUR)
_ALIGNMENT, _EXTERNAL = 0x21, 0x10
_EL1H_MASKED = 0x3C5
_MASK64 = (1 << 64) - 1
_BUFFER_BELOW_SP = 512


@dataclass(frozen=True, slots=True)
class HostFault:
    """A fault as the EL1 vector saw it.

    Attributes:
        esr: ESR_EL1; None for a physical address with neither RAM nor a device behind it, where a device has an external
            abort of its own choosing.
        far: FAR_EL1.
        from_el: 1 or 0.
    """

    esr: Esr | None
    far: int
    from_el: int

    @property
    def injected(self) -> bool:
        """The hypervisor gave the host this abort (S1PTW is set)."""
        return self.esr is not None and bool(int(self.esr) & _S1PTW)

    @property
    def status(self) -> str:
        """The reason by the fault status: ``translation``, ``permission``, ``alignment``, ``address-size``, ``external``."""
        if self.esr is None:
            return "external"
        code = int(self.esr) & 0x3F
        return {_ALIGNMENT: "alignment", _EXTERNAL: "external"}.get(code) or fault_kind(code)

    @property
    def level(self) -> int | None:
        """Level of the lookup that failed, where the status has one."""
        return None if self.esr is None else fault_level(int(self.esr) & 0x3F)

    @property
    def kind(self) -> str:
        """``injected`` for an abort of the hypervisor's, else :attr:`status`."""
        return "injected" if self.injected else self.status

    @property
    def is_fetch(self) -> bool:
        """An instruction abort."""
        return self.esr is not None and self.esr.ec in _FETCH_CLASSES

    @property
    def oops(self) -> str | None:
        """For EL1: the first line of the kernel's oops."""
        if self.from_el != 1:
            return None
        if self.esr is None or self.status == "external":
            return f"Internal error: synchronous external abort at virtual address {self.far:016x}"
        return FaultHandler.abort_text(int(self.esr), self.far, self.is_fetch)

    @property
    def signal(self) -> tuple[str, str] | None:
        """For EL0: the signal and its code (``("SIGSEGV", "SEGV_ACCERR")`` for a page that the hypervisor protects)."""
        if self.from_el != 0:
            return None
        if self.injected:
            return "SIGSEGV", "SEGV_ACCERR"
        if self.status in ("translation", "permission"):
            # No VMA is behind what faults at stage 1 here: the windows are mapped as they are used.
            return "SIGSEGV", "SEGV_MAPERR"
        other = {"alignment": ("SIGBUS", "BUS_ADRALN"), "external": ("SIGBUS", "BUS_OBJERR")}
        return other.get(self.status, ("SIGKILL", "SI_KERNEL"))

    def __str__(self) -> str:
        signal = self.signal
        text = self.oops if signal is None else f"{signal[0]} ({signal[1]}) at {self.far:#x}"
        return f"{text}" if self.esr is None else f"{text}, ESR_EL1 {int(self.esr):#x}"


@dataclass(frozen=True, slots=True)
class HostAccess:
    """What became of an access.

    Attributes:
        kind: ``read``, ``write`` or ``execute``.
        address: as it was given; ``is_va`` says which kind.
        size: bytes (4 for ``execute``).
        el: from where.
        value: what was read (``read``) or written (``write``); None where the access faulted and for ``execute``.
        fault: the fault, or None.
    """

    kind: str
    address: int
    is_va: bool
    size: int
    el: int
    value: int | None
    fault: HostFault | None

    @property
    def ok(self) -> bool:
        """The access was made."""
        return self.fault is None

    @property
    def oops(self) -> str | None:
        """The kernel's oops, where an EL1 access faulted."""
        return self.fault.oops if self.fault else None

    @property
    def signal(self) -> tuple[str, str] | None:
        """The signal and code that the program would get, where an EL0 access faulted."""
        return self.fault.signal if self.fault else None

    def __str__(self) -> str:
        what = f"{self.kind} of {self.size} bytes at {'VA ' if self.is_va else ''}{self.address:#x} from EL{self.el}"
        if self.fault is not None:
            return f"{what}: {self.fault}"
        return what if self.value is None else f"{what}: {self.value:#x}"


class Host:
    """Accesses, hypercalls and SMCs of the host, before and after deprivilege.

    Addresses are physical unless given as ``va=``. RAM is reached through the kernel's linear map; what lies outside RAM,
    every fetch, and every access from EL0 goes through a mapping that is made for the access and removed after it.
    """

    def __init__(self, system: System) -> None:
        self._kernel = system.kernel
        self._machine: Machine = system.machine
        engine = self._machine.engine
        self._frame = engine.batch(*[f"x{n}" for n in range(31)], "sp", "pc")

    def read(self, address: int | None = None, size: int = 8, *, va: int | None = None, el: int = 1) -> HostAccess:
        """Load ``size`` (1, 2, 4 or 8) bytes from a physical address, or from ``va`` as it is.

        Raises:
            UsageError: a size that no load has, an EL that is not the host's, or no address or two.
        """
        return self._access("read", address, va, size, el, 0)

    def write(
        self, address: int | None = None, value: int = 0, size: int = 8, *, va: int | None = None, el: int = 1
    ) -> HostAccess:
        """Store the low ``size`` bytes of ``value``; otherwise as :meth:`read`."""
        return self._access("write", address, va, size, el, value & (1 << 8 * size) - 1)

    def execute(self, address: int | None = None, *, va: int | None = None, el: int = 1) -> HostAccess:
        """Branch to an address. At the moment of the fetch the word there is a RET, so that nothing else runs.

        Raises:
            UsageError: an address that is not a multiple of four.
        """
        target = va if va is not None else address
        if target is not None and target & 3:
            raise UsageError(f"execute at {target:#x}: instructions are at multiples of 4")
        return self._access("execute", address, va, 4, el, 0)

    def hvc(self, *registers: int) -> tuple[int, ...]:
        """``hvc #0`` from EL1 with x0, x1, ... (up to x17) as given; x0 to x17 after it."""
        return self._call("host_hvc_all", registers)

    def smc(self, *registers: int) -> tuple[int, ...]:
        """``smc #0`` from EL1 with x0, x1, ... (up to x17) as given; x0 to x17 after it."""
        return self._call("host_smc_all", registers)

    # Parts

    def _call(self, label: str, registers: tuple[int, ...]) -> tuple[int, ...]:
        if len(registers) > REGISTERS:
            raise UsageError(f"{len(registers)} registers: a call has x0 to x17")
        self._use_kernel_stack()
        buffer = (self._machine.engine.read("sp") & ~15) - _BUFFER_BELOW_SP
        full = [value & _MASK64 for value in registers] + [0] * (REGISTERS - len(registers))
        memory = self._kernel.memory
        memory.write(buffer, b"".join(value.to_bytes(8, "little") for value in full))
        self._machine.core.call(self._kernel.entry(label), buffer)
        raw = memory.read(buffer, 8 * REGISTERS)
        return tuple(int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw), 8))

    def _access(self, kind: str, pa: int | None, va: int | None, size: int, el: int, value: int) -> HostAccess:
        if (pa is None) == (va is None):
            raise UsageError(f"{kind}: give a physical address, or va=")
        if size not in SIZES:
            raise UsageError(f"{kind} of {size} bytes: a load or store has 1, 2, 4 or 8")
        if el not in (0, 1):
            raise UsageError(f"{kind} from EL{el}: the host has EL1 and EL0")
        target = va if va is not None else pa
        assert target is not None
        if not 0 <= target <= _MASK64:
            raise UsageError(f"{kind} at {target:#x}: an address has 64 bits")
        if va is None and target + size > 1 << PA_BITS:
            raise UsageError(f"{kind} at {target:#x}: the CPU has {PA_BITS} bits of physical address")
        self._use_kernel_stack()
        mapped: list[tuple[int, int, bool]] = []
        try:
            virtual = target if va is not None else self._reach(target, kind, size, el, mapped)
            result, fault = self._run(kind, virtual, size, el, value, pa, mapped)
        finally:
            for window, length, is_user in mapped:
                if is_user:
                    self._kernel.memory.unmap_user(window, length)
                else:
                    self._kernel.memory.unmap(window, length)
        got = None if fault is not None or kind == "execute" else result if kind == "read" else value
        return HostAccess(kind, target, va is not None, size, el, got, fault)

    def _reach(self, pa: int, kind: str, size: int, el: int, mapped: list[tuple[int, int, bool]]) -> int:
        """A VA for ``pa``: in the linear map where that is enough, else in a window."""
        is_ram = pa in self._machine.ram
        if el == 1 and is_ram and kind != "execute":
            return self._kernel.memory.linear_va(pa)
        base = pa & -PAGE_SIZE
        length = -(-(pa + size - base) // PAGE_SIZE) * PAGE_SIZE
        above = self._kernel.memory.layout.vmalloc_end + _WINDOW_ABOVE_VMALLOC
        window = above if el == 1 else USER_WINDOW
        prot = "rx" if kind == "execute" else "rw" if is_ram else "device"
        if el == 1:
            self._kernel.memory.map(window, base, length, prot)
        else:
            self._kernel.memory.map_user(window, base, length, prot)
        mapped.append((window, length, el == 0))
        return window + pa - base

    def _run(
        self, kind: str, va: int, size: int, el: int, value: int, pa: int | None, mapped: list[tuple[int, int, bool]]
    ) -> tuple[int, HostFault | None]:
        kernel, bits = self._kernel, 8 * size
        verb = "load" if kind == "read" else "store"
        restore = self._plant_return(va, pa) if kind == "execute" else None
        engine = self._machine.engine
        saved = self._frame.read()[:]
        try:
            if el == 1:
                result, seen = kernel.access("host_execute" if kind == "execute" else f"host_{verb}{bits}", va, value)
            else:
                done = self._user_stub("user_done", mapped)
                code = va if kind == "execute" else self._user_stub(f"user_{verb}{bits}", mapped)
                result, seen = kernel.user_access(code, done, va, value)
        except BusError:
            if self._machine.core.el == 2:
                raise
            engine.set_pstate(_EL1H_MASKED)
            self._frame.values[:] = saved
            self._frame.write()
            return 0, HostFault(None, va, el)
        finally:
            if restore is not None:
                self._machine.patch_code(*restore)
        return result, None if seen is None else HostFault(Esr(seen[0]), seen[1], el)

    def _user_stub(self, label: str, mapped: list[tuple[int, int, bool]]) -> int:
        entry = self._kernel.entry(label)
        page = entry & -PAGE_SIZE
        if (USER_TEXT, PAGE_SIZE, True) not in mapped:
            self._kernel.memory.map_user(USER_TEXT, self._kernel.memory.to_pa(page), PAGE_SIZE, "rx")
            mapped.append((USER_TEXT, PAGE_SIZE, True))
        return USER_TEXT + entry - page

    def _plant_return(self, va: int, pa: int | None) -> tuple[int, bytes] | None:
        """Put a RET at the target; what was there, to be put back."""
        if pa is None:
            try:
                pa = self._kernel.memory.to_pa(va)
            except GuestFault:
                return None
        ram = self._machine.ram
        if pa not in ram:
            return None
        before = ram.read(pa, 4)
        self._machine.patch_code(pa, ret().to_bytes(4, "little"))
        return pa, before

    def _use_kernel_stack(self) -> None:
        machine = self._machine
        if machine.core.depth == 0:
            machine.engine.write("sp", self._kernel.stack_top(machine.current.index))
