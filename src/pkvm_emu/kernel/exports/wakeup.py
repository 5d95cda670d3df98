"""Wakeup sources (``drivers/base/power/wakeup.c``): what keeps a phone awake. Nothing sleeps here, so they are counted."""

from __future__ import annotations

from errno import EEXIST, EINVAL

from pkvm_emu.kernel.exports.debugfs import text
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.registry import kernel_part, kernel_symbol
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.calling import U32, Bool, Ptr
from pkvm_emu.machine.state import State, StateDict

#: An opaque ``struct wakeup_source``; its name comes first.
_BYTES = 256


@kernel_part
class WakeupSources(State):
    """Registered sources.

    Attributes:
        names: by address of the ``struct wakeup_source``.
        active: those that keep the system awake now.
        capable: devices that can wake the system, and their source (0: not enabled).
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.wakeup")
        self._kernel = kernel
        self.names: StateDict[int, str] = StateDict(journal, "kernel.wakeup.names")
        self.active: StateDict[int, int] = StateDict(journal, "kernel.wakeup.active")
        self.capable: StateDict[int, int] = StateDict(journal, "kernel.wakeup.capable")

    def register(self, name: str) -> int:
        """A new source; its address, or 0."""
        slab, data = self._kernel.part(Slab), name.encode("latin-1") + b"\0"
        address = slab.kmalloc(_BYTES + len(data), line_facts(self._kernel.generation.kernel).gfp_zero)
        if address is None:
            return 0
        self._kernel.memory.write(address + _BYTES, data)
        self._kernel.memory.write_u64(address, address + _BYTES)
        self.names[address] = name
        return address

    def unregister(self, source: int) -> None:
        """Forget a source and free it."""
        if self.names.pop(source, None) is not None:
            self.active.pop(source, None)
            self._kernel.part(Slab).kfree(source, "wakeup_source_unregister")

    def stay_awake(self, source: int) -> None:
        """The source has something to do."""
        if source in self.names:
            self.active[source] = self.active.get(source, 0) + 1

    def relax(self, source: int) -> None:
        """It has nothing to do any more."""
        self.active.pop(source, None)

    def of_device(self, device: int) -> int:
        """The source of a device; 0 without."""
        return self.capable.get(device, 0)


@kernel_symbol("wakeup_source_register", runs_guest=True)
def wakeup_source_register(kernel: Kernel, device: Ptr, name: Ptr) -> int:
    """A new source; NULL without memory."""
    return kernel.part(WakeupSources).register(text(kernel, name) if name else "")


@kernel_symbol("wakeup_source_unregister", runs_guest=True)
def wakeup_source_unregister(kernel: Kernel, source: Ptr) -> None:
    """Remove it; NULL is ignored."""
    kernel.part(WakeupSources).unregister(source)


@kernel_symbol("__pm_stay_awake")
def stay_awake(kernel: Kernel, source: Ptr) -> None:
    """Keep the system awake."""
    kernel.part(WakeupSources).stay_awake(source)


@kernel_symbol("__pm_relax")
def relax(kernel: Kernel, source: Ptr) -> None:
    """Let it sleep again."""
    kernel.part(WakeupSources).relax(source)


@kernel_symbol("pm_wakeup_ws_event")
def wakeup_event(kernel: Kernel, source: Ptr, milliseconds: U32, hard: Bool) -> None:
    """Keep the system awake for a time: it ends at once, as nothing could sleep meanwhile."""
    if not milliseconds:
        kernel.part(WakeupSources).relax(source)


@kernel_symbol("pm_wakeup_dev_event")
def wakeup_device_event(kernel: Kernel, device: Ptr, milliseconds: U32, hard: Bool) -> None:
    """The same for a device."""
    part = kernel.part(WakeupSources)
    wakeup_event(kernel, part.of_device(device), milliseconds, hard)


@kernel_symbol("pm_stay_awake")
def device_stay_awake(kernel: Kernel, device: Ptr) -> None:
    """Keep the system awake for a device that may."""
    part = kernel.part(WakeupSources)
    part.stay_awake(part.of_device(device))


@kernel_symbol("pm_relax")
def device_relax(kernel: Kernel, device: Ptr) -> None:
    """Let it sleep again."""
    part = kernel.part(WakeupSources)
    part.relax(part.of_device(device))


@kernel_symbol("device_set_wakeup_capable")
def device_set_wakeup_capable(kernel: Kernel, device: Ptr, capable: Bool) -> None:
    """Say whether a device can wake the system."""
    part = kernel.part(WakeupSources)
    if not capable:
        part.capable.pop(device, None)
    elif device not in part.capable:
        part.capable[device] = 0


@kernel_symbol("device_wakeup_enable", runs_guest=True)
def device_wakeup_enable(kernel: Kernel, device: Ptr) -> int:
    """Let it; 0, -EINVAL (it cannot), -EEXIST (it may already)."""
    part = kernel.part(WakeupSources)
    if not device or device not in part.capable:
        return -EINVAL
    if part.capable[device]:
        return -EEXIST
    part.capable[device] = part.register("")
    return 0


@kernel_symbol("device_wakeup_disable", runs_guest=True)
def device_wakeup_disable(kernel: Kernel, device: Ptr) -> int:
    """Let it no more; 0."""
    part = kernel.part(WakeupSources)
    source = part.of_device(device)
    if source:
        part.capable[device] = 0
        part.unregister(source)
    return 0


@kernel_symbol("device_set_wakeup_enable", runs_guest=True)
def device_set_wakeup_enable(kernel: Kernel, device: Ptr, enable: Bool) -> int:
    """One of the two."""
    return device_wakeup_enable(kernel, device) if enable else device_wakeup_disable(kernel, device)


@kernel_symbol("device_init_wakeup", runs_guest=True)
def device_init_wakeup(kernel: Kernel, device: Ptr, enable: Bool) -> int:
    """Both at once; 0 or -EINVAL."""
    if not device:
        warn(kernel, "drivers/base/power/wakeup.c")
        return -EINVAL
    device_set_wakeup_capable(kernel, device, enable)
    return device_wakeup_enable(kernel, device) if enable else 0
