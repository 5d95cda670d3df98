"""EL1 exceptions: WARN and BUG, exception-table fixups, accesses made from Python, and the oops."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from pkvm_emu.arch.esr import Esr, ExceptionClass
from pkvm_emu.elf.bugtable import bug_table
from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.oops import OopsText

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel
    from pkvm_emu.kernel.modules import LoadedModule

BUG_BRK_IMM = 0x800
_CFI_BRK_BASE, _CFI_BRK_MASK = 0x8000, 0x3FF
_S1PTW = 1 << 7
_FSC_PERMISSION = 0x0C
_EL1H_MASKED = 0x3C5
_WNR = 1 << 6
_EX_ENTRY = struct.Struct("<iihh")
_EX_ENTRY_WITHOUT_TYPE = struct.Struct("<ii")
_EX_TYPES_WITH_ERROR = {2, 3}
EFAULT = 14
#: What ``die()`` calls exceptions that have no text of their own (``arch/arm64/kernel/traps.c``).
_DEATHS = {
    ExceptionClass.UNKNOWN: "Oops - Undefined instruction",
    ExceptionClass.BTI: "Oops - BTI",
    ExceptionClass.FPAC: "Oops - FPAC",
    ExceptionClass.PC_ALIGN: "Oops - SP/PC alignment exception",
    ExceptionClass.SP_ALIGN: "Oops - SP/PC alignment exception",
}


class KernelOops(ModuleError):
    """EL1 code did what crashes a kernel: the text is the first line of its oops or BUG."""

    def __init__(self, message: str, esr: int, far: int, pc: int) -> None:
        super().__init__(message)
        self.esr = esr
        self.far = far
        self.pc = pc


class FaultHandler:
    """Answers the EL1 exception vectors.

    Args:
        kernel: whose CPU it is.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._engine = kernel.machine.engine
        #: Writes oopses and warnings into the kernel log.
        self.text = OopsText(kernel)
        #: ESR and FAR of the last access from Python that faulted; read by ``kernel.access``.
        self.last_host_fault: tuple[int, int] | None = None
        self._access_start = kernel.entry("host_load8")
        self._access_end = kernel.entry("host_access_fault")
        others = ("irq", "fiq", "serror")
        kernel.add_firmware_services({"vector_el1h_sync": self.synchronous}, in_hook=True)
        kernel.add_firmware_services({"vector_el0_sync": self.from_user}, in_hook=True)
        kernel.add_firmware_services(
            {
                f"vector_{source}_{kind}": (lambda s=source, k=kind: self.unexpected(s, k))  # type: ignore[misc]  # mypy: lambda default
                for source in ("el1t", "el1h", "el0", "el0_32")
                for kind in ("sync", *others)
                if (source, kind) not in (("el1h", "sync"), ("el0", "sync"))
            },
            in_hook=True,
        )

    def synchronous(self) -> None:
        """A synchronous exception from EL1."""
        engine = self._engine
        esr, far, pc = engine.read("esr_el1"), engine.read("far_el1"), engine.read("elr_el1")
        kind = Esr(esr).ec
        if kind == ExceptionClass.BRK64:
            self._breakpoint(esr, pc)
            return
        at_access = self._access_start <= pc < self._access_end or (kind == ExceptionClass.IABT_CUR and pc == far)
        if at_access and self._host_access(esr, far):
            return
        if kind in (ExceptionClass.DABT_CUR, ExceptionClass.IABT_CUR):
            if self._fix_up(pc):
                return
            unserved = self._kernel.symbols.unserved_places.access_of(far, esr, pc)
            if unserved is not None:
                raise unserved
            text = self.abort_text(esr, far, kind == ExceptionClass.IABT_CUR)
            self.text.abort(text, esr, far, pc)
            raise self._oops(text, esr, far, pc)
        exception_class = ExceptionClass(kind)
        what = _DEATHS.get(exception_class, f"Oops - {exception_class.name}")
        raise self._die(what, f"Internal error: {what}", esr, pc)

    def from_user(self) -> None:
        """A synchronous exception from EL0: only accesses from Python run there, and SVC is how they end."""
        engine, kernel = self._engine, self._kernel
        esr, far, pc = engine.read("esr_el1"), engine.read("far_el1"), engine.read("elr_el1")
        if not kernel.in_host_access:
            raise self._die("Oops", "unexpected exception from EL0", esr, pc)
        is_done = Esr(esr).ec == ExceptionClass.SVC64
        if not is_done:
            self.last_host_fault = (esr, far)
        engine.write("elr_el1", kernel.entry("host_user_return" if is_done else "host_user_fault"))
        engine.write_sysreg("SPSR_EL1", _EL1H_MASKED)

    def unexpected(self, source: str, kind: str) -> None:
        """An exception that nothing in the model causes."""
        engine = self._engine
        raise self._die(
            "Oops - bad mode",
            f"unexpected {kind} exception from {source}",
            engine.read("esr_el1"),
            engine.read("elr_el1"),
        )

    # Parts

    def _host_access(self, esr: int, far: int) -> bool:
        if not self._kernel.in_host_access:
            return False
        self.last_host_fault = (esr, far)
        self._engine.write("elr_el1", self._kernel.entry("host_access_fault"))
        return True

    def _breakpoint(self, esr: int, pc: int) -> None:
        kernel, immediate = self._kernel, esr & 0xFFFF
        if immediate == BUG_BRK_IMM:
            module = kernel.loader.find(pc)
            entry = bug_table(module.image).get(pc) if module is not None else None
            place = f"{entry.file}:{entry.line}" if entry is not None and entry.file else kernel.describe(pc)
            if entry is not None and entry.is_warning:
                self.text.warning(place if entry.file else "", kernel.describe(pc), pc)
                self._engine.write("elr_el1", pc + 4)
                return
            kernel.log.write("------------[ cut here ]------------", level=2)
            raise self._die("Oops - BUG", f"kernel BUG at {place}!", esr, pc)
        if immediate & ~_CFI_BRK_MASK == _CFI_BRK_BASE:
            register = immediate & 0x1F
            target = self._engine.read(f"x{register}")
            wanted = self._engine.read(f"x{immediate >> 5 & 0x1F}") & 0xFFFF_FFFF
            raise self._die(
                "Oops - CFI",
                f"CFI failure at {kernel.describe(pc)} (target: {kernel.describe(target)}; expected type: {wanted:#010x})",
                esr,
                pc,
            )
        raise self._die("Oops", f"Unexpected kernel BRK exception at EL1 (brk #{immediate:#x})", esr, pc)

    def _fix_up(self, pc: int) -> bool:
        """Follow a module's exception table, as ``fixup_exception`` does."""
        module = self._kernel.loader.find(pc)
        if module is None:
            return False
        typed = line_facts(self._kernel.generation.kernel).extable_has_type
        for insn, fixup, kind, data in _exception_table(module, typed):
            if insn == pc:
                self._engine.write("elr_el1", fixup)
                if kind in _EX_TYPES_WITH_ERROR:
                    self._set_register(data & 0x1F, -EFAULT)
                    self._set_register(data >> 5 & 0x1F, 0)
                return True
        return False

    def _set_register(self, number: int, value: int) -> None:
        if number != 31:
            self._engine.write(f"x{number}", value)

    @staticmethod
    def abort_text(esr: int, far: int, is_fetch: bool) -> str:
        """The line that ``die_kernel_fault`` prints, by the order of ``__do_kernel_fault`` (``arch/arm64/mm/fault.c``)."""
        if esr & 0x3C == _FSC_PERMISSION:
            what = "execute from non-executable memory" if is_fetch else "write to read-only memory"
            if not is_fetch and not esr & _WNR:
                what = "read from unreadable memory"
        elif far < 4096:
            what = "NULL pointer dereference"
        elif esr & _S1PTW:
            # pKVM marks the aborts that it injects with S1PTW.
            what = "access to hypervisor-protected memory"
        else:
            what = "paging request"
        return f"Unable to handle kernel {what} at virtual address {far:016x}"

    def _die(self, what: str, text: str, esr: int, pc: int) -> KernelOops:
        if not text.startswith("Internal error"):
            self._kernel.log.write(text, level=1)
        self.text.die(what, esr, pc)
        return self._oops(text, esr, 0, pc)

    def _oops(self, text: str, esr: int, far: int, pc: int) -> KernelOops:
        return KernelOops(f"{text}, at {self._kernel.describe(pc)} (ESR_EL1 {esr:#x})", esr, far, pc)


def _exception_table(module: LoadedModule, typed: bool) -> list[tuple[int, int, int, int]]:
    section = module.file.section("__ex_table")
    if section is None or section.index not in module.layout.placements:
        return []
    entry = _EX_ENTRY if typed else _EX_ENTRY_WITHOUT_TYPE
    start = module.layout.placements[section.index]
    data = module.image.read(start, section.size // entry.size * entry.size)
    entries = []
    for position, (insn, fixup, *rest) in enumerate(entry.iter_unpack(data)):
        at = start + position * entry.size
        kind, value = rest or (0, 0)
        entries.append((at + insn, at + 4 + fixup, kind, value))
    return entries
