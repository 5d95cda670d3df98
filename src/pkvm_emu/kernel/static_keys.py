"""Static keys at run time: counting who wants one on, and patching the code that depends on it.

Sources: kernel/jump_label.c, include/linux/jump_label.h. How an entry of ``__jump_table`` reads is in
:mod:`pkvm_emu.elf.static_keys`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.elf.instruction import NOP, branch
from pkvm_emu.elf.static_keys import static_keys
from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.vsprintf_env import GuestFault

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel


def state_of(kernel: Kernel, key: str, offset: int) -> bool | None:
    """The state of a kernel's key that a module's code depends on; None for a key of the module's own, whose default stays.

    Args:
        kernel: whose key.
        key: the symbol: a key, a structure with one, or an array of keys (5.15 asks for CPU capabilities by ``cpu_hwcap_keys``).
        offset: of the key in it.
    """
    symbols = kernel.symbols
    place = symbols.addresses.get(key)
    if place is None or key in symbols.unserved or not symbols.plain_keys.get(key, True):
        return None
    return count_of(kernel, place + offset) > 0


def count_of(kernel: Kernel, key: int) -> int:
    """``static_key_count()``: how often a key was switched on."""
    return kernel.memory.read_u32(key)


def set_count(kernel: Kernel, key: int, count: int) -> None:
    """Set it; where it goes from or to 0, code that depends on the key changes in every module.

    Args:
        kernel: whose modules.
        key: address of the ``struct static_key``.
        count: 0 or more.
    """
    before = count_of(kernel, key)
    kernel.memory.write(key, (count & 0xFFFF_FFFF).to_bytes(4, "little"))
    if bool(before) != bool(count):
        _patch(kernel, key, count > 0)


def _patch(kernel: Kernel, key: int, enabled: bool) -> None:
    changed = False
    for module in kernel.loader.modules.values():
        for entry in static_keys(module.image):
            if entry.key_va != key:
                continue
            try:
                place = kernel.memory.to_pa(entry.code)
            except GuestFault:
                # Init code that is gone.
                continue
            word = NOP if enabled == entry.is_likely else branch(entry.code, entry.target)
            if word is None:
                raise ModuleError(f"the branch of a static key at {kernel.describe(entry.code)} is out of reach")
            kernel.machine.ram.write(place, word.to_bytes(4, "little"))
            changed = True
    if changed:
        kernel.machine.core.code_epoch += 1
        kernel.machine.engine.flush_code()
