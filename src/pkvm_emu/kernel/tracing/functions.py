"""Function tracing as the host sees it: which functions of EL2 there are, and which of them are traced.

A kernel built with CONFIG_PKVM_FTRACE has this (``PROTECTED_NVHE_FTRACE`` in 6.12.23); the emulated one does with
``hyp_ftrace_filter=`` on its command line. Source: arch/arm64/kvm/hyp_events.c.
"""

from __future__ import annotations

import re
from errno import E2BIG, EINVAL
from fnmatch import translate
from typing import TYPE_CHECKING

from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

PARAMETER = "hyp_ftrace_filter"
_PATTERN_MAX = 128


def matches(pattern: str, name: str) -> bool:
    """``glob_match``: ``*``, ``?``, ``[a-z]``, ``[!a-z]``; an empty pattern matches everything."""
    return not pattern or re.match(translate(pattern), name) is not None


@kernel_part
class TracedFunctions(State):
    """The functions that can be traced.

    Attributes:
        names: their names as kallsyms has them (``__kvm_nvhe_*``), by EL1 address.
        enabled: the EL1 addresses of those that are traced.
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.traced_functions")
        self._early = kernel.command_line.get(PARAMETER, "") or ""
        self.names: StateDict[int, str] = StateDict(journal)
        self.enabled: StateDict[int, bool] = StateDict(journal)

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
        return 0 if found else -EINVAL

    def show(self) -> str:
        """What reading ``set_ftrace_filter`` gives: the traced functions, a line each."""
        return "".join(f"{name}\n" for va, name in self.names.items() if va in self.enabled)
