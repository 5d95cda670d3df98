"""Halts an engine between two blocks, at the word of another thread.

``uc_emu_stop`` from another thread ends the run after whatever the engine does next. After a load, the PC is still that of the
load, whose result is in its register already, so ``ldr x8, [x8]`` would be executed twice: in a loop that walks a list, 297 of 300
such halts lost the state. Between two blocks nothing is half done.

So each block of covered code begins with a hook that stops the engine if a flag is set. The hook is a few instructions of the
host's own, since the engine calls the only hook of a block without detours: 1 ns a block. Where the host is of another kind, or
refuses to execute them, the hook is ``uc_emu_stop`` itself: made for an address at which no code can be, until a halt is asked for
and the bounds in the engine's record of it are widened to all addresses. That takes a second hook that does nothing, and 4 ns.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import struct
import sys
from typing import TYPE_CHECKING

from unicorn import unicorn_const as uc_const
from unicorn.unicorn_py3.unicorn import uclib

from pkvm_emu.errors import EmulatorError

if TYPE_CHECKING:
    from pkvm_emu.machine.engine import Engine

#: void hook(engine, pc, size, flag) { if (*flag) stop(engine); }, followed by the address of ``stop``.
_CHECKS = {
    # cmpb $0, (%rcx); jne 1f; ret; 1: jmp *0(%rip)
    "x86_64": bytes.fromhex("803900 7501 c3 ff2500000000"),
    # ldrb w4, [x3]; cbnz w4, 1f; ret; 1: ldr x4, 2f; br x4; nop; 2:
    "aarch64": struct.pack("<6I", 0x39400064, 0x35000044, 0xD65F03C0, 0x58000064, 0xD61F0080, 0xD503201F),
}
#: No address of an instruction; the engine's record of the hook is searched for it.
_NOWHERE = 0x5EA1_0C0D_E0DD_ADD1
#: The length of that record that is searched, in words. First comes the first address, then the last.
_RECORD_WORDS = 8


class Halt:
    """The way for other threads to make ``Engine.start`` return.

    Args:
        engine: what is halted.

    Attributes:
        is_asked: a halt was asked for, and not withdrawn.

    Raises:
        EmulatorError: the engine is of a version that keeps its hooks elsewhere.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.is_asked = False
        self._check = native_check()
        #: The flag of the check; without one, the last address of the hook.
        self._cell = ctypes.c_uint64(0) if self._check is not None else self._make_hook()
        self._off = self._cell.value

    def _make_hook(self) -> ctypes.c_uint64:
        record = self._engine.add_library_hook(uc_const.UC_HOOK_BLOCK, uclib.uc_emu_stop, _NOWHERE, _NOWHERE)
        words = (ctypes.c_uint64 * _RECORD_WORDS).from_address(record)
        bounds = [n for n in range(_RECORD_WORDS - 1) if words[n] == words[n + 1] == _NOWHERE]
        if len(bounds) != 1:
            raise EmulatorError("this build of Unicorn keeps its hooks in another way: use unicorn 2.1.4")
        return ctypes.c_uint64.from_address(record + 8 * (bounds[0] + 1))

    def cover(self, begin: int, end: int) -> int:
        """Let code at VAs from ``begin`` to ``end`` (exclusive) be halted; returns the hook for ``Engine.unhook``."""
        add, kind = self._engine.add_library_hook, uc_const.UC_HOOK_BLOCK
        if self._check is None:
            return add(kind, uclib.uc_arch_supported, begin, end - 1)
        return add(kind, self._check, begin, end - 1, ctypes.addressof(self._cell))

    def ask(self) -> None:
        """Halt before the next block of covered code. Callable from any thread, and from hooks."""
        self.is_asked = True
        # The hook's last address is below its first then, which stands for all addresses.
        self._cell.value = 1 - bool(self._off)

    def withdraw(self) -> None:
        """Do not halt any more, or again."""
        self.is_asked = False
        self._cell.value = self._off


@functools.cache
def native_check() -> ctypes.c_void_p | None:
    """The function that stops an engine if a flag is set, in this host's instructions; None where there is none."""
    code = _CHECKS.get(platform.machine()) if sys.platform == "linux" else None
    stop = ctypes.cast(uclib.uc_emu_stop, ctypes.c_void_p).value
    if code is None or stop is None:
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        page.write(code + struct.pack("<Q", stop))
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        if ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC):
            return None
    except (OSError, AttributeError):
        return None
    _kept.append(page)
    return ctypes.c_void_p(address)


#: The page of the check, for the life of the process.
_kept: list[mmap.mmap] = []
