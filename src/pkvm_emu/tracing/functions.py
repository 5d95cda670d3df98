"""Function tracing at EL2 (``func``, ``func_ret``) for any module, however it was built.

A device patches the NOPs that ``CONFIG_PKVM_FTRACE`` puts at the beginning of every function, and so it is done here with a
module that has them (:mod:`pkvm_emu.hyp.function_trace`). Of any other module the emulator watches the first instruction of each
function and its RETs instead; what comes into the trace, and how the functions are chosen, is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.elf.elements import NVHE_PREFIX, STT_FUNC
from pkvm_emu.hyp.function_trace import FunctionTrace
from pkvm_emu.hyp.trace_events import TraceEvents
from pkvm_emu.kernel import layout
from pkvm_emu.kernel.tracing.functions import TracedFunctions
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor
    from pkvm_emu.kernel.modules import LoadedModule
    from pkvm_emu.system import System

EVENTS = frozenset(("func", "func_ret"))
#: A deeper call is traced without its return.
MAX_DEPTH = 32
#: RET, RETAA, RETAB, all through x30.
_RETURNS = frozenset((0xD65F_03C0, 0xD65F_0BFF, 0xD65F_0FFF))
_ADDRESS_BITS = (1 << 48) - 1


class Frame(NamedTuple):
    """A traced call that has not returned: the function (EL1 address), where it returns to, its stack pointer."""

    function: int
    returns_to: int
    sp: int


class FunctionTracer(State):
    """Follows the calls of one system.

    Args:
        system: the system; its events have ``func`` and ``func_ret`` (see :func:`pkvm_emu.abi.core_events.with_functions`).

    Attributes:
        frames: by CPU, the calls that have not returned.
    """

    def __init__(self, system: System) -> None:
        super().__init__(system.machine.journal, "function_tracer")
        self._system = system
        self._engine = system.machine.engine
        self._events = system.hyp.part(TraceEvents)
        self._watched: set[int] = set()
        self.frames: StateDict[int, tuple[Frame, ...]] = StateDict(system.machine.journal)
        text = system.kernel.memory.image_va(layout.IMAGE_HYP_TEXT)
        system.hyp.part(FunctionTrace).to_kernel = text - system.hyp.entry("hyp_vectors")

    def add_module(self, module: LoadedModule) -> None:
        """Watch the functions of a module that is about to be mapped at EL2."""
        functions = self._system.kernel.part(TracedFunctions)
        if functions.add_patchable(module, self._system.hyp.part(FunctionTrace).trampoline):
            return
        section = module.file.section(".hyp.text")
        if section is None:
            return
        start = module.layout.placements[section.index]
        for symbol in sorted(module.file.symbols, key=lambda symbol: symbol.value):
            named = symbol.name.startswith(NVHE_PREFIX) and not symbol.name.startswith(f"{NVHE_PREFIX}$")
            if symbol.shndx == section.index and symbol.type == STT_FUNC and named:
                functions.add(start + symbol.value, symbol.name)
                self._watch(start + symbol.value + module.hyp_delta, self._enter)
        text = module.image.read(start, section.size)
        for offset in range(0, section.size - 3, 4):
            if int.from_bytes(text[offset : offset + 4], "little") in _RETURNS:
                self._watch(start + offset + module.hyp_delta, self._leave)

    def _watch(self, va: int, handler: object) -> None:
        # A hook stays for good: after a restore the same address may be watched again.
        key = va | (handler == self._leave)
        if key not in self._watched:
            self._watched.add(key)
            self._engine.hook_code(va, va, handler)  # type: ignore[arg-type]

    # In the hook

    def _enter(self, pc: int) -> None:
        """A function begins."""
        if not EVENTS & self._events.enabled.keys():
            return
        function = self._el1(pc)
        if function not in self._system.kernel.part(TracedFunctions).enabled:
            return
        returns_to, sp = self._engine.read("x30") & _ADDRESS_BITS, self._engine.read("sp")
        self._events.emit("func", function, self._el1(returns_to))
        cpu = self._system.machine.current.index
        # Calls that were left without a return (the CPU went off in them) lie below.
        frames = tuple(frame for frame in self.frames.get(cpu, ()) if frame.sp >= sp)
        if len(frames) < MAX_DEPTH:
            frames = (*frames, Frame(function, returns_to, sp))
        self.frames[cpu] = frames

    def _leave(self, _pc: int) -> None:
        """A RET: of the innermost call, and of those that ended in a branch to it."""
        cpu = self._system.machine.current.index
        frames = self.frames.get(cpu, ())
        if not frames:
            return
        returns_to, sp = self._engine.read("x30") & _ADDRESS_BITS, self._engine.read("sp")
        left = frames
        while left and left[-1].sp == sp and left[-1].returns_to == returns_to:
            self._events.emit("func_ret", left[-1].function)
            left = left[:-1]
        if left is not frames:
            self.frames[cpu] = left

    def _el1(self, va: int) -> int:
        """The EL1 address of an EL2 one, which has a name in the kernel."""
        module = self._system.symbols.module_at_el2(va)
        if module is not None:
            return va - module.hyp_delta
        hyp: Hypervisor = self._system.hyp
        return va - hyp.entry("hyp_vectors") + self._system.kernel.memory.image_va(layout.IMAGE_HYP_TEXT)
