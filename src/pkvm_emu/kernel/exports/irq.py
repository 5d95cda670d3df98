"""Interrupt handlers of the host (``kernel/irq/manage.c``)."""

from __future__ import annotations

from pkvm_emu.kernel.devicetree.devices import Devices
from pkvm_emu.kernel.devicetree.irq import Action, Interrupts
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import U32, U64, CStr, Ptr

_PLACE = "kernel/irq/manage.c"


@kernel_symbol("request_threaded_irq")
def request_threaded_irq(
    kernel: Kernel, number: U32, handler: Ptr, thread: Ptr, flags: U64, name: CStr, cookie: Ptr
) -> int:
    """Install a handler. 0; -EINVAL for an unknown interrupt or bad flags; -EBUSY where another does not share it."""
    return kernel.part(Interrupts).request(number, Action(handler, thread, cookie, flags, name or ""))


@kernel_symbol("free_irq")
def free_irq(kernel: Kernel, number: U32, cookie: Ptr) -> int:
    """Remove a handler; returns its name."""
    action = kernel.part(Interrupts).free(number, cookie)
    if action is None:
        warn(kernel, _PLACE, f"Trying to free already-free IRQ {number}")
        return 0
    return kernel.part(Devices).string(action.name)


@kernel_symbol("disable_irq", "disable_irq_nosync", "disable_hardirq")
def disable_irq(kernel: Kernel, number: U32) -> bool:
    """Keep an interrupt from being delivered; nests."""
    kernel.part(Interrupts).disable(number)
    return True


@kernel_symbol("enable_irq", runs_guest=True)
def enable_irq(kernel: Kernel, number: U32) -> None:
    """Let an interrupt through again; one that fired meanwhile is delivered now."""
    if not kernel.part(Interrupts).enable(number):
        warn(kernel, _PLACE, f"Unbalanced enable for IRQ {number}")


@kernel_symbol("synchronize_irq", "synchronize_hardirq")
def synchronize_irq(kernel: Kernel, number: U32) -> bool:
    """Wait for handlers that run: none does while other code of the host runs."""
    return True


@kernel_symbol("irq_set_irq_type")
def irq_set_irq_type(kernel: Kernel, number: U32, trigger: U32) -> int:
    """Change the trigger; -EINVAL for an unknown interrupt."""
    lines = kernel.part(Interrupts).lines
    line = lines.get(number)
    if line is None:
        return -22
    lines[number] = line._replace(trigger=trigger & 0xF)
    return 0


@kernel_symbol("irq_set_irq_wake")
def irq_set_irq_wake(kernel: Kernel, number: U32, is_on: U32) -> int:
    """Whether an interrupt wakes the system: accepted."""
    return 0 if number in kernel.part(Interrupts).lines else -22
