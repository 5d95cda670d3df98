"""Several CPUs at once: turns of a few instructions, in an order that a seed decides.

One engine runs all CPUs, one after the other. A turn ends at an instruction boundary, so what another CPU sees of a half-done
update is what it could see on a device; its length is drawn from a generator seeded by the caller, so a run that shows a
race shows it every time.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from pkvm_emu.machine.core import STUB_ARGS, Settled, Stuck
from pkvm_emu.machine.machine import Machine

DEFAULT_TURN = 64
_WFI = 0xD503207F
_TURNS_WITHOUT_EVENT = 2_000_000


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
        self._random = random.Random(seed)
        self._longest_turn = longest_turn

    def run(self, calls: Mapping[int, tuple[int, Sequence[int]]]) -> dict[int, tuple[int, ...]]:
        """Call guest functions at the exception level that each CPU is in.

        Args:
            calls: by CPU number: address of the function, and x0, x1, ... for it.

        Returns:
            x0..x7 of each CPU when its function had returned.

        Raises:
            Stuck: every CPU that is left waits for an event, or none of them makes progress.
        """
        machine = self._machine
        before = machine.current.index
        pcs: dict[int, int] = {}
        results: dict[int, tuple[int, ...]] = {}
        for cpu, (va, arguments) in sorted(calls.items()):
            machine.switch_to(cpu)
            machine.engine.write("x30", machine.core.exit_stubs[machine.core.el])
            for index, value in enumerate(arguments):
                machine.engine.write(f"x{index}", value)
            pcs[cpu] = va
        try:
            self._take_turns(pcs, results)
        finally:
            machine.switch_to(before)
        return results

    def _take_turns(self, pcs: dict[int, int], results: dict[int, tuple[int, ...]]) -> None:
        machine, core = self._machine, self._machine.core
        waiting: set[int] = set()
        quiet = 0
        while pcs:
            for cpu in sorted(pcs):
                if cpu in waiting:
                    continue
                machine.switch_to(cpu)
                events = core.events
                settled = core.advance(pcs[cpu], self._random.randint(1, self._longest_turn))
                pcs[cpu] = machine.engine.read("pc")
                if settled is Settled.RETURNED:
                    results[cpu] = tuple(machine.engine.read(f"x{n}") for n in range(STUB_ARGS))
                    del pcs[cpu]
                elif core.fetch(pcs[cpu] - 4) == _WFI:
                    waiting.add(cpu)
                quiet = 0 if core.events != events else quiet + 1
            if waiting and waiting == set(pcs):
                where = ", ".join(f"CPU {cpu} at {core.describe(pcs[cpu] - 4, core.el)}" for cpu in sorted(waiting))
                raise Stuck(f"every CPU waits for an event that nothing sends ({where})")
            if quiet > _TURNS_WITHOUT_EVENT:
                where = ", ".join(f"CPU {cpu} at {core.describe(pc, core.el)}" for cpu, pc in sorted(pcs.items()))
                raise Stuck(f"no CPU makes progress ({where})")
