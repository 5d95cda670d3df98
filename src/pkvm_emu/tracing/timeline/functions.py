"""The functions of modules at EL2, from their first instruction to their RET."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.elf.elements import NVHE_PREFIX, STT_FUNC
from pkvm_emu.hyp.function_trace import FunctionTrace
from pkvm_emu.tracing.timeline.recorder import Open
from pkvm_emu.tracing.timeline.records import Level
from pkvm_emu.tracing.timeline.services import signed_result

if TYPE_CHECKING:
    from pkvm_emu.kernel.modules import LoadedModule
    from pkvm_emu.tracing.timeline.recorder import Timeline

#: RET, RETAA, RETAB, all through x30.
RETURNS = frozenset((0xD65F_03C0, 0xD65F_0BFF, 0xD65F_0FFF))
_ADDRESS_BITS = (1 << 48) - 1
_MAPPING_SYMBOL = "$"


class El2Function(NamedTuple):
    """A function of a module: its name without ``__kvm_nvhe_``, hyp VA, bytes."""

    name: str
    start: int
    size: int


def functions_of(module: LoadedModule) -> list[El2Function]:
    """The functions in a module's EL2 code, by address; of several names for one address the first.

    Functions without a size in the symbol table reach up to the next one.
    """
    section = module.file.section(".hyp.text")
    if section is None or section.index not in module.layout.placements:
        return []
    start = module.layout.placements[section.index] + module.hyp_delta
    found: dict[int, tuple[str, int]] = {}
    for symbol in module.file.symbols:
        name = symbol.name.removeprefix(NVHE_PREFIX)
        if symbol.shndx == section.index and symbol.type == STT_FUNC and name and name[0] != _MAPPING_SYMBOL:
            found.setdefault(symbol.value, (name, symbol.size))
    ordered = sorted(found)
    ends = [*ordered[1:], section.size]
    return [
        El2Function(found[value][0], start + value, found[value][1] or end - value)
        for value, end in zip(ordered, ends, strict=False)
    ]


class FunctionListener:
    """Records the calls of functions as slices."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._system = timeline.system
        self._engine = timeline.system.machine.engine
        self._call = self._engine.batch("x30", "sp", "x0")
        self._names: dict[int, str] = {}
        self._hooked: set[tuple[int, bool]] = set()

    def add_module(self, module: LoadedModule) -> None:
        """Follow the functions of a module whose EL2 half has its place."""
        section = module.file.section(".hyp.text")
        if section is None or section.index not in module.layout.placements:
            return
        for function in functions_of(module):
            self._names[function.start] = function.name
            self._hook(function.start, True)
        start = module.layout.placements[section.index]
        text = module.image.read(start, section.size)
        for offset in range(0, section.size - 3, 4):
            if int.from_bytes(text[offset : offset + 4], "little") in RETURNS:
                self._hook(start + offset + module.hyp_delta, False)

    def _hook(self, va: int, is_entry: bool) -> None:
        # A hook stays for good: after a restore another module may be at the same address.
        if (va, is_entry) not in self._hooked:
            self._hooked.add((va, is_entry))
            self._engine.hook_code(va, va, self._enters if is_entry else self._returns)

    def _enters(self, pc: int) -> None:
        returns_to, sp, _ = self._call.read()
        returns_to &= _ADDRESS_BITS
        row = self._timeline.row(Level.EL2)
        # Calls that were left without a return lie below.
        while row and row[-1].category == "function" and row[-1].key < sp:
            self._timeline.end(Level.EL2)
        name = self._names.get(pc)
        if name is not None:
            self._timeline.begin(Level.EL2, name, Open("function", sp, returns_to), (("from", returns_to - 4),), pc=pc)

    def _returns(self, _pc: int) -> None:
        returns_to, sp, result = self._call.read()
        returns_to &= _ADDRESS_BITS
        by_trampoline = returns_to == self._system.hyp.part(FunctionTrace).returns_through
        row = self._timeline.row(Level.EL2)
        # The innermost call, and those that ended in a branch to it.
        while row and row[-1].category == "function" and row[-1].key == sp:
            if row[-1].returns_to != returns_to and not by_trampoline:
                return
            self._timeline.end(Level.EL2, (("x0", signed_result(result)),))
