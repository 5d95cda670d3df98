"""Interrupts of the host: numbers, handlers, and firing one from Python.

>>> system.irq.fire(16)          # as the device would raise it
1

A Linux interrupt number is given out when a node's interrupt is first looked up, from 16 on, in that order. Handlers run in the
guest, at EL1, and after a primary handler that asks for it the threaded one. Source: ``kernel/irq/manage.c``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.errors import UsageError
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

IRQ_NONE, IRQ_HANDLED, IRQ_WAKE_THREAD = 0, 1, 2
IRQF_SHARED, IRQF_ONESHOT = 0x80, 0x2000
_FIRST = 16
EINVAL, EBUSY = 22, 16


class Action(NamedTuple):
    """One handler: primary and threaded function (0: none), cookie, flags, name."""

    handler: int
    thread: int
    cookie: int
    flags: int
    name: str


class Line(NamedTuple):
    """One interrupt: its number at the controller, trigger bits, and how often it is disabled."""

    hwirq: int
    trigger: int
    disabled: int = 0
    pending: bool = False


@kernel_part
class Interrupts(State):
    """All interrupts of a kernel (``system.irq``).

    Attributes:
        lines: by Linux number.
        actions: handlers by Linux number.
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.irq")
        self._kernel = kernel
        self.next = _FIRST
        self.lines: StateDict[int, Line] = StateDict(journal, "kernel.irq.lines")
        self.actions: StateDict[int, tuple[Action, ...]] = StateDict(journal, "kernel.irq.actions")

    def map(self, hwirq: int, trigger: int = 0) -> int:
        """The Linux number of an interrupt of the controller; a new one where it has none yet."""
        for number, line in self.lines.items():
            if line.hwirq == hwirq:
                return number
        number = self.next
        self.next = number + 1
        self.lines[number] = Line(hwirq, trigger)
        return number

    def number(self, hwirq: int) -> int:
        """The Linux number of controller interrupt ``hwirq`` (a GIC SPI n is n + 32).

        Raises:
            UsageError: no driver has looked it up.
        """
        for number, line in self.lines.items():
            if line.hwirq == hwirq:
                return number
        raise UsageError(f"no driver uses interrupt {hwirq} of the controller")

    def request(self, number: int, action: Action) -> int:
        """Install a handler. Result: 0 or a negative errno."""
        if number not in self.lines or not (action.handler or action.thread):
            return -EINVAL
        if action.flags & IRQF_SHARED and not action.cookie:
            return -EINVAL
        if not action.handler and not action.flags & IRQF_ONESHOT:
            self._kernel.log.write(
                f"genirq: Threaded irq requested with handler=NULL and !ONESHOT for {action.name} (irq {number})", 3
            )
            return -EINVAL
        present = self.actions.get(number, ())
        if present and not all(one.flags & IRQF_SHARED for one in (*present, action)):
            self._kernel.log.write(
                f"genirq: Flags mismatch irq {number}. {action.flags:08x} ({action.name}) vs. "
                f"{present[0].flags:08x} ({present[0].name})",
                3,
            )
            return -EBUSY
        self.actions[number] = (*present, action)
        return 0

    def free(self, number: int, cookie: int) -> Action | None:
        """Remove the handler with that cookie; None (the kernel warns) where there is none."""
        present = self.actions.get(number, ())
        found = next((action for action in present if action.cookie == cookie), None)
        if found is not None:
            self.actions[number] = tuple(action for action in present if action is not found)
        return found

    def disable(self, number: int) -> None:
        """``disable_irq``: nests."""
        line = self.lines.get(number)
        if line is not None:
            self.lines[number] = line._replace(disabled=line.disabled + 1)

    def enable(self, number: int) -> bool:
        """``enable_irq``; an interrupt that fired meanwhile is delivered. False: it was not disabled."""
        line = self.lines.get(number)
        if line is None or not line.disabled:
            return False
        self.lines[number] = line._replace(disabled=line.disabled - 1)
        if line.disabled == 1 and line.pending:
            self.lines[number] = line._replace(disabled=0, pending=False)
            self._deliver(number)
        return True

    def fire(self, number: int) -> int:
        """Raise interrupt ``number`` (Linux) once: its handlers are called in the guest.

        Returns:
            The handlers' results, or-ed: 0 nobody's, 1 handled. 0 also while it is disabled (it stays pending).

        Raises:
            UsageError: no handler is installed.
        """
        line = self.lines.get(number)
        if line is None or not self.actions.get(number):
            known = ", ".join(str(one) for one, actions in sorted(self.actions.items()) if actions) or "none"
            raise UsageError(f"interrupt {number} has no handler (with handlers: {known})")
        if line.disabled:
            self.lines[number] = line._replace(pending=True)
            return IRQ_NONE
        return self._deliver(number)

    def _deliver(self, number: int) -> int:
        result = IRQ_NONE
        for action in self.actions.get(number, ()):
            one = self._kernel.call_s32(action.handler, number, action.cookie) if action.handler else IRQ_WAKE_THREAD
            if one == IRQ_WAKE_THREAD and action.thread:
                one = self._kernel.call_s32(action.thread, number, action.cookie)
            result |= one & IRQ_HANDLED
        if result == IRQ_NONE:
            self._kernel.log.write(f"irq {number}: nobody cared", 3)
        return result
