"""Where to stop first (``--stop-at``): a stage of the boot, a symbol, or a source line, found as soon as its module is there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pkvm_emu.debug.breakpoints import Breakpoint
from pkvm_emu.debug.firmware_elf import OP_PREFIX
from pkvm_emu.elf.dwarf import SourceLines
from pkvm_emu.elf.elements import NVHE_PREFIX
from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.debug.debugger import Debugger
    from pkvm_emu.kernel.modules import LoadedModule

STAGES = ("module-init", "el2-init", "hvc", "deprivilege")
_LINE = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+)$")
_HCALL_BASE = 0xC600_0000


class FirstStop:
    """Stops once at a place.

    Args:
        debugger: whose run.
        place: one of :data:`STAGES`, ``SYMBOL`` or ``FILE:LINE``.
    """

    def __init__(self, debugger: Debugger, place: str) -> None:
        self.place = place
        self._debugger = debugger
        self._system = debugger.system
        self._points: list[Breakpoint] = []
        self._line = _LINE.match(place)
        self.was_reached = False
        debugger.control.on_libraries.append(self.resolve)

    def resolve(self) -> None:
        """Look for the place in what is loaded now."""
        if self.was_reached:
            return
        breakpoints = self._debugger.control.breakpoints
        for point in self._points:
            breakpoints.remove(point)
        self._points = [
            breakpoints.add(Breakpoint(regime, va, self._reached, is_internal=True))
            for regime, va in sorted(set(self._addresses()))
        ]

    def _reached(self) -> bool:
        if self.place in ("hvc", "deprivilege") and not self._is_wanted_hypercall():
            return False
        self.was_reached = True
        for point in self._points:
            self._debugger.control.breakpoints.remove(point)
        return True

    def _is_wanted_hypercall(self) -> bool:
        number = self._system.machine.engine.read("x0") & 0xFFFF
        if self.place == "deprivilege":
            return number == self._system.generation.hypercalls["prot_finalize"]
        return any(number in module.hypercalls.values() for module in self._system.modules.values())

    def _addresses(self) -> list[tuple[int, int]]:
        modules = self._system.modules.values()
        if self.place == "module-init":
            return [(1, va) for module in modules if (va := module.symbol("init_module")) is not None]
        if self.place == "el2-init":
            return [(2, module.hyp_init + module.hyp_delta) for module in modules if module.token and module.hyp_init]
        if self.place in ("hvc", "deprivilege"):
            return [(1, va) for va in self._debugger.hypercalls.sites()]
        if self._line is not None:
            wanted = self._line["file"], int(self._line["line"])
            return [place for module in modules for place in line_addresses(module, *wanted)]
        return find_symbol(self._debugger, self.place)

    def missed(self) -> UsageError:
        """What to say when the run came to its end without the stop."""
        known = ", ".join(STAGES)
        return UsageError(
            f"--stop-at {self.place} was never reached: it is no symbol or line that ran (stages: {known})"
        )


def find_symbol(debugger: Debugger, name: str) -> list[tuple[int, int]]:
    """``(regime, va)`` of everything of this name: in modules, among the ops, in the firmware, in the kernel."""
    system = debugger.system
    found = []
    for module in system.modules.values():
        is_hyp = {section.index for section in module.file.hyp_mapped_sections}
        for symbol in module.file.symbols:
            if symbol.name not in (name, NVHE_PREFIX + name) or symbol.shndx not in module.layout.placements:
                continue
            va = module.layout.placements[symbol.shndx] + symbol.value
            if symbol.shndx not in is_hyp:
                found.append((1, va))
            elif module.token:
                found.append((2, va + module.hyp_delta))
    op = name.removeprefix(OP_PREFIX).removeprefix("ops->")
    if op != name and op in system.hyp.ops.stubs:
        found.append((2, system.hyp.ops.stubs[op]))
    for entry, regime in ((system.hyp.entry, 2), (system.kernel.entry, 1)):
        try:
            found.append((regime, entry(name)))
        except KeyError:
            continue
    if name in system.kernel.symbols.addresses:
        found.append((1, system.kernel.symbols.addresses[name]))
    return found


def line_addresses(module: LoadedModule, file: str, line: int) -> list[tuple[int, int]]:
    hyp = {section.index for section in module.file.hyp_mapped_sections}
    found = []
    for section, offset in SourceLines(module.file).places(file, line):
        va = module.layout.placements.get(section)
        if va is None:
            continue
        if section not in hyp:
            found.append((1, va + offset))
        elif module.token:
            found.append((2, va + offset + module.hyp_delta))
    return found
