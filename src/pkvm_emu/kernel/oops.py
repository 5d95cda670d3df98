"""The text of an oops: what a fault was, the registers, who called, and the panic that follows.

Sources of the formats: ``arch/arm64/mm/fault.c`` (mem_abort_decode, show_pte), ``arch/arm64/kernel/traps.c`` (__die),
``arch/arm64/kernel/process.c`` (__show_regs), ``lib/dump_stack.c``. GKI kernels panic on an oops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.kernel import layout
from pkvm_emu.kernel.vsprintf_env import GuestFault

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

_ALERT, _EMERG, _WARNING = 1, 0, 4
_EC_NAMES = {
    0x00: "Unknown/Uncategorized",
    0x0D: "BTI",
    0x1C: "FPAC",
    0x20: "IABT (lower EL)",
    0x21: "IABT (current EL)",
    0x22: "PC Alignment",
    0x24: "DABT (lower EL)",
    0x25: "DABT (current EL)",
    0x26: "SP Alignment",
    0x3C: "BRK (AArch64)",
}
_FSC_KINDS = {
    0x04: "translation fault",
    0x08: "access flag fault",
    0x0C: "permission fault",
    0x00: "address size fault",
}
_FSC_NAMES = {0x10: "synchronous external abort", 0x21: "alignment fault"}
_BTYPES = ("--", "jc", "-c", "j-")
_PLUS_FLAGS = (("PAN", 22), ("UAO", 23), ("TCO", 25), ("DIT", 24), ("SSBS", 12))
_TAINTS = {
    "P": "PROPRIETARY_MODULE",
    "F": "FORCED_MODULE",
    "D": "DIE",
    "W": "WARN",
    "C": "CRAP",
    "O": "OOT_MODULE",
    "E": "UNSIGNED_MODULE",
}
_TAINT_COLUMNS = "PFSRMBUDAWCIOELKXTNJ"
_CODE_BEFORE = 4
_FRAMES = 16
_TABLE_NAMES = ("pgd", "p4d", "pud", "pmd", "pte")
_BITS_OF_A_LEVEL = 9


def fault_status_name(esr: int) -> str:
    """The fault status code in the kernel's words: ``level 3 translation fault``."""
    code = esr & 0x3F
    if code in _FSC_NAMES:
        return _FSC_NAMES[code]
    kind = _FSC_KINDS.get(code & 0x3C)
    return f"level {code & 3} {kind}" if kind else f"unknown {code}"


def abort_lines(esr: int) -> list[str]:
    """``Mem abort info:`` and, for a data abort, ``Data abort info:``."""
    exception_class, il = esr >> 26 & 0x3F, 32 if esr >> 25 & 1 else 16
    lines = [
        "Mem abort info:",
        f"  ESR = {esr:#018x}",
        f"  EC = {exception_class:#04x}: {_EC_NAMES.get(exception_class, 'UNRECOGNIZED EC')}, IL = {il} bits",
        f"  SET = {esr >> 11 & 3}, FnV = {esr >> 10 & 1}",
        f"  EA = {esr >> 9 & 1}, S1PTW = {esr >> 7 & 1}",
        f"  FSC = {esr & 0x3F:#04x}: {fault_status_name(esr)}",
    ]
    return lines + _data_abort_lines(esr) if exception_class in (0x24, 0x25) else lines


def _data_abort_lines(esr: int) -> list[str]:
    iss2 = esr >> 32 & 0xFF_FFFF
    if esr >> 24 & 1:
        access = [
            f"  Access size = {1 << (esr >> 22 & 3)} byte(s)",
            f"  SSE = {esr >> 21 & 1}, SRT = {esr >> 16 & 0x1F}",
            f"  SF = {esr >> 15 & 1}, AR = {esr >> 14 & 1}",
        ]
    else:
        access = [f"  ISV = 0, ISS = {esr & 0x1FF_FFFF:#010x}, ISS2 = {iss2:#010x}"]
    return [
        "Data abort info:",
        *access,
        f"  CM = {esr >> 8 & 1}, WnR = {esr >> 6 & 1}, TnD = {iss2 >> 10 & 1}, TagAccess = {iss2 >> 9 & 1}",
        f"  GCS = {iss2 >> 8 & 1}, Overlay = {iss2 >> 6 & 1}, DirtyBit = {iss2 >> 5 & 1}, Xs = {iss2 & 0x1F}",
    ]


