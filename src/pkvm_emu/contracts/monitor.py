"""Watches one system for breaches of the contracts.

>>> monitor = watch(system, Selection.parse("memory"))
>>> system.call("read_twice", 0x48000)
>>> for finding in monitor.findings: print(finding)
error: double-fetch: 8 bytes at PA 0x48000000 are read again (...) at read_twice+0x50/0x80 [driver] (hyp/el2.c:31), ...
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pkvm_emu.contracts.checker import CHECKERS
from pkvm_emu.contracts.entries import Borders, Entry
from pkvm_emu.contracts.findings import Finding, Record, in_words
from pkvm_emu.contracts.rules import Group, Level, Selection
from pkvm_emu.hyp import layout
from pkvm_emu.machine.pagetable import PAGE_SIZE
from pkvm_emu.machine.state import State, StateList

if TYPE_CHECKING:
    from pkvm_emu.hyp.op_calls import OpCall
    from pkvm_emu.machine.core import ServiceResult
    from pkvm_emu.system import System

#: Room for the text of modules behind the first one.
_MODULES_SIZE = 256 << 20
_CHECKERS_IN = ("fixmap", "sharing", "mappings", "handlers", "leaks", "heap", "double_fetch", "budget")
#: Addresses of EL2; those of the host's kernel have all upper bits set.
_EL2_FIRST, _EL2_LAST = 0x1000, (1 << 55) - 1


class Monitor(State):
    """The contracts of one system.

    Args:
        system: what is watched, from now on.
        selection: which contracts, and how bad their breaches are.

    Attributes:
        records: the breaches, oldest first, each place once.
    """

    def __init__(self, system: System, selection: Selection) -> None:
        super().__init__(system.machine.journal)
        self._system = system
        self._selection = selection
        self.records: StateList[Record] = StateList(system.machine.journal)
        self._borders = Borders(system, self._entered, self._left)
        for name in _CHECKERS_IN:
            importlib.import_module(f"pkvm_emu.contracts.{name}")
        self._checkers = [
            checker(self)
            for checker in CHECKERS
            if any(selection.level(name) is not Level.OFF for name in checker.contracts)
        ]
        system.hyp.ops.observe(self)
        self._in_module: tuple[int, int] | None = None
        self._executed = 0
        if selection.watches(Group.MEMORY):
            self._watch_memory()

    @property
    def system(self) -> System:
        """What is watched."""
        return self._system

    @property
    def selection(self) -> Selection:
        """Which contracts are watched."""
        return self._selection

    @property
    def executed(self) -> int | None:
        """Instructions at EL2 so far, whatever was restored in between; None where no contract about memory is watched."""
        return self._executed if self._selection.watches(Group.MEMORY) else None

    @property
    def entry(self) -> Entry | None:
        """What EL2 was entered for, while it is there."""
        return self._borders.current

    @property
    def findings(self) -> list[Finding]:
        """What was found, oldest first."""
        return [in_words(self._system, record, self._selection.level(record.contract)) for record in self.records]

    @property
    def errors(self) -> list[Finding]:
        """The findings that are errors."""
        return [finding for finding in self.findings if finding.level is Level.ERROR]

    def add(self, contract: str, message: str, pc: int) -> None:
        """A contract is broken; a breach by the same instruction is kept once."""
        if self._selection.level(contract) is Level.OFF:
            return
        entry = self.entry
        record = Record(contract, message, pc, entry.name if entry is not None else "the boot")
        if not any(
            known.contract == contract and known.pc == pc and known.entry == record.entry for known in self.records
        ):
            self.records.append(record)

    # What it hears

    def before_op(self, call: OpCall) -> ServiceResult:
        """Answers nothing. What ``memset`` and ``memcpy`` are going to access is told as accesses of their caller."""
        if self._selection.watches(Group.MEMORY):
            if call.name == "memcpy":
                self._tell_of_access(call, False, call.args[1], call.args[2])
            if call.name in ("memcpy", "memset"):
                self._tell_of_access(call, True, call.args[0], call.args[2])
        return None

    def _tell_of_access(self, call: OpCall, is_write: bool, va: int, size: int) -> None:
        end = va + size
        while va < end:
            piece = min(end, (va | PAGE_SIZE - 1) + 1) - va
            pa = self._system.hyp.to_pa(va)
            if pa is None or pa not in self._system.machine.ram:
                # The op faults here.
                return
            for checker in self._checkers:
                checker.access(call.caller, is_write, pa, piece)
            va += piece

    def after_op(self, call: OpCall, result: ServiceResult) -> None:
        """Tell the checkers."""
        value = result[0] if isinstance(result, tuple) else result or 0
        for checker in self._checkers:
            checker.op(call, value)

    def _entered(self, entry: Entry) -> None:
        if entry.kind == "core" and entry.name.endswith("prot_finalize"):
            for checker in self._checkers:
                checker.deprivileged()
        for checker in self._checkers:
            checker.entered(entry)

    def _left(self, entry: Entry, registers: tuple[int, ...]) -> None:
        for checker in self._checkers:
            checker.left(entry, registers)

    def _watch_memory(self) -> None:
        engine, ram = self._system.machine.engine, self._system.machine.ram
        engine.hook_blocks(self._block)
        engine.hook_memory(ram.base, ram.base + ram.size - 1, self._access)
        engine.keep_pc_exact(layout.FIRST_MODULE_VA, layout.FIRST_MODULE_VA + _MODULES_SIZE)

    def _block(self, pc: int, size: int) -> None:
        if not _EL2_FIRST <= pc <= _EL2_LAST or self._system.machine.core.el != 2:
            self._in_module = None
            return
        module = self._system.symbols.module_at_el2(pc)
        self._in_module = None if module is None else (pc, size)
        self._executed += size // 4
        # The hypervisor's own code is not that of a device, which needs fewer instructions (for memset() of a MiB, say).
        if module is not None:
            for checker in self._checkers:
                checker.block(pc, size // 4)

    def _access(self, is_write: bool, pa: int, size: int) -> None:
        if self._in_module is None:
            return
        pc = self._system.machine.engine.read("pc")
        for checker in self._checkers:
            checker.access(pc, is_write, pa, size)


def watch(system: System, selection: Selection | None = None) -> Monitor:
    """Watch a system from now on. It costs little as long as no contract about memory is among them."""
    return Monitor(system, selection or Selection.parse(""))
