"""Watching the ops that modules call: each call with its arguments, caller and result, and the chance to answer in an op's stead.

It costs nothing until somebody watches: attaching an observer puts watched services behind the stubs, and detaching the
last one puts the plain ones back.

>>> class Print:
...     def before_op(self, call): print(call.name, call.args)
...     def after_op(self, call, result): print("=", result)
>>> with hyp.ops.observed(Print()):
...     system.call("hyp_page_protect", 0x48000)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pkvm_emu.machine.core import ServiceResult

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor


class OpCall(NamedTuple):
    """One call of an op.

    Attributes:
        name: the op.
        args: its argument registers, as many as its prototype has.
        caller: hyp VA of the call instruction.
        cpu: index of the CPU.
    """

    name: str
    args: tuple[int, ...]
    caller: int
    cpu: int


class OpObserver(Protocol):
    """Hears of every op. Firmware ops (``puts``, ``memset``, ...) have no result here: theirs is None."""

    def before_op(self, call: OpCall) -> ServiceResult:
        """Before the op; anything but None becomes its result, and the op is not performed."""

    def after_op(self, call: OpCall, result: ServiceResult) -> None:
        """After the op, or after another observer answered in its stead."""


class OpWatch:
    """The observers of one ops table, in the order in which they came."""

    def __init__(self, hyp: Hypervisor) -> None:
        self._hyp = hyp
        self.observers: list[OpObserver] = []

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, told to the observers; the first that answers has the word."""
        machine = self._hyp.machine

        def watched(*registers: int) -> ServiceResult:
            made = OpCall(name, registers, machine.engine.read("x30") - 4, machine.current.index)
            result: ServiceResult = None
            for observer in self.observers:
                answer = observer.before_op(made)
                if result is None:
                    result = answer
            if result is None:
                result = call(*registers)
            for observer in self.observers:
                observer.after_op(made, result)
            return result

        return watched
