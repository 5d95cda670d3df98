"""Function tracing as the host sees it: which functions of EL2 there are, and which of them are traced.

A kernel built with CONFIG_PKVM_FTRACE has this (``PROTECTED_NVHE_FTRACE`` in 6.12.23); the emulated one does with
``hyp_ftrace_filter=`` on its command line. Source: arch/arm64/kvm/hyp_events.c.
"""

from __future__ import annotations

import re
from errno import E2BIG, EINVAL
from fnmatch import translate
from typing import TYPE_CHECKING

from pkvm_emu.arch.insn import NOP
from pkvm_emu.elf.elements import NVHE_PREFIX
from pkvm_emu.kernel.exports.pkvm import hypercall
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel
    from pkvm_emu.kernel.modules import LoadedModule

PARAMETER = "hyp_ftrace_filter"
_PATTERN_MAX = 128
PAGE_SIZE = 4096
#: The last word of a page of functions leads to the next page.
_ENTRIES_PER_PAGE = PAGE_SIZE // 8 - 1
_TABLE = ".hyp.patchable_function_entries"
_MOV_X9_X30 = 0xAA1E_03E9
_SKIPPED = (1 << 64) - 1
#: MOVZ and MOVK x16, and BR x16.
_MOVZ_X16, _MOVK_X16, _BR_X16 = 0xD280_0010, 0xF280_0010, 0xD61F_0200


def matches(pattern: str, name: str) -> bool:
    """``glob_match``: ``*``, ``?``, ``[a-z]``, ``[!a-z]``; an empty pattern matches everything."""
    return not pattern or re.match(translate(pattern), name) is not None


def _far_branch(target: int) -> list[int]:
    """Five instructions that go anywhere."""
    parts = [(target >> 16 * part & 0xFFFF) << 5 | part << 21 for part in range(4)]
    return [_MOVZ_X16 | parts[0], *(_MOVK_X16 | part for part in parts[1:]), _BR_X16]


@kernel_part
class TracedFunctions(State):
    """The functions that can be traced.

    Attributes:
        names: their names as kallsyms has them (``__kvm_nvhe_*``), by EL1 address.
        enabled: the EL1 addresses of those that are traced.
        patched: EL1 addresses of those that the hypervisor patches.
        is_synced: the hypervisor has been told which.
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.traced_functions")
        self._early = kernel.command_line.get(PARAMETER, "") or ""
        self.names: StateDict[int, str] = StateDict(journal)
        self.enabled: StateDict[int, bool] = StateDict(journal)
        self.patched: StateList[int] = StateList(journal)
        self.is_synced = False
        self._kernel = kernel

    def add(self, va: int, name: str) -> None:
        """A module brings a function; it is traced if the filter of the command line says so."""
        self.names[va] = name
        if matches(self._early, name):
            self.enabled[va] = True

    def apply(self, data: bytes, enable: bool) -> int:
        """What a write to ``set_ftrace_filter`` (``enable``) or ``set_ftrace_notrace`` does; 0 or -errno.

        The last character is taken for the newline, whatever it is.
        """
        if len(data) >= _PATTERN_MAX - 1:
            return -E2BIG
        pattern = data[:-1].partition(b"\0")[0].decode("utf-8", "surrogateescape")
        found = [va for va, name in self.names.items() if matches(pattern, name)]
        for va in found:
            if enable:
                self.enabled[va] = True
            else:
                self.enabled.pop(va, None)
        if not found:
            return -EINVAL
        self.sync(self.is_synced, True)
        return 0

    # Modules that were built for it

    def add_patchable(self, module: LoadedModule, trampoline: int) -> bool:
        """Prepare a module that was built with CONFIG_PKVM_FTRACE before it is mapped; False: it was not.

        Its trampoline is written, and the first NOP of each function becomes ``mov x9, x30``.

        Args:
            module: the module, relocated for EL2.
            trampoline: hyp VA of the hypervisor's own trampoline.
        """
        memory = self._kernel.memory
        table, text = (module.file.section(name) for name in (_TABLE, ".hyp.text"))
        if table is None or text is None or not table.size or table.index not in module.layout.placements:
            return False
        end = module.layout.placements[text.index] + -(-text.size // PAGE_SIZE) * PAGE_SIZE
        code = b"".join(word.to_bytes(4, "little") for word in _far_branch(trampoline))
        memory.write(end - len(code), code)
        start = module.layout.placements[table.index]
        for entry in range(start, start + table.size - 7, 8):
            word = memory.read_u64(entry)
            if not word:
                break
            va = word - module.hyp_delta
            symbol = module.image.symbolize(va)
            name = symbol.name if symbol is not None else ""
            if name.startswith(f"{NVHE_PREFIX}$") or memory.read_u32(va) != NOP:
                memory.write_u64(entry, _SKIPPED)
                continue
            memory.write_u32(va, _MOV_X9_X30)
            self.add(va, name)
            self.patched.append(va)
            # The hypervisor traces it as soon as it can.
            memory.write_u64(entry, word | (va in self.enabled))
        return True

    def sync(self, wanted: bool, force: bool) -> None:
        """Tell the hypervisor which functions to patch: all that are traced, or none.

        Args:
            wanted: one of the events is on, or about to be.
            force: also where the hypervisor knows already that it is on.
        """
        if wanted == self.is_synced and not (force and wanted):
            return
        self.is_synced = wanted
        if not self.patched:
            return
        if not wanted:
            hypercall(self._kernel, "disable_ftrace")
            return
        patched = list(self.patched)
        for first in range(0, len(patched), _ENTRIES_PER_PAGE):
            words = [va | (va in self.enabled) for va in patched[first : first + _ENTRIES_PER_PAGE]]
            pa = self._kernel.pages.alloc_pages(0, zero=True)
            if pa is None:
                return
            self._kernel.machine.ram.write(pa, b"".join(word.to_bytes(8, "little") for word in words))
            hypercall(self._kernel, "sync_ftrace", self._kernel.memory.linear_va(pa))
            self._kernel.pages.free_pages(pa, 0)

    def show(self) -> str:
        """What reading ``set_ftrace_filter`` gives: the traced functions, a line each."""
        return "".join(f"{name}\n" for va, name in self.names.items() if va in self.enabled)
