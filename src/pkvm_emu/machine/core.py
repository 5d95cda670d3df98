"""The run loop: exceptions to vectors, service stubs to Python, and the ways a run can end.

A *service* is Python behind a two-instruction stub in guest memory (``hvc #imm; ret`` with an immediate from 0x8000 up).
Only an HVC at a registered address and at the registered exception level is a service; every other HVC, whatever its
immediate, is the guest's own and goes to the vectors. A service that only computes is answered inside the interrupt
hook; one that has to run guest code leaves the hook and is performed by the run loop, which may recurse.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Any

from pkvm_emu.arch.loadstore import is_one_access
from pkvm_emu.machine.control import Control
from pkvm_emu.machine.engine import INTNO_HVC, INTNO_PABT, INTNO_SMC, INTNO_UDEF, BusError, Engine
from pkvm_emu.machine.exceptions import EC_PAC_TRAP, EC_SHIFT, ExceptionEntry, Taken
from pkvm_emu.machine.service import SERVICE_IMMEDIATE, CpuParked, Service, ServiceResult, Settled, Stuck
from pkvm_emu.machine.watchdog import Watchdog

__all__ = ["SERVICE_IMMEDIATE", "STUB_ARGS", "Core", "CpuParked", "Service", "ServiceResult", "Settled", "Stuck"]

STUB_ARGS = 8
_MASK64 = (1 << 64) - 1
_ABORT_CLASSES = frozenset((0x20, 0x21, 0x24, 0x25))
_TICKS_PER_EVENT = 64
#: MRS of CNTPCTSS_EL0 and CNTVCTSS_EL0, without the register number.
_ORDERED_COUNTER_READS = frozenset((0xD53BE0A0, 0xD53BE0C0))


class Core:
    """Runs one engine: the interrupt hook, the services and the run loop.

    Args:
        engine: the CPU.
        smc: the EL3 firmware model: called with x0..x17 for an SMC that reaches EL3, returns the new x0...
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.entry = ExceptionEntry(engine)
        self.services: dict[int, Service] = {}
        self.exit_stubs: dict[int, int] = {}
        #: Ticks of the deterministic counter; advanced by a fixed amount per exception, service and counter read.
        self.ticks = 0
        self.exceptions = 0
        #: Exceptions and service calls: what the watchdog takes for progress.
        self.events = 0
        self.code_epoch = 0
        self.depth = 0
        #: The runs and turns that are under way, outermost first; no number is given twice.
        self.live_runs: list[int] = []
        self._runs = 0
        #: The debugger, where one looks on.
        self.control: Control | None = None
        #: The CPUs that run in turns now: what one of them holds may become free.
        self.in_turns: Container[int] = ()
        self.on_exception: Callable[[Taken], None] | None = None
        self.on_service: Callable[[Service, tuple[int, ...]], None] | None = None
        #: Called when a service has been performed, with what its function returned; not for one that raised.
        self.on_result: Callable[[Service, ServiceResult], None] | None = None
        #: Called with the PC when :meth:`run` begins, and with None when it has ended, however it did.
        self.on_run: Callable[[int | None], None] | None = None
        self.on_smc: Callable[[], None] | None = None
        #: EL1 address of the code for which Python makes an SMC, where there is such.
        self.smc_caller: int | None = None
        #: Asked before a run begins: raises where nothing may run (the machine or the CPU is off).
        self.before_run: Callable[[], None] = lambda: None
        #: Called when a run from Python (not one inside another) has come to its end.
        self.after_run: Callable[[], None] = lambda: None
        #: Called when the CPU on the engine went off or to sleep: what it waits for, in words.
        self.on_parked: Callable[[], str] = lambda: "the CPU stopped"
        #: Turns an address into words for messages; the system replaces it by its symboliser.
        self.describe: Callable[[int, int], str] = lambda va, el: f"EL{el} {va:#x}"
        #: What is near a physical address that has no device, in words; the devices replace it.
        self.describe_hole: Callable[[int], str] = lambda address: "the board has no device with registers"
        #: How often the machine went back to a snapshot: what was worked out before may hold no more.
        self.restores = 0
        #: How many events one run from Python may take before it counts as endless.
        self.event_budget = 20_000_000
        self.repeat_limit = 1_000
        self.instruction_budget: int | None = None
        self._event_limit = 0
        self._abort_repeats = 0
        self._last_abort: tuple[int, int, int] | None = None
        self._counter_hooks: set[int] = set()
        self._pending: Service | None = None
        self._error: BaseException | None = None
        self._exit = False
        self._parked = False
        self._flush = False
        #: The pending service comes after an access to a device, whose instruction is done but for the PC.
        self._accessed = False
        #: x0..x30 before the access at which the run was abandoned.
        self._before_access: list[int] = []
        self._args = engine.batch(*[f"x{n}" for n in range(STUB_ARGS)], "pc", "pstate")
        self._results = tuple(engine.batch(*[f"x{i}" for i in range(n)]) for n in range(STUB_ARGS + 1))
        self._frame = engine.batch(*[f"x{n}" for n in range(31)], "sp", "nzcv", "pc")
        self.watchdog = Watchdog()
        engine.set_interrupt_handler(self._interrupt)
        engine.set_cache_handler(self._maintain_cache)

    # The hook

    def _interrupt(self, _handle: Any, intno: int, _user: Any) -> None:
        # Exceptions must not leave a foreign callback: they are parked and raised again by the run loop.
        try:
            engine = self.engine
            engine.save_exception()
            record = engine.exception
            syndrome = record[0]
            self.ticks += _TICKS_PER_EVENT
            self.events += 1
            if self.events > self._event_limit:
                raise self._endless()
            if intno == INTNO_HVC:
                if syndrome & SERVICE_IMMEDIATE:
                    values = self._args.read()
                    service = self.services.get(values[8])
                    if service is not None and values[9] >> 2 & 3 == service.el:
                        self._serve(service, values)
                        return
            elif intno == INTNO_SMC:
                if self.on_smc is not None:
                    self.on_smc()
                return
            elif intno == INTNO_UDEF:
                if syndrome == 0 and record[4] == 2:
                    # A trapped pointer-authentication instruction loses its syndrome in the engine.
                    syndrome = EC_PAC_TRAP << EC_SHIFT | 1 << 25
                elif syndrome >> EC_SHIFT == 0 and self._read_ordered_counter():
                    return
            elif intno == INTNO_PABT and self.control is not None and self.control.fetch_failed():
                return
            target = record[4]
            self.take_exception(2 if target > 2 else target or 1, intno, syndrome, record[2] | record[3] << 32)
        except BaseException as error:
            self._error = error
            self.engine.stop()

    def take_exception(self, target_el: int, intno: int, syndrome: int, fault_va: int, vector: int = 0) -> None:
        """Enter ``target_el``; counts the exception and notices a fault that is retried for ever."""
        taken = self.entry.take(target_el, intno, syndrome, fault_va, vector)
        self.exceptions += 1
        if syndrome >> EC_SHIFT in _ABORT_CLASSES:
            abort = (taken.pc, syndrome, fault_va)
            if abort != self._last_abort:
                self._last_abort = abort
                self._abort_repeats = 0
            else:
                self._abort_repeats += 1
                if self._abort_repeats >= self.repeat_limit:
                    where = self.describe(taken.pc, taken.source_el)
                    raise Stuck(
                        f"the same abort was taken {self.repeat_limit} times in a row at {where}: ESR_EL{target_el} "
                        f"{syndrome:#x}, FAR {fault_va:#x}; its handler returns without repairing it"
                    )
        if self.on_exception is not None:
            self.on_exception(taken)

    def _endless(self) -> Stuck:
        where = self.describe(self.engine.read("pc"), self.el)
        return Stuck(f"{self.event_budget} exceptions and calls without coming to an end, the last at {where}")

    def _read_ordered_counter(self) -> bool:
        """Answer an MRS of a self-synchronised counter (FEAT_ECV), which the engine's CPU does not have."""
        pc = self.engine.read("pc")
        word = self.fetch(pc)
        if word is None or word & ~0x1F not in _ORDERED_COUNTER_READS:
            return False
        value = self.read_counter()
        if word & 0x1F != 31:
            self.engine.write(f"x{word & 0x1F}", value)
        self.engine.write("pc", pc + 4)
        return True

    def _serve(self, service: Service, values: Any) -> None:
        if self.on_service is not None:
            self.on_service(service, tuple(values[: service.nargs]))
        if service.in_hook:
            result = service.function(*values[: service.nargs])
            if result is not None:
                self._write_result(result)
            if self.on_result is not None and self._pending is None:
                self.on_result(service, result)
        else:
            self._pending = service
            self.engine.stop()

    def park(self) -> None:
        """Called while an SMC is answered: the CPU executes nothing after it."""
        self._parked = True
        self.engine.stop()

    def leave_hook(self, service: Service) -> None:
        """Called while a service is answered in the hook: perform ``service`` from the run loop in its stead."""
        self._pending = service
        self.engine.stop()

    def leave_after_access(self, service: Service) -> bool:
        """Called while a device is accessed: perform ``service`` between that instruction and the next.

        Returns:
            False where that cannot be: the instruction goes on after the access, or is not known.
        """
        # Stopped in an access, the engine has done all of it but for the PC.
        pc = self.engine.read("pc")
        word = self.fetch(pc) if self.engine.is_pc_exact(pc) and self._pending is None else None
        if word is None or not is_one_access(word):
            return False
        self._accessed = True
        self.leave_hook(service)
        return True

    def abandon(self, error: BaseException) -> None:
        """Called while a device is accessed: the run ends before that instruction, with ``error``."""
        if self._error is None:
            self._error = error
            # A load writes its register yet.
            self._before_access = list(self._frame.read()[:31])
        self.engine.stop()

    def _write_result(self, result: int | tuple[int, ...]) -> None:
        if isinstance(result, tuple):
            batch = self._results[len(result)]
            for index, value in enumerate(result):
                batch.values[index] = value & _MASK64
        else:
            batch = self._results[1]
            batch.values[0] = result & _MASK64
        batch.write()

    def _maintain_cache(self, op1: int, crn: int, crm: int, value: int) -> None:
        # The engine does not see code that is written through another mapping of the same page.
        try:
            if crn == 8:
                self.engine.note_translation_change()
            elif crn == 7 and crm == 5 and op1 == 3:
                line = value & ~63
                self.code_epoch += 1
                self.engine.forget_code(line, line + 64)
            elif crn == 7 and crm in (1, 5) and op1 == 0:
                self.code_epoch += 1
                self._flush = True
                self.engine.stop()
        except BaseException as error:
            self._error = error
            self.engine.stop()

    # Services

    def add_service(self, stub_va: int, service: Service) -> None:
        """Let the ``hvc`` at ``stub_va`` call ``service``."""
        self.services[stub_va + 4] = service

    def add_exit(self, stub_va: int, el: int) -> None:
        """Make the ``hvc`` at ``stub_va`` the return address of calls made from Python at ``el``."""

        self.exit_stubs[el] = stub_va
        self.add_service(stub_va, Service(f"return to Python from EL{el}", el, 0, self.leave))

    def leave(self) -> None:
        """Called while a service is answered in the hook: the run from Python ends here."""
        self._exit = True
        self.engine.stop()

    # The counter

    def read_counter(self) -> int:
        """The generic counter; reading it takes time, so that a loop that waits for it ends."""
        self.ticks += _TICKS_PER_EVENT
        return self.ticks

    def hook_counter_reads(self, addresses: Iterable[int]) -> None:
        """Let the counter-reading MRS instructions at these VAs give :meth:`read_counter`, not the host's clock.

        They must not have been executed since the last ``engine.flush_code``.
        """
        for va in addresses:
            if va not in self._counter_hooks:
                self._counter_hooks.add(va)
                self.engine.hook_register_read(va, ("CNTPCT_EL0", "CNTVCT_EL0"), self.read_counter)

    # Running

    @property
    def el(self) -> int:
        """The current exception level."""
        return self.engine.read("pstate") >> 2 & 3

    def call(self, va: int, *args: int) -> tuple[int, ...]:
        """Call guest code at the current exception level and return its x0..x7.

        Args:
            va: entry address in the current regime.
            args: x0, x1, ...

        The caller's general registers, SP and flags are unchanged afterwards; system registers keep what the callee did.
        """
        engine = self.engine
        frame = self._frame
        saved = frame.read()[:]
        values = frame.values
        values[: len(args)] = [a & _MASK64 for a in args]
        values[30] = self.exit_stubs[self.el]
        frame.write()
        control = self.control
        if control is not None:
            control.enter_call(saved)
        try:
            self.run(va)
        finally:
            if control is not None:
                control.leave_call()
        results = tuple(self._args.read()[:STUB_ARGS])
        values[:] = saved
        frame.write()
        engine.write("pc", saved[33])
        return results

    def run(self, pc: int) -> None:
        """Run from ``pc`` until the guest returns to the exit stub.

        Raises:
            Stuck: the guest cannot go on.
            CpuParked: the CPU went off or to sleep.
            BusError: an access to physical memory that does not exist.
            BaseException: whatever a service raised.
        """
        engine = self.engine
        self.before_run()
        if not self.depth:
            self._event_limit = self.events + self.event_budget
        if self.on_run is not None:
            self.on_run(pc)
        self._enter()
        try:
            while True:
                try:
                    stuck = self._start(pc)
                    settled = self._settle()
                    if settled is Settled.RETURNED:
                        break
                    if settled is Settled.PARKED:
                        raise CpuParked(self.on_parked())
                    pc = engine.read("pc")
                    if settled is Settled.NOTHING:
                        raise Stuck(stuck or f"WFI at {self.describe(pc - 4, self.el)} with nothing to wake the CPU")
                except BaseException as error:
                    if self.control is None or not self.control.failed(error):
                        raise
                    # The debugger went back to a point of this run.
                    pc = engine.read("pc")
        finally:
            self._leave()
            if self.on_run is not None:
                self.on_run(None)
        if not self.depth:
            self.after_run()

    def advance(self, pc: int, count: int) -> Settled:
        """Run ``count`` instructions at most: one turn of a CPU that shares the engine with others.

        A service that runs guest code is performed whole within the turn. Errors as for :meth:`run`, but a CPU that goes off
        or to sleep is an answer.
        """
        if not self.depth:
            self._event_limit = self.events + self.event_budget
        self._enter()
        try:
            if self.control is None:
                self.engine.start(pc, count)
            else:
                self.control.advance(pc, count)
            return self._settle()
        except BusError as error:
            raise self._no_memory(error) from error
        finally:
            self._leave()

    def _enter(self) -> None:
        self.depth += 1
        self._runs += 1
        self.live_runs.append(self._runs)

    def _leave(self) -> None:
        self.depth -= 1
        self.live_runs.pop()

    def forget_event(self) -> None:
        """The machine was put into another state inside a run: what made the engine stop is not to be dealt with."""
        self._pending, self._error, self._exit, self._parked, self._flush = None, None, False, False, False
        self._accessed, self._before_access = False, []

    def _settle(self) -> Settled:
        """Deal with what made the engine stop."""
        if self._error is not None:
            error = self._error
            if self._before_access:
                frame = self._frame
                frame.read()
                for n, value in enumerate(self._before_access):
                    frame.values[n] = value
                frame.write()
            self.forget_event()
            raise error
        if self._parked:
            self._parked = False
            return Settled.PARKED
        if self._pending is not None:
            service, self._pending = self._pending, None
            if self._accessed:
                self._accessed = False
                self.engine.write("pc", self.engine.read("pc") + 4)
            result = service.function(*self._args.read()[: service.nargs])
            if result is not None:
                self._write_result(result)
            if self.on_result is not None:
                self.on_result(service, result)
            return Settled.GOES_ON
        if self._exit:
            self._exit = False
            return Settled.RETURNED
        if self._flush:
            self._flush = False
            self.engine.flush_code()
            return Settled.GOES_ON
        return Settled.NOTHING

    def _start(self, pc: int) -> str | None:
        """Run until the engine stops; the reason where it is that the guest makes no progress."""
        try:
            if self.control is not None:
                return self.control.start(pc)
            if self.instruction_budget is not None:
                return self.watchdog.counted(self, pc)
            return self.watchdog.guarded(self, pc)
        except BusError as error:
            raise self._no_memory(error) from error

    def _no_memory(self, error: BusError) -> BusError:
        where = self.describe(self.engine.read("pc"), self.el)
        unmapped = self.engine.find_unmapped()
        if unmapped is None:
            return BusError(f"{where} reaches a physical address without RAM or device ({error})")
        address, size, is_write = unmapped
        return BusError(
            f"{where} reaches a physical address without RAM or device: it {'writes' if is_write else 'reads'} {size} "
            f"byte{'s' if size > 1 else ''} at {address:#x}; {self.describe_hole(address)}"
        )

    def fetch(self, va: int) -> int | None:
        """The instruction word at ``va`` in the current regime, or None where nothing is mapped."""
        pa = self.engine.translate(va)
        return self.engine.ram.read_u32(pa) if pa is not None and pa in self.engine.ram else None

    def forget_progress(self) -> None:
        """Begin anew to look for aborts that are retried for ever (after a restore)."""
        self.restores += 1
        self._last_abort = None
        self._abort_repeats = 0

    @property
    def has_event(self) -> bool:
        """Something other than the watchdog made the engine stop."""
        return self.has_own_event or (self.control is not None and self.control.has_stop)

    @property
    def has_own_event(self) -> bool:
        """Something that the run loop deals with made the engine stop: not the watchdog, not the debugger."""
        return self._pending is not None or self._exit or self._parked or self._flush or self._error is not None
