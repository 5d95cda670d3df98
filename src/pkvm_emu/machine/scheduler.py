"""Several CPUs at once: turns of a few instructions, in an order that a seed decides.

One engine runs all CPUs, one after the other. A turn ends at an instruction boundary, so what another CPU sees of a half-done
update is what it could see on a device; its length is drawn from a generator seeded by the caller, so a run that shows a
race shows it every time. What Python does for the guest (an op, an exported function) takes no turn of its own: it is one step, and
so is a service that runs guest code, with all of that code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pkvm_emu.machine.core import STUB_ARGS, Settled, Stuck
from pkvm_emu.machine.machine import Machine
from pkvm_emu.machine.power import PowerState
from pkvm_emu.machine.spinning import Spin, find_spin

DEFAULT_TURN = 64
_WFI = 0xD503207F
_TURNS_WITHOUT_EVENT = 2_000_000
#: Turns in which no CPU had an exception or called a service, after which it is looked whether all of them only spin.
_FIRST_LOOK = 500


class Scheduler:
    """Runs one call on each of several CPUs until all have returned.

    Args:
        machine: whose CPUs.
        seed: decides the lengths of the turns.
        longest_turn: instructions a turn has at most.
    """

    def __init__(self, machine: Machine, seed: int = 0, longest_turn: int = DEFAULT_TURN) -> None:
        if longest_turn < 1:
            raise ValueError("a turn has one instruction at least")
        self._machine = machine
        self._core = machine.core
        # Imported here: most runs have one CPU and start faster without it.
        from random import Random

        self._random = Random(seed)
        self._longest_turn = longest_turn
        self._pcs: dict[int, int] = {}
        self._waiting: set[int] = set()
        self._pc = machine.engine.batch("pc")
        self._after_wfi: dict[int, bool] = {}
        self._code_epoch = -1

    def run(self, calls: Mapping[int, tuple[int, Sequence[int]]]) -> dict[int, tuple[int, ...]]:
        """Call guest functions at the exception level that each CPU is in.

        A CPU that one of them switches on (PSCI CPU_ON) takes turns too, until it leaves to Python.

        Args:
            calls: by CPU number: address of the function, and x0, x1, ... for it.

        Returns:
            x0..x7 of each CPU when its function had returned; nothing (an empty tuple) for one that went off or to sleep.

        Raises:
            Stuck: every CPU that is left waits for an event or spins on a lock, or none of them makes progress.
            UsageError: a CPU that does not exist or is off.
        """
        machine = self._machine
        before = machine.current.index
        results: dict[int, tuple[int, ...]] = {}
        self._pcs.clear()
        self._waiting.clear()
        outer, self._core.in_turns = self._core.in_turns, self._pcs
        try:
            for cpu, (va, arguments) in sorted(calls.items()):
                machine.switch_to(cpu)
                machine.engine.write("x30", self._core.exit_stubs[self._core.el])
                for index, value in enumerate(arguments):
                    machine.engine.write(f"x{index}", value)
                self._pcs[cpu] = va
            self._take_turns(results)
        finally:
            self._core.in_turns = outer
            for index in (before, *machine.power.running):
                if machine.power.is_on(index):
                    machine.switch_to(index)
                    break
        return results

    def _take_turns(self, results: dict[int, tuple[int, ...]]) -> None:
        core, pcs, waiting = self._core, self._pcs, self._waiting
        quiet, next_look = 0, _FIRST_LOOK
        limit = core.events + core.event_budget
        while pcs:
            for cpu in sorted(pcs):
                if cpu in waiting:
                    continue
                events = core.events
                self._turn(cpu, self._random.randint(1, self._longest_turn), results)
                quiet = 0 if core.events != events else quiet + 1
            if waiting and waiting == set(pcs):
                raise Stuck(f"every CPU waits for an event that nothing sends ({self._places(-4)})")
            if core.events > limit:
                raise Stuck(f"{core.event_budget} exceptions and calls without coming to an end ({self._places()})")
            if not quiet:
                next_look = _FIRST_LOOK
            elif quiet > _TURNS_WITHOUT_EVENT:
                raise Stuck(f"no CPU makes progress ({self._places()})")
            elif quiet > next_look:
                next_look *= 4
                self._look_for_deadlock(results)

    def _turn(self, cpu: int, length: int, results: dict[int, tuple[int, ...]]) -> None:
        machine, core, pcs = self._machine, self._core, self._pcs
        machine.switch_to(cpu)
        settled = core.advance(pcs[cpu], length)
        self._count(length)
        pcs[cpu] = pc = self._pc.read()[0]
        if settled is Settled.RETURNED:
            results[cpu] = tuple(machine.engine.read(f"x{n}") for n in range(STUB_ARGS))
            del pcs[cpu]
        elif settled is Settled.PARKED:
            results[cpu] = ()
            del pcs[cpu]
        elif self._is_after_wfi(pc):
            self._waiting.add(cpu)
        if machine.power.entries:
            for started in machine.power.in_state(PowerState.PENDING):
                pcs[started] = machine.start_cpu(started)

    def _is_after_wfi(self, pc: int) -> bool:
        core = self._core
        if core.code_epoch != self._code_epoch:
            self._code_epoch = core.code_epoch
            self._after_wfi.clear()
        known = self._after_wfi.get(pc)
        if known is None:
            known = self._after_wfi[pc] = core.fetch(pc - 4) == _WFI
        return known

    def _count(self, length: int) -> None:
        """Keep to the budget of instructions; a turn that ends early counts whole."""
        core = self._core
        if core.instruction_budget is None:
            return
        core.watchdog.executed += length
        if core.watchdog.executed > core.instruction_budget:
            raise Stuck(f"the budget of {core.instruction_budget} instructions is spent ({self._places()})")

    def _look_for_deadlock(self, results: dict[int, tuple[int, ...]]) -> None:
        """Raise where every CPU that is left goes round in a loop that only another could end.

        On the way to its loop a CPU may free what another waits for. So all of them go round once more, from where they are: if
        each comes back to the same registers, nothing has changed for any of them.
        """
        if self._spins(results, is_inside=False) is None:
            return
        found = self._spins(results, is_inside=True)
        if found is None:
            return
        what = "; ".join(f"CPU {cpu} {spin}" for cpu, spin in found.items())
        idle = "".join(f"; CPU {cpu} waits for an event" for cpu in sorted(self._waiting))
        raise Stuck(f"{'deadlock' if len(found) > 1 else 'a CPU waits for ever'}: {what}{idle}")

    def _spins(self, results: dict[int, tuple[int, ...]], is_inside: bool) -> dict[int, Spin] | None:
        """The loop of each CPU, or None where one of them is in none."""
        core, found = self._core, {}
        for cpu in sorted(self._pcs.keys() - self._waiting):

            def step(cpu: int = cpu) -> bool:
                events = core.events
                self._turn(cpu, 1, results)
                return core.events == events and cpu not in self._waiting

            self._machine.switch_to(cpu)
            spin = find_spin(core, step, is_inside)
            if spin is None:
                return None
            found[cpu] = spin
        return found

    def _places(self, offset: int = 0) -> str:
        out = []
        for cpu, pc in sorted(self._pcs.items()):
            if self._machine.power.is_on(cpu):
                self._machine.switch_to(cpu)
            out.append(f"CPU {cpu} at {self._core.describe(pc + offset, self._core.el)}")
        return ", ".join(out)
