"""The one place that talks to Unicorn: registers, memory map, hooks, start and stop.

One ``Uc`` instance (``UC_CPU_ARM64_MAX``, native TLB) models both exception levels. What Unicorn leaves out is exception
*entry*: every synchronous exception arrives at the interrupt callback given to :meth:`Engine.set_interrupt_handler`,
with the syndrome in :attr:`Engine.exception`.

Registers that are used on every exception go through :class:`RegisterBatch` (one foreign call for many registers,
nothing allocated); everything else through the plain accessors.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

# Unicorn prints a warning for each system register that it does not know unless told otherwise.
os.environ.setdefault("UC_IGNORE_REG_BREAK", "1")

import unicorn
from unicorn import arm64_const as uc_arm64
from unicorn import unicorn_const as uc_const
from unicorn.unicorn_py3.unicorn import uclib

from pkvm_emu.arch.sysreg import sysreg
from pkvm_emu.errors import EmulatorError, ModuleError
from pkvm_emu.machine.halting import Halt
from pkvm_emu.machine.memory import GuestRam
from pkvm_emu.machine.registers import NATIVE, CpReg, RegisterBatch

if TYPE_CHECKING:
    from pkvm_emu.machine.counting import InstructionCounter

INTNO_UDEF, INTNO_SVC, INTNO_PABT, INTNO_DABT = 1, 2, 3, 4
INTNO_BRK, INTNO_HVC, INTNO_HYP_TRAP, INTNO_SMC = 7, 11, 12, 13

_MASK64 = (1 << 64) - 1
_HVC = 0xD4000002
_REGIME = (
    "HCR_EL2", "SCTLR_EL1", "TCR_EL1", "TTBR0_EL1", "TTBR1_EL1",
    "SCTLR_EL2", "TCR_EL2", "TTBR0_EL2", "VTTBR_EL2", "VTCR_EL2",
)  # fmt: skip

_INTERRUPT_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)


class BusError(ModuleError):
    """The guest reached a physical address where there is neither RAM nor a device."""


_SYS_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(CpReg), ctypes.c_void_p)
_MEMORY_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_bool, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
)
_CODE_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)


class Engine:
    """An AArch64 core with EL1 and EL2 over one block of RAM.

    Args:
        ram: the guest's physical memory; Unicorn executes from it in place.
    """

    _exception_offset: int | None = None

    def __init__(self, ram: GuestRam) -> None:
        self.ram = ram
        self._uc = uc = unicorn.Uc(uc_const.UC_ARCH_ARM64, uc_const.UC_MODE_ARM)
        uc.ctl_set_cpu_model(uc_arm64.UC_CPU_ARM64_MAX)
        uc.mem_map_ptr(ram.base, ram.size, uc_const.UC_PROT_ALL, ram.host_address)
        self.handle = uc._uch
        self._counts = False
        #: Counts instructions (a debugger that goes back needs it); None: nothing is counted, which is faster.
        self.counter: InstructionCounter | None = None
        #: Called with the PC from which :meth:`start` runs: where a count or a stop ended the run before, that is inside a block.
        self.on_start: Callable[[int], None] | None = None
        self._hooks: dict[int, Any] = {}
        self.observing: set[int] = set()  #: The hooks that can be taken away.
        #: Changes whenever cached translations may have become others than those of the page tables of before.
        self.translation_epoch = 0
        #: The physical windows of devices, ``(first, end)`` each.
        self.mmio_windows: list[tuple[int, int]] = []
        #: A callback of a device runs.
        self.in_device = False
        self._exact: list[tuple[int, int]] = []
        # Non-secure, EL2 64-bit, HVC enabled, pointer authentication not trapped to EL3.
        self.write_sysreg("SCR_EL3", 0x30531)
        # EL1 must be AArch64 before anything else: QEMU forms AArch32 fault codes otherwise.
        self.write_sysreg("HCR_EL2", 1 << 31)
        self._hcr = RegisterBatch(self, ("HCR_EL2",))
        self._regime = RegisterBatch(self, _REGIME)
        self.halt = Halt(self)
        self._context = uc.context_save()
        self._context_handle = self._context.context
        self._interrupt: Any = None
        self._interrupt_hook: Any = None
        if Engine._exception_offset is None:
            Engine._exception_offset = self._find_exception_offset()
        #: syndrome, (unused), fault VA low, fault VA high, target EL of the exception now being delivered.
        self.exception = (ctypes.c_uint32 * 5).from_address(self._context._context.value + Engine._exception_offset)

    # Registers

    def read(self, name: str) -> int:
        """A general or special register (``x0``..``x30``, ``sp``, ``pc``, ``pstate``, ``elr_el2``, ...)."""
        return int(self._uc.reg_read(NATIVE[name]))

    def write(self, name: str, value: int) -> None:
        """Write a general or special register."""
        self._uc.reg_write(NATIVE[name], value & _MASK64)

    def read_sysreg(self, name: str) -> int:
        """A system register by its Arm name; unknown to the CPU model reads 0."""
        return int(self._uc.reg_read(uc_arm64.UC_ARM64_REG_CP_REG, sysreg(name).key))

    def write_sysreg(self, name: str, value: int) -> None:
        """Write a system register by its Arm name."""
        self._uc.reg_write(uc_arm64.UC_ARM64_REG_CP_REG, (*sysreg(name).key, value & _MASK64))

    def read_vector(self, number: int) -> int:
        """The 128 bits of a SIMD register."""
        return int(self._uc.reg_read(uc_arm64.UC_ARM64_REG_Q0 + number))

    def write_vector(self, number: int, value: int) -> None:
        """Write the 128 bits of a SIMD register."""
        self._uc.reg_write(uc_arm64.UC_ARM64_REG_Q0 + number, value)

    def set_pstate(self, value: int) -> None:
        """Set PSTATE, exception level included, and make the engine derive its internal flags again."""
        self.write("pstate", value)
        self.write_sysreg("SCR_EL3", self.read_sysreg("SCR_EL3"))

    def batch(self, *names: str) -> RegisterBatch:
        """A :class:`RegisterBatch` over ``names``."""
        return RegisterBatch(self, names)

    # Running

    def start(self, pc: int, count: int = 0) -> None:
        """Run from ``pc`` until something stops it; ``count`` instructions at most where it is not 0.

        Raises:
            BusError: an access to a physical address where there is neither RAM nor a device; PC is the instruction.
        """
        if self._counts is not (counts := bool(count) or self.counter is not None):
            # What was translated without counting would run uncounted. (The other way round the engine flushes by itself.)
            self._counts = counts
            if counts:
                self.flush_code()
        if self.on_start is not None:
            self.on_start(pc)
        try:
            (self if self.counter is None else self.counter).emulate(pc, count)
        except unicorn.UcError as error:
            raise BusError(str(error)) from error

    def translate(self, va: int) -> int | None:
        """The physical address of ``va`` in the current regime (both stages), or None where it does not translate."""
        pa = ctypes.c_uint64()
        handle = self.handle.value if hasattr(self.handle, "value") else self.handle
        arguments = (ctypes.c_void_p(handle), ctypes.c_uint64(va), ctypes.c_uint32(uc_const.UC_PROT_READ))
        status = uclib.uc_vmem_translate(*arguments, ctypes.byref(pa))
        return int(pa.value) if status == uc_const.UC_ERR_OK else None

    def emulate(self, pc: int, count: int) -> None:
        """What :meth:`start` does in the end, where nothing counts."""
        self._uc.emu_start(pc, 0, 0, count)

    def stop(self, before: bool = False) -> None:
        """Make :meth:`start` return, from a hook (``before`` its instruction, which is not executed).

        Other threads use :attr:`halt`.
        """
        if self.counter is not None:
            self.counter.note_stop(before)
        self._uc.emu_stop()

    def save_exception(self) -> None:
        """Make :attr:`exception` hold what the CPU recorded for the exception being delivered."""
        uclib.uc_context_save(self.handle, self._context_handle)

    # Translation caches

    def note_translation_change(self) -> None:
        """Page tables were written: translations cached before are not those of a snapshot taken before."""
        self.translation_epoch += 1

    def flush_tlb(self) -> None:
        """Forget cached translations; needed after live entries of page tables are changed from Python."""
        self.translation_epoch += 1
        self._uc.ctl(uc_const.UC_CTL_TLB_FLUSH, uc_const.UC_CTL_IO_WRITE)

    def flush_code(self) -> None:
        """Forget all translated code. Not from inside a code, memory or SYS hook."""
        self._uc.ctl_flush_tb()

    def forget_code(self, start: int, end: int) -> None:
        """Forget translated code of a VA range in the current regime (safe inside hooks)."""
        self._uc.ctl_remove_cache(start, end)

    # Contexts

    def save_context(self) -> Any:
        """All registers of the CPU, as an opaque value."""
        return self._uc.context_save()

    def update_context(self, context: Any) -> None:
        """Save all registers into an existing context."""
        self._uc.context_update(context)

    def regime(self) -> tuple[int, ...]:
        """The registers that decide how addresses are translated."""
        cells = self._regime
        cells.read()
        return tuple([cell.val for cell in cells.cp.values()])

    def restore_registers(self, context: Any) -> None:
        """Bring all registers back where HCR_EL2 is known to be the same, and so the virtual interrupt lines."""
        uclib.uc_context_restore(self.handle, context.context)

    def restore_context(self, context: Any) -> None:
        """Bring all registers back. The virtual interrupt lines follow HCR_EL2, which is written again for that."""
        self.restore_registers(context)
        self._hcr.read()
        self._hcr.write()

    # Hooks

    def set_interrupt_handler(self, handler: Callable[[Any, int, Any], None]) -> None:
        """Call ``handler(handle, intno, user)`` for every synchronous exception. It must not raise."""
        if self._interrupt_hook is not None:
            uclib.uc_hook_del(self.handle, self._interrupt_hook)
        self._interrupt = _INTERRUPT_CALLBACK(handler)
        self._interrupt_hook = self._hook(uc_const.UC_HOOK_INTR, self._interrupt)

    def set_cache_handler(self, handler: Callable[[int, int, int, int], None]) -> None:
        """Call ``handler(op1, crn, crm, value)`` for each SYS instruction (cache and TLB maintenance)."""

        def callback(_handle: Any, _reg: int, cell: Any, _user: Any) -> int:
            reg = cell.contents
            handler(reg.op1, reg.crn, reg.crm, reg.val)
            return 0

        function = _SYS_CALLBACK(callback)
        self._hook(uc_const.UC_HOOK_INSN, function, uc_arm64.UC_ARM64_INS_SYS)

    def hook_register_read(self, va: int, names: Sequence[str], handler: Callable[[], int]) -> None:
        """Give an MRS of one of the system registers ``names`` at ``va`` the value of ``handler()``."""
        keys = {(op0, op1, crn, crm, op2) for crn, crm, op0, op1, op2 in (sysreg(name).key for name in names)}

        def callback(_handle: Any, reg: int, cell: Any, _user: Any) -> int:
            # The hook outlives the code it was made for: another instruction may be at this address by now.
            register = cell.contents
            if (register.op0, register.op1, register.crn, register.crm, register.op2) not in keys:
                return 0
            self._uc.reg_write(reg, handler())
            return 1

        function = _SYS_CALLBACK(callback)
        self._hook(uc_const.UC_HOOK_INSN, function, uc_arm64.UC_ARM64_INS_MRS, begin=va, end=va)

    def hook_code(self, begin: int, end: int, handler: Callable[[int], None]) -> int:
        """Call ``handler(pc)`` before each instruction of a VA range; returns the hook for :meth:`unhook`."""

        def callback(_handle: Any, pc: int, _size: int, _user: Any) -> None:
            handler(pc)

        return self._observe(uc_const.UC_HOOK_CODE, _CODE_CALLBACK(callback), begin, end)

    def hook_memory(self, begin: int, end: int, handler: Callable[[bool, int, int], None]) -> int:
        """Call ``handler(is_write, pa, size)`` before each access that begins at a PA from ``begin`` to ``end`` (inclusive).

        While there is one, every load and store is slower. :meth:`stop` in the handler leaves the PC at the instruction; what a
        store writes is in memory nevertheless.
        """

        def callback(_handle: Any, kind: int, pa: int, size: int, _value: int, _user: Any) -> bool:
            handler(kind == uc_const.UC_MEM_WRITE, pa, size)
            return True

        kinds = uc_const.UC_HOOK_MEM_READ | uc_const.UC_HOOK_MEM_WRITE
        return self._observe(kinds, _MEMORY_CALLBACK(callback), begin, end)

    def hook_blocks(self, handler: Callable[[int, int], None], begin: int = 1, end: int = 0) -> int:
        """Call ``handler(pc, size)`` at the start of each translated block (size in bytes), of a VA range or of all code."""

        def callback(_handle: Any, pc: int, size: int, _user: Any) -> None:
            handler(pc, size)

        return self._observe(uc_const.UC_HOOK_BLOCK, _CODE_CALLBACK(callback), begin, end)

    def unhook(self, hook: int) -> None:
        """Remove a hook."""
        uclib.uc_hook_del(self.handle, ctypes.c_size_t(hook))
        self._hooks.pop(hook, None)
        self.observing.discard(hook)
        self.flush_code()

    def add_library_hook(self, kind: int, function: Any, begin: int, end: int, data: int = 0) -> int:
        """Call a native function from code at VAs from ``begin`` to ``end`` (inclusive), with ``data`` as its last argument.

        Returns:
            The hook.
        """
        hook = self._hook(kind, function, begin=begin, end=end, data=data)
        self.flush_code()
        return hook

    def map_mmio(
        self, base: int, size: int, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        """Map a device: ``read(offset, size) -> value`` and ``write(offset, size, value)``, size in bytes.

        A 64-bit access arrives as two of 32 bits. Inside the callbacks the PC is exact where :meth:`keep_pc_exact` says so;
        elsewhere it is that of an earlier instruction.
        """
        self.mmio_windows.append((base, base + size))

        def reader(_uc: Any, offset: int, width: int, _data: Any) -> int:
            self.in_device = True
            try:
                return read(offset, width)
            finally:
                self.in_device = False

        def writer(_uc: Any, offset: int, width: int, value: int, _data: Any) -> None:
            self.in_device = True
            try:
                write(offset, width, value)
            finally:
                self.in_device = False

        self._uc.mmio_map(base, size, reader, None, writer, None)

    def keep_pc_exact(self, begin: int, end: int) -> None:
        """Let the PC be that of the instruction in the callbacks of devices, for code at VAs from ``begin`` to ``end``.

        The engine writes the PC before an instruction that has a hook, and only there. The hook is a function of the library
        that does nothing, so it costs about 2 ns for each instruction.
        """
        if (begin, end) not in self._exact:
            self._exact.append((begin, end))
            self.add_library_hook(uc_const.UC_HOOK_CODE, uclib.uc_arch_supported, begin, end - 1)

    def is_pc_exact(self, pc: int) -> bool:
        """Whether code at this VA keeps the PC exact."""
        return any(begin <= pc < end for begin, end in self._exact)

    def find_unmapped(self) -> tuple[int, int, bool] | None:
        """After a :class:`BusError`: physical address, bytes, and whether it was a write; None where code was fetched.

        The instruction is executed once more, with a hook that would slow all other stores down if it stayed.
        """
        found: list[tuple[int, int, bool]] = []

        def miss(_handle: Any, kind: int, address: int, size: int, _value: int, _user: Any) -> bool:
            found.append((address, size, kind == uc_const.UC_MEM_WRITE_UNMAPPED))
            return False

        kinds = uc_const.UC_HOOK_MEM_READ_UNMAPPED | uc_const.UC_HOOK_MEM_WRITE_UNMAPPED
        hook = self._hook(kinds, _MEMORY_CALLBACK(miss))
        try:
            self.start(self.read("pc"), 1)
        except BusError:
            pass
        finally:
            self.unhook(hook)
        return found[0] if found else None

    def _observe(self, kinds: int, function: Any, begin: int, end: int) -> int:
        hook = self._hook(kinds, function, begin=begin, end=end)
        self.observing.add(hook)
        self.flush_code()
        return hook

    def _hook(self, kind: int, function: Any, *extra: int, begin: int = 1, end: int = 0, data: int = 0) -> int:
        hook = ctypes.c_size_t()
        span = ctypes.c_uint64(begin), ctypes.c_uint64(end)
        user = ctypes.c_void_p(data)
        status = uclib.uc_hook_add(self.handle, ctypes.byref(hook), kind, function, user, *span, *extra)
        if status != uc_const.UC_ERR_OK:
            raise EmulatorError(f"Unicorn refused a hook of kind {kind:#x}: error {status}")
        self._hooks[int(hook.value)] = function
        return int(hook.value)

    def _find_exception_offset(self) -> int:
        """Where the register context holds the exception record: where the syndromes of two different HVCs appear."""
        found: set[int] | None = None
        seen = b""

        def capture(_handle: Any, _intno: int, _user: Any) -> None:
            nonlocal seen
            self.save_exception()
            seen = ctypes.string_at(self._context._context.value, self._context._size)
            self.stop()

        self.set_interrupt_handler(capture)
        for imm in (0x1357, 0x2468):
            self.ram.write_u32(self.ram.base, _HVC | imm << 5)
            self.flush_code()
            self.set_pstate(0x3C5)
            self.start(self.ram.base)
            syndrome = (0x5A000000 | imm).to_bytes(4, "little")
            hits = {i for i in range(0, len(seen) - 4, 4) if seen[i : i + 4] == syndrome}
            found = hits if found is None else found & hits
        self.ram.write_u32(self.ram.base, 0)
        self.flush_code()
        if not found or len(found) != 1:
            raise EmulatorError("this build of Unicorn keeps its exception record elsewhere: use unicorn 2.1.4")
        return found.pop()
