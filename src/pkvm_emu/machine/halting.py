"""Halts an engine between two blocks, at the word of another thread.

``uc_emu_stop`` from another thread ends the run after whatever the engine does next. After a load, the PC is still that of the
load, whose result is in its register already, so ``ldr x8, [x8]`` would be executed twice: in a loop that walks a list, 297 of 300
such halts lost the state. Between two blocks nothing is half done.

So a hook of each block of covered code leads to ``uc_emu_stop`` itself. It is made for an address at which no code can be, and
the bounds in the engine's record of it are widened to all addresses when a halt is asked for: that is one store, which is seen at
the next block. A second hook, of a function that does nothing, makes the engine translate the blocks with hooks, which costs
3 ns a block.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from unicorn import unicorn_const as uc_const
from unicorn.unicorn_py3.unicorn import uclib

from pkvm_emu.errors import EmulatorError

if TYPE_CHECKING:
    from pkvm_emu.machine.engine import Engine

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
        record = engine.add_library_hook(uc_const.UC_HOOK_BLOCK, uclib.uc_emu_stop, _NOWHERE, _NOWHERE)
        words = (ctypes.c_uint64 * _RECORD_WORDS).from_address(record)
        bounds = [n for n in range(_RECORD_WORDS - 1) if words[n] == words[n + 1] == _NOWHERE]
        if len(bounds) != 1:
            raise EmulatorError("this build of Unicorn keeps its hooks in another way: use unicorn 2.1.4")
        self._last = ctypes.c_uint64.from_address(record + 8 * (bounds[0] + 1))

    def cover(self, begin: int, end: int) -> int:
        """Let code at VAs from ``begin`` to ``end`` (exclusive) be halted; returns the hook for ``Engine.unhook``."""
        return self._engine.add_library_hook(uc_const.UC_HOOK_BLOCK, uclib.uc_arch_supported, begin, end - 1)

    def ask(self) -> None:
        """Halt before the next block of covered code. Callable from any thread, and from hooks."""
        self.is_asked = True
        # Bounds of which the first is above the last are all addresses.
        self._last.value = 0

    def withdraw(self) -> None:
        """Do not halt any more, or again."""
        self.is_asked = False
        self._last.value = _NOWHERE
