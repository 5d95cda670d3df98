"""Function tracing in modules that were built for it: the hypervisor patches the beginnings of their functions.

With CONFIG_PKVM_FTRACE a function begins with three NOPs. The host makes the first one ``mov x9, x30``; the hypervisor the second
one ``movz x10, #module`` and, while the function is traced, the third one a call of the module's trampoline, which goes on to the
hypervisor's own. That puts another trampoline in place of the return address, so that returns are seen too.
Source: arch/arm64/kvm/hyp/nvhe/{ftrace,events}.c.
"""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.abi.core_events import FUNCTION_EVENTS
from pkvm_emu.arch.insn import NOP, bl, hvc, ret
from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.layout import kern_hyp_va
from pkvm_emu.hyp.op_table import OpTable
from pkvm_emu.hyp.registry import hyp_part
from pkvm_emu.hyp.service import el2_service
from pkvm_emu.hyp.trace_events import TraceEvents
from pkvm_emu.machine.core import SERVICE_IMMEDIATE
from pkvm_emu.machine.state import State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

PAGE_SIZE, PAGE_SHIFT = 4096, 12
#: Deeper calls are traced without their returns.
MAX_DEPTH = 32
#: Bytes of the trampoline at the end of a module's ``.hyp.text``.
MODULE_TRAMPOLINE = 20
#: What the host leaves of an entry whose function is not to be touched.
SKIPPED = (1 << 64) - 1
_INDEX_AT, _CALL_AT, _BODY_AT = 4, 8, 12
_MOVZ_X10 = 0xD280_000A
_STUBS_SIZE = 16
_ENABLED = 1


class Frame(NamedTuple):
    """A traced call that has not returned: the function (EL1 address) and where it returns to."""

    function: int
    returns_to: int


class PatchedModule(NamedTuple):
    """The functions of one module: hyp VAs, its trampoline, EL1 address minus EL2 address."""

    functions: tuple[int, ...]
    trampoline: int
    to_kernel: int


