"""Values as golden text has them: the same for two builds of a module that do the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import errno_name
from pkvm_emu.abi.prot import prot_name
from pkvm_emu.hyp import layout
from pkvm_emu.tracing.timeline.records import Arguments, Value

if TYPE_CHECKING:
    from pkvm_emu.system import System

_LARGEST_ERRNO = 4095
_TEXT_LIMIT = 256
_PREFIX = "__kvm_nvhe_"


class Words:
    """Values of one system in words.

    An address in a module becomes a symbol, one of EL2's linear map its PA; stacks and what is placed by chance have no number.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        kernel = system.kernel
        #: Names of the hypercalls of modules.
        self.hypercalls = frozenset(name for module in system.modules.values() for name in module.hypercalls)
        self._linear = kernel.memory.linear_va(system.machine.ram.base)

    def arguments(self, arguments: Arguments, *without: str) -> str:
        """``pfn=0x48000, pages=1``."""
        return ", ".join(f"{name}={self.value(name, value)}" for name, value in arguments if name not in without)

    def results(self, results: Arguments) -> str:
        """`` = 0``; empty where there are none."""
        if not results:
            return ""
        if len(results) == 1 and results[0][0] == "result":
            return f" = {self.value('', results[0][1])}"
        shown = [(name, value) for name, value in results if name == "x0" or value]
        return f" = {' '.join(f'{name}={self.value(name, value)}' for name, value in shown)}"

    def value(self, name: str, value: Value) -> str:
        """One value."""
        if isinstance(value, str):
            return repr(value)
        if -_LARGEST_ERRNO <= value < 0:
            return errno_name(value)
        if name == "prot":
            return prot_name(value)
        return self.address(value) or (str(value) if 0 <= value < 10 else f"{value:#x}")

    def text(self, value: Value) -> str:
        """The text that a serial op prints: a string at EL2, or one character."""
        if isinstance(value, str):
            return value
        if value < 256:
            return chr(value)
        found = self._system.hyp.read_cstr(value, _TEXT_LIMIT)
        return found.decode("utf-8", "replace")

    def address(self, value: int) -> str | None:
        """An address in words; None for what is none."""
        system = self._system
        module = system.symbols.module_at_el2(value)
        if module is not None:
            return self._symbol(system.symbols.el2(value))
        if layout.PRIVATE_BASE <= value < layout.VMEMMAP_BASE:
            heap = layout.HEAP_VA <= value < layout.HEAP_VA + layout.HEAP_SIZE
            return "<hyp heap>" if heap else "<hyp private>"
        pa = system.hyp.stage1.pa_of(value)
        if pa in system.machine.ram and value >= layout.TAG:
            return f"hyp({pa:#x})"
        if value >> 55:
            if system.kernel.loader.find(value) is not None:
                return self._symbol(system.symbols.el1(value))
            offset = value - self._linear
            if 0 <= offset < system.machine.ram.size:
                return "<kernel memory>"
            return "<kernel address>"
        return None

    def place(self, pc: int, level: int) -> str:
        """The function that an instruction is in: offsets change with every build."""
        described = (self._system.symbols.el2(pc) if level > 1 else self._system.symbols.el1(pc)) or ""
        return self._symbol(described).partition("+")[0]

    @staticmethod
    def _symbol(described: str | None) -> str:
        """``vendor:handler+0x8`` of ``__kvm_nvhe_handler+0x8/0x40 [vendor]``."""
        if not described:
            return "<module>"
        text, _, rest = described.partition(" [")
        module = rest.partition("]")[0]
        symbol, _, offset = text.partition("/")[0].partition("+")
        name = symbol.removeprefix(_PREFIX)
        tail = "" if not offset or int(offset, 16) == 0 else f"+{offset}"
        return f"{module}:{name}{tail}" if module else f"{name}{tail}"