def taint_text(letters: str) -> str:
    """``Tainted: G           O      ``, as ``print_tainted`` lays the letters out; ``Not tainted`` without any."""
    if not letters:
        return "Not tainted"
    columns = [letter if letter in letters else " " for letter in _TAINT_COLUMNS[:-1]]
    if "P" not in letters:
        columns[0] = "G"
    return "Tainted: " + "".join(columns)


class OopsText:
    """Writes oopses and warnings of one kernel into its log.

    Args:
        kernel: whose log and registers.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._registers = kernel.machine.engine.batch(*[f"x{n}" for n in range(31)], "sp")

    def abort(self, text: str, esr: int, far: int, pc: int) -> None:
        """``die_kernel_fault``: a bad access that nobody repaired."""
        for line in (text, *abort_lines(esr), *self._table_lines(far)):
            self._kernel.log.write(line, _ALERT)
        self.die("Oops", esr, pc)

    def die(self, what: str, esr: int, pc: int) -> None:
        """``die()``: the end of the kernel; ``what`` is ``Oops``, ``Oops - BUG``, ``Oops - CFI``, ..."""
        log = self._kernel.log
        log.write(f"Internal error: {what}: {esr:016x} [#1] PREEMPT SMP", _EMERG)
        self._modules()
        self.registers(pc)
        log.write(f"Code: {self._code(pc)}", _EMERG)
        log.write("---[ end trace 0000000000000000 ]---", _WARNING)
        if "D" not in self._kernel.tainted:
            self._kernel.tainted += "D"
        log.write(f"Kernel panic - not syncing: {what}: Fatal exception", _EMERG)

    def warning(self, place: str, caller: str, pc: int, text: str = "") -> None:
        """``__warn``.

        Args:
            place: ``file:line``, or empty where the kernel has none.
            caller: the function in words.
            pc: where the trace begins.
            text: the message of a WARN that has one.
        """
        kernel = self._kernel
        log, cpu = kernel.log, kernel.machine.current.index
        log.write("------------[ cut here ]------------", _WARNING)
        where = f"{place} {caller}" if place else caller
        log.write(f"WARNING: CPU: {cpu} PID: {kernel.pid} at {where}", _WARNING)
        if text:
            log.write(text, _WARNING)
        self._modules()
        self.registers(pc)
        log.write("---[ end trace 0000000000000000 ]---", _WARNING)
        if "W" not in kernel.tainted:
            kernel.tainted += "W"

    def registers(self, pc: int) -> None:
        """``show_regs``: the CPU, the general registers, the callers."""
        kernel = self._kernel
        log, cpu = kernel.log, kernel.machine.current.index
        *x, sp = self._registers.snapshot()
        pstate = kernel.machine.engine.read_sysreg("SPSR_EL1")
        major, minor = kernel.generation.kernel
        release = f"{major}.{minor}.0-android{kernel.generation.android} #1"
        log.write(f"CPU: {cpu} UID: 0 PID: {kernel.pid} Comm: init {taint_text(kernel.tainted)} {release}", _WARNING)
        if kernel.tainted:
            letters = sorted(kernel.tainted, key=_TAINT_COLUMNS.index)
            named = ", ".join(f"[{letter}]={_TAINTS.get(letter, letter)}" for letter in letters)
            log.write(f"Tainted: {named}", _WARNING)
        log.write("Hardware name: linux,dummy-virt (DT)", _WARNING)
        log.write(f"pstate: {pstate:08x} ({_pstate_text(pstate)})", _WARNING)
        log.write(f"pc : {kernel.describe(pc)}", _WARNING)
        log.write(f"lr : {kernel.describe(self._without_pac(x[30]))}", _WARNING)
        log.write(f"sp : {sp:016x}", _WARNING)
        for first in (29, *range(26, 0, -3)):
            numbers = range(first, first - 3 if first != 29 else 26, -1)
            log.write(" ".join(f"x{n:<2}: {x[n]:016x}" for n in numbers), _WARNING)
        log.write("Call trace:", _WARNING)
        for address in self._callers(pc, x[29], self._without_pac(x[30])):
            log.write(f" {kernel.describe(address)}", _WARNING)

    # Parts

    def _modules(self) -> None:
        kernel = self._kernel
        names = [
            f"{module.name}{'' if module.file.modinfo.get('intree') else '(O)'}"
            for module in reversed(list(kernel.loader.modules.values()))
        ]
        kernel.log.write(f"Modules linked in: {' '.join(names)}", _WARNING)

    def _table_lines(self, va: int) -> list[str]:
        memory = self._kernel.memory
        bits = memory.layout.va_bits
        if va >> bits not in (0, (1 << 64 - bits) - 1):
            return [f"[{va:016x}] address between user and kernel address ranges"]
        entries = memory.table_entries(va)
        # Names of levels that the table does not have stand for the pgd again.
        folded = len(_TABLE_NAMES) - -(-(bits - layout.PAGE_SHIFT) // _BITS_OF_A_LEVEL)
        values = [entries[0]] * folded + entries if entries[0] else entries[:1]
        walked = ", ".join(f"{name}={value:016x}" for name, value in zip(_TABLE_NAMES, values))
        which = "swapper" if va >> 63 else "user"
        return [
            f"{which} pgtable: 4k pages, {bits}-bit VAs, pgdp={memory.table_root(va):016x}",
            f"[{va:016x}] {walked}",
        ]

    def _code(self, pc: int) -> str:
        words = []
        for address in range(pc - 4 * _CODE_BEFORE, pc + 4, 4):
            try:
                text = f"{self._kernel.memory.read_u32(address):08x}"
            except GuestFault:
                text = "????????"
            words.append(f"({text})" if address == pc else text)
        return " ".join(words)

    def _callers(self, pc: int, frame: int, lr: int) -> list[int]:
        """``pc``, the link register where no frame holds it yet, and the return addresses of the frame records."""
        found = [pc]
        memory = self._kernel.memory
        records: list[int] = []
        for _ in range(_FRAMES):
            try:
                following, address = memory.read_u64(frame), self._without_pac(memory.read_u64(frame + 8))
            except GuestFault:
                break
            if not address:
                break
            records.append(address)
            if following <= frame:
                break
            frame = following
        if lr not in records:
            found.append(lr)
        # Below the modules are the model's own entry stubs, where a kernel has its system calls.
        find = self._kernel.loader.find
        return [pc, *(address for address in [*found[1:], *records] if find(address) is not None)]

    def _without_pac(self, address: int) -> int:
        signed = -1 << self._kernel.memory.layout.va_bits & (1 << 64) - 1
        return address | signed if address >> 55 & 1 else address


def _pstate_text(pstate: int) -> str:
    flags = "".join(
        name.upper() if pstate >> bit & 1 else name.lower()
        for name, bit in (("n", 31), ("z", 30), ("c", 29), ("v", 28))
    )
    masks = "".join(
        name.upper() if pstate >> bit & 1 else name.lower() for name, bit in (("d", 9), ("a", 8), ("i", 7), ("f", 6))
    )
    plus = " ".join(f"{'+' if pstate >> bit & 1 else '-'}{name}" for name, bit in _PLUS_FLAGS)
    return f"{flags} {masks} {plus} BTYPE={_BTYPES[pstate >> 10 & 3]}"