@hyp_part
class FunctionTrace(State):
    """The patched functions of one hypervisor.

    Attributes:
        modules: in the order of their loading; the index is what ``x10`` holds, plus one (0 is the hypervisor itself).
        frames: by CPU, the calls that have not returned.
        to_kernel: address of the hypervisor's own code in the kernel image, minus its hyp VA; the host sets it at boot.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        journal = hyp.machine.journal
        super().__init__(journal, "hyp.function_trace")
        self._hyp = hyp
        self._engine = hyp.machine.engine
        self.modules: StateList[PatchedModule] = StateList(journal)
        self.frames: StateDict[int, tuple[Frame, ...]] = StateDict(journal)
        self.to_kernel = 0
        self._exists = FUNCTION_EVENTS[0] in hyp.generation.tracing.core_events
        # Behind the stubs of the ops, whose pages are executable at EL2 and larger than they need.
        stubs_pa = hyp._ops_pa + OpTable.PAGES * PAGE_SIZE - _STUBS_SIZE
        #: Hyp VAs of what a traced function calls, and of what it returns to.
        self._trampoline, self._return = (hyp.stage1.va_of(stubs_pa + offset) for offset in (0, 8))
        if self._exists:
            for offset, function in ((0, self._called), (8, self._returned)):
                hyp.machine.ram.write_u32(stubs_pa + offset, hvc(SERVICE_IMMEDIATE))
                hyp.machine.ram.write_u32(stubs_pa + offset + 4, ret())
                stub = hyp.stage1.va_of(stubs_pa + offset)
                hyp.machine.core.add_service(stub, el2_service(hyp, "function trace", 0, function))

    @property
    def trampoline(self) -> int:
        """Hyp VA of the hypervisor's trampoline."""
        return self._trampoline

    @property
    def returns_through(self) -> int:
        """Hyp VA that a traced function returns to, in place of its caller."""
        return self._return

    # Modules

    def add(self, entries: int, end: int, trampoline: int, to_kernel: int) -> None:
        """A module with patchable functions is initialised.

        Args:
            entries, end: hyp VAs of its table of functions; bit 0 of an entry: traced from the beginning.
            trampoline: hyp VA of the module's trampoline.
            to_kernel: EL1 address minus EL2 address.
        """
        if not self._exists:
            return
        table = self._hyp.load(entries, end - entries, "init_module reads the table of functions")
        words = [int.from_bytes(table[at : at + 8], "little") for at in range(0, len(table) - 7, 8)]
        found = []
        index = len(self.modules) + 1
        for word in words:
            if not word:
                break
            if word == SKIPPED:
                continue
            function = word & ~_ENABLED
            found.append(function)
            self._write(function + _INDEX_AT, _MOVZ_X10 | index << 5)
            if word & _ENABLED:
                self._write(function + _CALL_AT, bl(function + _CALL_AT, trampoline))
        self.modules.append(PatchedModule(tuple(found), trampoline, to_kernel))
        self._forget_code()

    def sync(self, page_va: int) -> int:
        """Trace what a page of the host says: EL1 addresses, bit 0 set for those that are traced; 0 or -EINVAL, -EPERM.

        ``page_va`` is its kernel VA; the page is the hypervisor's while it is read. Its last word is not an entry.
        """
        hyp = self._hyp
        pfn = hyp.stage1.pa_of(kern_hyp_va(page_va)) >> PAGE_SHIFT
        error = hyp.ownership.host_donate_hyp(pfn, 1, origin="sync_ftrace")
        if error:
            return error
        page = hyp.machine.ram.read(pfn << PAGE_SHIFT, PAGE_SIZE)
        wanted = {}
        for at in range(0, PAGE_SIZE - 8, 8):
            word = int.from_bytes(page[at : at + 8], "little")
            if not word:
                break
            wanted[word & ~_ENABLED] = bool(word & _ENABLED)
        for module in self.modules:
            for function in module.functions:
                traced = wanted.pop(function + module.to_kernel, None)
                if traced is not None:
                    at = function + _CALL_AT
                    self._write(at, bl(at, module.trampoline) if traced else NOP)
        self._forget_code()
        if hyp.ownership.hyp_donate_host(pfn, 1, origin="sync_ftrace"):
            raise HypBug("sync_ftrace: the page of functions cannot be given back")
        return -EINVAL if wanted else 0

    def disable(self) -> None:
        """Trace no function."""
        for module in self.modules:
            for function in module.functions:
                self._write(function + _CALL_AT, NOP)
        self._forget_code()

    def _write(self, va: int, word: int) -> None:
        # Through the fixmap on a device: the code is not writable where it runs.
        pa = self._hyp.to_pa(va)
        if pa is not None:
            self._hyp.machine.ram.write_u32(pa, word)

    def _forget_code(self) -> None:
        core = self._hyp.machine.core
        core.code_epoch += 1
        core.engine.flush_code()

    # The trampolines

    def _called(self) -> None:
        """A traced function begins: x30 points behind its patched instructions, x9 is where it returns to."""
        body, returns_to = self._engine.read("x30"), self._engine.read("x9")
        index = (self._engine.read("x10") & 0xFFFF) - 1
        to_kernel = self.modules[index].to_kernel if 0 <= index < len(self.modules) else 0
        function = body - _BODY_AT + to_kernel
        self._hyp.part(TraceEvents).emit("func", function, self._caller(returns_to))
        cpu = self._hyp.machine.current.index
        frames = self.frames.get(cpu, ())
        if len(frames) < MAX_DEPTH:
            self.frames[cpu] = (*frames, Frame(function, returns_to))
            returns_to = self._return
        self._engine.write("x30", returns_to)
        self._engine.write("pc", body)

    def _returned(self) -> None:
        """A traced function has returned."""
        cpu = self._hyp.machine.current.index
        frames = self.frames.get(cpu, ())
        if not frames:
            raise HypBug("a traced function returns that was not called")
        self.frames[cpu] = frames[:-1]
        self._hyp.part(TraceEvents).emit("func_ret", frames[-1].function)
        self._engine.write("x30", frames[-1].returns_to)

    def _caller(self, va: int) -> int:
        """The EL1 address of a return address; the trampoline stands for the function that it came from."""
        if va == self._return:
            return self.frames[self._hyp.machine.current.index][-1].function
        for module in self.modules:
            if module.functions and module.functions[0] <= va < module.trampoline:
                return va + module.to_kernel
        return va + self.to_kernel
