"""Reboot, halt and power-off as the kernel does them: notifiers, shutdown, restart and sys-off handlers, then PSCI.

``system.reboot()`` and the shell's ``reboot`` end here. Sources: kernel/reboot.c, drivers/base/syscore.c, drivers/firmware/psci.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.arch.psci import PsciFunction, psci_id
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

#: ``SYS_RESTART``, ``SYS_HALT``, ``SYS_POWER_OFF``: what reboot notifiers get.
RESTART, HALT, POWER_OFF = 1, 2, 3
#: ``enum sys_off_mode``.
POWER_OFF_PREPARE, MODE_POWER_OFF, RESTART_PREPARE, MODE_RESTART = range(4)
_SYSTEM_STATE = {RESTART: 6, HALT: 4, POWER_OFF: 5}
_EMERGENCY = 0
_STOP_MASK, _NOTIFY_OK = 0x8000, 1
#: ``PM_SUSPEND_PREPARE``, ``PM_POST_SUSPEND``.
_SUSPEND_PREPARE, _POST_SUSPEND = 3, 4


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to end: its event, its message, the sys-off modes, the PSCI call (None: the CPU just stops)."""

    event: int
    message: str
    prepare: int | None
    handlers: int | None
    firmware: PsciFunction | None


_WAYS = {
    "restart": _Way(RESTART, "reboot: Restarting system", RESTART_PREPARE, MODE_RESTART, PsciFunction.SYSTEM_RESET),
    "poweroff": _Way(POWER_OFF, "reboot: Power down", POWER_OFF_PREPARE, MODE_POWER_OFF, PsciFunction.SYSTEM_OFF),
    "halt": _Way(HALT, "reboot: System halted", None, None, None),
}
#: What ``reboot(2)`` and people call them.
COMMANDS = {"reboot": "restart", "restart": "restart", "poweroff": "poweroff", "halt": "halt"}


class SysOff(NamedTuple):
    """A handler of ``register_sys_off_handler``: its mode, priority, callback, and that one's data."""

    mode: int
    priority: int
    callback: int
    data: int


@kernel_part
class PowerEvents(State):
    """What modules registered for the end of the system, and the way there.

    Attributes:
        sys_off: handlers by the address that was given out for them.
        syscore: addresses of ``struct syscore_ops``, in order of registration.
        is_suspended: the system sleeps, and operations have to be resumed.

    Args:
        kernel: the kernel.
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.power_events")
        self._kernel = kernel
        self.sys_off: StateDict[int, SysOff] = StateDict(journal, "kernel.power_events.sys_off")
        self.syscore: StateList[int] = StateList(journal, "kernel.power_events.syscore")
        self.is_suspended = False

    def end(self, how: str = "restart", command: str = "") -> None:
        """Restart, power off or halt the system.

        Args:
            how: ``restart``, ``poweroff`` or ``halt``.
            command: the argument of ``reboot`` (``recovery``, ``bootloader``), which handlers get as text.

        Raises:
            PoweredOff: as it has to be; a handler of a module may have done it, or the PSCI call at the end.
        """
        from pkvm_emu.kernel.exports.notifiers import call_kernel_chain

        kernel, way = self._kernel, _WAYS[how]
        text = kernel.scratch_string(command) if command else 0
        call_kernel_chain(kernel, "reboot", way.event, text)
        self._set_system_state(_SYSTEM_STATE[way.event])
        if way.prepare is not None:
            self._call_sys_off(way.prepare, text)
        self.shut_down_devices()
        self.call_syscore("shutdown")
        kernel.log.write(way.message + (f" with command '{command}'" if command and way.event == RESTART else ""), 0)
        if way.event == RESTART:
            call_kernel_chain(kernel, "restart", _EMERGENCY, text)
        if way.handlers is not None:
            self._call_sys_off(way.handlers, text)
        if way.event == POWER_OFF:
            self._call_pm_power_off()
        if way.firmware is not None:
            kernel.smc(psci_id(way.firmware))
        raise kernel.machine.power.end(f"kernel_{how if how != 'poweroff' else 'power_off'}()", "off")

    def before_suspend(self) -> int:
        """PM notifiers, then syscore operations; 0, or the errno of the one that refused (what was called is undone)."""
        from pkvm_emu.kernel.exports.notifiers import call_kernel_chain

        answer = call_kernel_chain(self._kernel, "pm", _SUSPEND_PREPARE, 0)
        refused = _NOTIFY_OK - (answer & ~_STOP_MASK) if answer & _STOP_MASK else 0
        refused = refused or self.call_syscore("suspend")
        if refused:
            call_kernel_chain(self._kernel, "pm", _POST_SUSPEND, 0)
        self.is_suspended = not refused
        return refused

    def after_suspend(self) -> None:
        """The same backwards, when the system is awake again."""
        from pkvm_emu.kernel.exports.notifiers import call_kernel_chain

        self.is_suspended = False
        self.call_syscore("resume")
        call_kernel_chain(self._kernel, "pm", _POST_SUSPEND, 0)

    def shut_down_devices(self) -> None:
        """``device_shutdown()``: the ``shutdown`` of bound drivers, last probed first."""
        from pkvm_emu.kernel.devicetree.drivers import PlatformBus

        bus = self._kernel.part(PlatformBus)
        shutdown = getattr(bus, "shutdown", None)
        if shutdown is not None:
            shutdown()

    def call_syscore(self, what: str) -> int:
        """``syscore_suspend``, ``syscore_resume`` or ``syscore_shutdown``.

        Returns:
            0, or what a ``suspend`` returned that refused (those before it are resumed).
        """
        offset = {"suspend": 16, "resume": 24, "shutdown": 32}[what]
        order = list(self.syscore) if what == "resume" else list(reversed(self.syscore))
        for position, operations in enumerate(order):
            function = self._kernel.memory.read_u64(operations + offset)
            if not function:
                continue
            answer = self._kernel.call_s32(function)
            if what == "suspend" and answer:
                for earlier in reversed(order[:position]):
                    resume = self._kernel.memory.read_u64(earlier + 24)
                    if resume:
                        self._kernel.call(resume)
                return answer
        return 0

    def handlers(self, mode: int) -> list[SysOff]:
        """The sys-off handlers of a mode, highest priority first, then as registered."""
        return sorted((entry for entry in self.sys_off.values() if entry.mode == mode), key=lambda e: -e.priority)

    def _call_sys_off(self, mode: int, command: int) -> None:
        kernel = self._kernel
        for entry in self.handlers(mode):
            # struct sys_off_data {int mode; void *cb_data; const char *cmd; struct device *dev}
            data = kernel.scratch_page() + 2048
            words = (0, entry.data, command, 0)
            kernel.memory.write(data, b"".join(word.to_bytes(8, "little") for word in words))
            if kernel.call(entry.callback, data) & _STOP_MASK:
                return

    def _call_pm_power_off(self) -> None:
        place = self._kernel.symbols.addresses.get("pm_power_off")
        function = self._kernel.memory.read_u64(place) if place is not None else 0
        if function:
            self._kernel.call(function)

    def _set_system_state(self, value: int) -> None:
        place = self._kernel.symbols.addresses.get("system_state")
        if place is not None:
            self._kernel.memory.write(place, value.to_bytes(4, "little"))
