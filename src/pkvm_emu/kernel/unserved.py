"""Symbols that nothing serves and that modules do not call: their addresses lie in pages that are not mapped.

Such a symbol is a variable, or a function whose address is passed on. Whatever is done with what lies there faults, and the
fault is told with the symbol's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.arch.esr import Esr, ExceptionClass
from pkvm_emu.errors import ModuleError
from pkvm_emu.machine.state import State, StateList

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

#: Behind the image, in reach of ADRP from every module.
_AREA, _AREA_SIZE = 0x200_0000, 0x200_0000
_PAGE = 4096
#: Symbols lie some way into their page, so that what lies in front (a type id) is theirs too.
_INTO_PAGE = 0x100
_WNR = 1 << 6
_TYPE_ID = -4
_ARGUMENTS = 8


class UnservedSymbol(ModuleError):
    """The module needs an exported symbol of the kernel that nothing here serves."""


class UnservedPlaces(State):
    """The pages of those symbols.

    Args:
        kernel: whose address space.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.unserved")
        self._kernel = kernel
        self._base = kernel.memory.layout.kimage_vaddr + _AREA
        self.names: StateList[str] = StateList(kernel.machine.journal)

    def place(self, name: str) -> int | None:
        """An address for a symbol; None when there are too many."""
        if len(self.names) * _PAGE >= _AREA_SIZE:
            return None
        self.names.append(name)
        return self._base + (len(self.names) - 1) * _PAGE + _INTO_PAGE

    def find(self, va: int) -> tuple[str, int] | None:
        """The symbol in whose page an address lies, and the distance to it."""
        index, rest = divmod(va - self._base, _PAGE)
        return (self.names[index], rest - _INTO_PAGE) if 0 <= index < len(self.names) else None

    def describe(self, va: int) -> str | None:
        """``symbol+0x8`` for such an address."""
        found = self.find(va)
        if found is None:
            return None
        name, offset = found
        return name if not offset else f"{name}{'+' if offset > 0 else '-'}{abs(offset):#x}"

    def call_of(self, name: str, caller: int) -> UnservedSymbol:
        """The error for a call that is about to happen: who calls from ``caller``, and what with."""
        kernel = self._kernel
        values = [kernel.machine.engine.read(f"x{number}") for number in range(_ARGUMENTS)]
        arguments = ", ".join(f"x{index}={value:#x}" for index, value in enumerate(values))
        return UnservedSymbol(
            f"{kernel.machine.core.describe(caller, 1)} calls {name}(), which this kernel does not serve ({arguments}); "
            f"serve it from Python with --kernel FILE"
        )

    def access_of(self, va: int, esr: int, pc: int) -> UnservedSymbol | None:
        """The error for an abort at such an address; None for any other."""
        found = self.find(va)
        if found is None:
            return None
        name, offset = found
        if Esr(esr).ec == ExceptionClass.IABT_CUR:
            return self.call_of(name, self._kernel.machine.engine.read("x30") - 4)
        if offset == _TYPE_ID:
            return self.call_of(name, pc)
        return self._touch(va, "writes" if esr & _WNR else "reads", pc)

    def _touch(self, va: int, verb: str, pc: int) -> UnservedSymbol:
        return UnservedSymbol(
            f"{self._kernel.machine.core.describe(pc, 1)} {verb} {self.describe(va)}, which this kernel does not serve; "
            f"serve it from Python with --kernel FILE (@kernel_variable)"
        )

    def argument_of(self, va: int, function: str) -> UnservedSymbol | None:
        """The error for an exported function that got such an address and looked behind it; None for any other address."""
        caller = self._kernel.machine.engine.read("x30") - 4
        return self._touch(va, f"lets {function}() access", caller) if self.find(va) is not None else None
