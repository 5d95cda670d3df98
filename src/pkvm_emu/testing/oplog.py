"""The ops that were called, in the words of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.abi.errno import errno_name
from pkvm_emu.explain import arguments_of
from pkvm_emu.hyp.op_calls import OpCall
from pkvm_emu.machine.core import ServiceResult

if TYPE_CHECKING:
    from pkvm_emu.system import System

_MASK64 = (1 << 64) - 1


class LoggedOp(NamedTuple):
    """One call and what came of it; None: the op has no result, or it did not come back."""

    call: OpCall
    result: ServiceResult


class OpLog:
    """Keeps every op that is called while it is attached.

    >>> log = OpLog()
    >>> with system.hyp.ops.observed(log):
    ...     system.call("hyp_page_protect", 0x48000)
    >>> print(log.entries[0].call.name)
    pin_shared_mem
    """

    def __init__(self) -> None:
        self.entries: list[LoggedOp] = []

    def before_op(self, call: OpCall) -> ServiceResult:
        """Answers nothing."""
        return None

    def after_op(self, call: OpCall, result: ServiceResult) -> None:
        """Keep it."""
        self.entries.append(LoggedOp(call, result))

    def text(self, system: System) -> str:
        """One line an op: arguments, result, caller."""
        return "\n".join(describe_op(system, entry) for entry in self.entries)


def describe_op(system: System, entry: LoggedOp) -> str:
    """``host_share_hyp(pfn=0x48000 (page 0x48000000)) = -EPERM  at hyp_call+0x24/0x40 [driver] (hyp/el2.c:31)``."""
    call, result = entry
    arguments = ", ".join(str(argument) for argument in arguments_of(system, "op", call.name, call.args))
    answer = "" if result is None else f" = {describe_result(result)}"
    return f"{call.name}({arguments}){answer}  at {system.symbols.describe(call.caller, 2)}"


def describe_result(result: ServiceResult) -> str:
    """A result as an errno by name where it is one, else in hexadecimal."""
    value = result[0] if isinstance(result, tuple) else result or 0
    return errno_name(value) if -4096 < value < 0 else f"{value & _MASK64:#x}"
