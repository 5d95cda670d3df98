"""SDEI of the firmware: events that a client registers handlers for, and their delivery. Source: Arm DEN 0054.

The events are delegated to EL1, so the client is the host kernel, and its calls reach EL3 through the hypervisor. (Firmware that
delegates to EL2 where there is one makes Linux refuse SDEI under pKVM: ``sdei_arch_get_entry_point()``.) Event 0 exists on
every CPU; others are made with :meth:`El3Sdei.define`.

>>> sdei.fire(0)
SdeiCompletion(event=0, resumed_at=None)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pkvm_emu.arch.sdei import (
    FEATURE_BIND_SLOTS,
    FEATURE_RELATIVE_MODE,
    ROUTE_PE,
    SIGNALED_EVENT,
    VERSION_1_0,
    Sdei,
    SdeiInfo,
    SdeiReturn,
    SdeiStatus,
)
from pkvm_emu.errors import ModuleError, UsageError
from pkvm_emu.machine.machine import Machine
from pkvm_emu.machine.state import State, StateDict

_AFFINITY = 0xFF_00FF_FFFF
_CONTEXT_REGISTERS = 18
_EL1 = 1


class SdeiEvent(NamedTuple):
    """An event that the platform has.

    Attributes:
        number: its number.
        shared: one state for all CPUs; False: private, a state for each CPU.
        critical: priority critical, else normal.
        signaled: software may signal it.
    """

    number: int
    shared: bool = False
    critical: bool = False
    signaled: bool = False


class SdeiHandler(NamedTuple):
    """What a client registered: entry point, its argument, routing; and the state of the event for it."""

    entry: int
    argument: int
    routing: int = 0
    affinity: int = 0
    enabled: bool = False
    running: bool = False


class SdeiCompletion(NamedTuple):
    """How a handler ended: ``resumed_at`` is the address of COMPLETE_AND_RESUME, or None for COMPLETE."""

    event: int
    resumed_at: int | None


Handled = int | tuple[int, ...]


class El3Sdei(State):
    """The dispatcher of one machine.

    Args:
        machine: whose CPUs the events interrupt.

    Attributes:
        events: what the platform has, by number.
        handlers: what is registered, by ``(event, CPU)``; the CPU of a shared event is -1.
        unmasked: CPUs that take events, a bit each; none after reset.
        signals: CPUs to which software signalled event 0 and that did not take it yet, a bit each.
        stacks: by CPU, the events whose handlers run there, innermost last.
        contexts: by CPU and event, x0 to x17 of what was interrupted.
        last: how the last handler ended.
    """

    def __init__(self, machine: Machine) -> None:
        journal = machine.journal
        super().__init__(journal, "el3.sdei")
        self._machine = machine
        self.events: StateDict[int, SdeiEvent] = StateDict(journal)
        self.handlers: StateDict[tuple[int, int], SdeiHandler] = StateDict(journal)
        self.stacks: StateDict[int, tuple[int, ...]] = StateDict(journal)
        self.contexts: StateDict[tuple[int, int], tuple[int, ...]] = StateDict(journal)
        self.unmasked = 0
        self.signals = 0
        self.last: SdeiCompletion | None = None
        self._context = machine.engine.batch(*[f"x{n}" for n in range(_CONTEXT_REGISTERS)], "pc", "pstate")
        self.define(SIGNALED_EVENT, signaled=True)
        self._functions: dict[Sdei, Callable[[tuple[int, ...]], Handled]] = {
            Sdei.VERSION: lambda x: VERSION_1_0,
            Sdei.EVENT_REGISTER: self._register,
            Sdei.EVENT_ENABLE: lambda x: self._enable(x[1], True),
            Sdei.EVENT_DISABLE: lambda x: self._enable(x[1], False),
            Sdei.EVENT_CONTEXT: self._read_context,
            Sdei.EVENT_COMPLETE: lambda x: self._complete(None),
            Sdei.EVENT_COMPLETE_AND_RESUME: lambda x: self._complete(x[1]),
            Sdei.EVENT_UNREGISTER: lambda x: self._unregister(x[1]),
            Sdei.EVENT_STATUS: lambda x: self._status(x[1]),
            Sdei.EVENT_GET_INFO: lambda x: self._info(x[1], x[2]),
            Sdei.EVENT_ROUTING_SET: self._route,
            Sdei.PE_MASK: lambda x: self._mask(True),
            Sdei.PE_UNMASK: lambda x: self._mask(False),
            Sdei.EVENT_SIGNAL: self._signal,
            Sdei.FEATURES: self._features,
            Sdei.PRIVATE_RESET: lambda x: self._reset(shared=False),
            Sdei.SHARED_RESET: lambda x: self._reset(shared=True),
        }

    # From Python

    def define(self, number: int, *, shared: bool = False, critical: bool = False, signaled: bool = False) -> None:
        """Make the platform have an event.

        Raises:
            UsageError: it has one of that number.
        """
        if number in self.events:
            raise UsageError(f"SDEI event {number} exists already")
        self.events[number] = SdeiEvent(number, shared, critical, signaled)

    def fire(self, number: int) -> SdeiCompletion:
        """Deliver an event to the CPU that is on the engine: the client's handler runs at EL1 until it completes the event.

        The handler gets the event in x0, the argument of its registration in x1, and in x2 and x3 the PC and PSTATE that it
        interrupts. What it interrupts goes on unchanged.

        Returns:
            How the handler completed it.

        Raises:
            UsageError: no such event, or it cannot be delivered now: not registered or enabled, its handler runs, the CPU is
                masked or not at EL1, or a handler of the same or a higher priority runs.
            ModuleError: the handler returned without completing the event.
        """
        key, handler = self._deliverable(number)
        core, here = self._machine.core, self._machine.current.index
        saved = tuple(self._context.read())
        self.handlers[key] = handler._replace(running=True)
        stack = self.stacks.get(here, ())
        self.stacks[here] = (*stack, number)
        self.contexts[here, number] = saved[:_CONTEXT_REGISTERS]
        core.call(handler.entry, number, handler.argument, saved[_CONTEXT_REGISTERS], saved[_CONTEXT_REGISTERS + 1])
        if number in self.stacks.get(here, ()):
            self.stacks[here] = stack
            self.handlers[key] = self.handlers[key]._replace(running=False)
            where = core.describe(handler.entry, _EL1)
            raise ModuleError(f"the handler of SDEI event {number}, {where}, returned without SDEI_EVENT_COMPLETE")
        if self.last is None:
            raise ModuleError(f"SDEI event {number} was reset while its handler ran")
        return self.last

    def deliver_signal(self) -> SdeiCompletion | None:
        """Deliver event 0 to the CPU that is on the engine if software signalled it there; errors as for :meth:`fire`.

        A CPU of the emulator is interrupted only where Python lets it.
        """
        bit = 1 << self._machine.current.index
        if not self.signals & bit:
            return None
        self._deliverable(SIGNALED_EVENT)
        self.signals &= ~bit
        return self.fire(SIGNALED_EVENT)

    def _deliverable(self, number: int) -> tuple[tuple[int, int], SdeiHandler]:
        event = self.events.get(number)
        if event is None:
            listed = ", ".join(map(str, self.events))
            raise UsageError(f"the platform has no SDEI event {number} (it has {listed}; define() makes more)")
        key, here = self._key(event), self._machine.current.index
        handler = self.handlers.get(key)
        running = [self.events[n] for n in self.stacks.get(here, ())]
        reason = None
        if handler is None or not handler.enabled:
            reason = "nobody registered and enabled it"
        elif handler.running:
            reason = "its handler runs already"
        elif not self.unmasked >> here & 1:
            reason = f"CPU {here} masks events (SDEI_PE_UNMASK was not called there)"
        elif any(other.critical or not event.critical for other in running):
            reason = f"the handler of event {running[-1].number} runs and has no lower priority"
        elif handler.routing == ROUTE_PE and handler.affinity != self._machine.current.mpidr & _AFFINITY:
            reason = f"it is routed to the CPU with MPIDR {handler.affinity:#x}"
        elif self._machine.core.el != _EL1:
            reason = f"the CPU is at EL{self._machine.core.el}, and events are delegated to EL1"
        if reason is not None or handler is None:
            raise UsageError(f"SDEI event {number} cannot be delivered: {reason}")
        return key, handler

    # Calls of the client

    def answer(self, function: int, x: tuple[int, ...]) -> Handled | None:
        """See :class:`~pkvm_emu.hyp.el3.El3Service`."""
        call = Sdei.of(function)
        if call is None:
            return None
        handler = self._functions.get(call)
        # Binding interrupts is optional, and FEATURES tells that there are no slots.
        return SdeiReturn.NOT_SUPPORTED if handler is None else handler(x)

    def _key(self, event: SdeiEvent) -> tuple[int, int]:
        return event.number, -1 if event.shared else self._machine.current.index

    def _find(self, number: int) -> tuple[tuple[int, int], SdeiHandler | None] | None:
        event = self.events.get(number)
        return None if event is None else (self._key(event), self.handlers.get(self._key(event)))

    def _register(self, x: tuple[int, ...]) -> int:
        number, entry, argument, flags, affinity = x[1:6]
        event, found = self.events.get(number), self._find(number)
        if event is None or found is None or flags > ROUTE_PE or (flags and not event.shared) or not entry:
            return SdeiReturn.INVALID_PARAMETERS
        if found[1] is not None:
            return SdeiReturn.DENIED
        if flags == ROUTE_PE and not self._exists(affinity):
            return SdeiReturn.INVALID_PARAMETERS
        self.handlers[found[0]] = SdeiHandler(entry, argument, flags, affinity if flags else 0)
        return SdeiReturn.SUCCESS

    def _exists(self, affinity: int) -> bool:
        return any(cpu.mpidr & _AFFINITY == affinity for cpu in self._machine.cpus)

    def _index(self, affinity: int) -> int:
        return next(cpu.index for cpu in self._machine.cpus if cpu.mpidr & _AFFINITY == affinity)

    def _enable(self, number: int, enabled: bool) -> int:
        found = self._find(number)
        if found is None:
            return SdeiReturn.INVALID_PARAMETERS
        key, handler = found
        if handler is None:
            return SdeiReturn.DENIED
        self.handlers[key] = handler._replace(enabled=enabled)
        return SdeiReturn.SUCCESS

    def _unregister(self, number: int) -> int:
        found = self._find(number)
        if found is None:
            return SdeiReturn.INVALID_PARAMETERS
        key, handler = found
        if handler is None:
            return SdeiReturn.DENIED
        if handler.running:
            # It goes when the handler completes.
            self.handlers[key] = handler._replace(enabled=False, entry=0)
            return SdeiReturn.PENDING
        del self.handlers[key]
        return SdeiReturn.SUCCESS

    def _status(self, number: int) -> int:
        found = self._find(number)
        if found is None:
            return SdeiReturn.INVALID_PARAMETERS
        handler = found[1]
        if handler is None:
            return 0
        status = SdeiStatus.REGISTERED if handler.entry else 0
        return status | (handler.enabled and SdeiStatus.ENABLED) | (handler.running and SdeiStatus.RUNNING)

    def _info(self, number: int, what: int) -> int:
        event, found = self.events.get(number), self._find(number)
        if event is None or found is None:
            return SdeiReturn.INVALID_PARAMETERS
        plain = {SdeiInfo.TYPE: event.shared, SdeiInfo.SIGNALED: event.signaled, SdeiInfo.PRIORITY: event.critical}
        if what in plain:
            return int(plain[SdeiInfo(what)])
        if what not in (SdeiInfo.ROUTING_MODE, SdeiInfo.ROUTING_AFFINITY) or not event.shared:
            return SdeiReturn.INVALID_PARAMETERS
        if found[1] is None:
            return SdeiReturn.DENIED
        if what == SdeiInfo.ROUTING_MODE:
            return found[1].routing
        return found[1].affinity if found[1].routing == ROUTE_PE else SdeiReturn.INVALID_PARAMETERS

    def _route(self, x: tuple[int, ...]) -> int:
        number, flags, affinity = x[1:4]
        event, found = self.events.get(number), self._find(number)
        if event is None or found is None or not event.shared or flags > ROUTE_PE:
            return SdeiReturn.INVALID_PARAMETERS
        if flags == ROUTE_PE and not self._exists(affinity):
            return SdeiReturn.INVALID_PARAMETERS
        if found[1] is None or found[1].enabled or found[1].running:
            return SdeiReturn.DENIED
        self.handlers[found[0]] = found[1]._replace(routing=flags, affinity=affinity if flags else 0)
        return SdeiReturn.SUCCESS

    def _mask(self, mask: bool) -> int:
        """PE_MASK returns 1 where the CPU took events so far; PE_UNMASK 0."""
        bit = 1 << self._machine.current.index
        before = bool(self.unmasked & bit)
        self.unmasked = self.unmasked & ~bit | (0 if mask else bit)
        return int(mask and before)

    def _signal(self, x: tuple[int, ...]) -> int:
        number, target = x[1], x[2]
        if number != SIGNALED_EVENT or not self._exists(target & _AFFINITY):
            return SdeiReturn.INVALID_PARAMETERS
        self.signals |= 1 << self._index(target & _AFFINITY)
        return SdeiReturn.SUCCESS

    def _features(self, x: tuple[int, ...]) -> int:
        return 0 if x[1] in (FEATURE_BIND_SLOTS, FEATURE_RELATIVE_MODE) else SdeiReturn.INVALID_PARAMETERS

    def _reset(self, shared: bool) -> int:
        here = -1 if shared else self._machine.current.index
        for key in [key for key in self.handlers if key[1] == here]:
            if self.handlers[key].running:
                return SdeiReturn.DENIED
            del self.handlers[key]
        return SdeiReturn.SUCCESS

    # Inside a handler

    def _read_context(self, x: tuple[int, ...]) -> int:
        here = self._machine.current.index
        stack = self.stacks.get(here, ())
        if not stack:
            return SdeiReturn.DENIED
        if x[1] >= _CONTEXT_REGISTERS:
            return SdeiReturn.INVALID_PARAMETERS
        return self.contexts[here, stack[-1]][x[1]]

    def _complete(self, resume: int | None) -> Handled:
        here = self._machine.current.index
        stack = self.stacks.get(here, ())
        if not stack:
            return SdeiReturn.DENIED
        number = stack[-1]
        self.stacks[here] = stack[:-1]
        key = self._key(self.events[number])
        handler = self.handlers[key]
        if handler.entry:
            self.handlers[key] = handler._replace(running=False)
        else:
            del self.handlers[key]
        self.last = SdeiCompletion(number, resume)
        self._leave(resume)
        return self.contexts.pop((here, number))

    def _leave(self, resume: int | None) -> None:
        """Go on behind the handler: with what it interrupted, or at the address that it named, which then returns there.

        The hypervisor is still inside its handling of the SMC, and returns to ELR_EL2 + 4.
        """
        engine, core = self._machine.engine, self._machine.core
        back = core.exit_stubs[_EL1]
        if resume is not None:
            engine.write("elr_el1", back)
            engine.write_sysreg("SPSR_EL1", engine.read_sysreg("SPSR_EL2") if core.el == 2 else engine.read("pstate"))
        target = back if resume is None else resume
        if core.el == 2:
            engine.write("elr_el2", target - 4)
        else:
            engine.write("pc", target)
