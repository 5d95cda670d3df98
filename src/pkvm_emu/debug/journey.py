"""Stops along a hypercall: before the HVC at EL1, at the handler's first instruction at EL2, and after the return.

``monitor break hvc [ID]`` turns them on. They are breakpoints of our own: at every ``hvc`` of loaded code and after it, at
the instruction of the firmware that calls the module's handler, and at the one that asks Python for the hypervisor's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.arch.insn import is_hvc
from pkvm_emu.debug.breakpoints import Breakpoint, Outcome
from pkvm_emu.debug.stops import Stop, StopKind
from pkvm_emu.firmware import image as firmware
from pkvm_emu.machine.core import SERVICE_IMMEDIATE

if TYPE_CHECKING:
    from pkvm_emu.debug.control import RunControl
    from pkvm_emu.debug.memory import DebugMemory
    from pkvm_emu.system import System

_ARGUMENTS = 3
_HINT = 1 << 16


class HypercallStops:
    """The stops of one system; off until :meth:`enable`.

    Args:
        system: whose hypercalls.
        control: where the breakpoints go.
        memory: what is executed at EL1.
    """

    def __init__(self, system: System, control: RunControl, memory: DebugMemory) -> None:
        self._system = system
        self._control = control
        self._memory = memory
        self._ids: frozenset[int] | None = frozenset()
        self._points: list[Breakpoint] = []
        #: By CPU: the hypercall that it is in, its id, and the address after the HVC.
        self._inside: dict[int, tuple[int, int]] = {}
        control.on_libraries.append(self._place)

    @property
    def is_enabled(self) -> bool:
        """Hypercalls stop."""
        return self._ids is None or bool(self._ids)

    def enable(self, ids: frozenset[int] | None = None) -> None:
        """Stop at these SMCCC function ids, or at all (None); an empty set turns the stops off."""
        self._ids = ids
        self._inside.clear()
        self._place()

    def describe(self) -> str:
        """What stops now."""
        if not self.is_enabled:
            return "hypercalls do not stop"
        what = "every hypercall" if self._ids is None else ", ".join(self._name(number) for number in sorted(self._ids))
        return f"stops before, at the handler of and after {what}"

    def _place(self) -> None:
        """Put the breakpoints where hypercalls are made now."""
        for point in self._points:
            self._control.breakpoints.remove(point)
        self._points.clear()
        if not self.is_enabled:
            return
        for site in self.sites():
            self._add(1, site, self._before)
            self._add(1, site + 4, lambda after=site + 4: self._after(after))
        hyp = self._system.hyp
        self._add(2, hyp.entry("hcall_return") - 4, lambda: self._handler if self._current() is not None else False)
        self._add(2, hyp.entry("op_host_hcall"), self._own)

    def _add(self, regime: int, va: int, on_hit: object) -> None:
        point = Breakpoint(regime, va, on_hit, is_internal=True)  # type: ignore[arg-type]  # mypy: one of several shapes
        self._points.append(self._control.breakpoints.add(point))

    def sites(self) -> list[int]:
        """EL1 addresses of the HVCs in loaded modules and in the firmware that are no services of ours."""
        found = []
        image, base = firmware.load("el1"), self._system.kernel.entry("el1_vectors")
        pieces = [(base, image.code)]
        for module in self._system.kernel.loader.modules.values():
            hyp = {section.index for section in module.file.hyp_mapped_sections}
            for index, va in module.layout.placements.items():
                section = module.file.sections[index]
                if section.is_code and index not in hyp:
                    pieces.append((va, module.image.read(va, section.size)))
        for start, code in pieces:
            for at in range(0, len(code) - 3, 4):
                immediate = is_hvc(int.from_bytes(code[at : at + 4], "little"))
                if immediate is not None and immediate < SERVICE_IMMEDIATE:
                    found.append(start + at)
        return found

    # The stages

    def _before(self) -> Outcome:
        machine = self._system.machine
        number = machine.engine.read("x0")
        self._inside.pop(machine.current.index, None)
        if self._ids is not None and number not in self._ids and number & ~_HINT not in self._ids:
            return False
        self._inside[machine.current.index] = number, machine.engine.read("pc") + 4
        arguments = ", ".join(f"{machine.engine.read(f'x{n}'):#x}" for n in range(1, 1 + _ARGUMENTS))
        return self._stop(f"hvc {number:#x} {self._name(number)}({arguments}): before it, at EL1")

    def _handler(self) -> Stop | None:
        """The firmware is about to call a module's handler: go to its first instruction."""
        number = self._current()
        if number is None:
            return None
        self._control.step_over(self._system.machine.engine.read("pc"))
        return self._stop(f"hvc {number:#x} {self._name(number)}: at its handler, at EL2")

    def _own(self) -> Outcome:
        number = self._current()
        if number is None:
            return False
        return self._stop(f"hvc {number:#x} {self._name(number)}: the hypervisor's own, about to be answered, at EL2")

    def _after(self, after: int) -> Outcome:
        machine = self._system.machine
        inside = self._inside.get(machine.current.index)
        if inside is None or inside[1] != after:
            return False
        del self._inside[machine.current.index]
        answer = " ".join(f"x{n}={machine.engine.read(f'x{n}'):#x}" for n in range(1 + _ARGUMENTS))
        return self._stop(f"hvc {inside[0]:#x} {self._name(inside[0])}: back at EL1, {answer}")

    def _current(self) -> int | None:
        inside = self._inside.get(self._system.machine.current.index)
        return None if inside is None else inside[0]

    def _stop(self, text: str) -> Stop:
        return self._control.make_stop(StopKind.EVENT, text)

    def _name(self, number: int) -> str:
        return hypercall_name(self._system, number)


def hypercall_name(system: System, number: int) -> str:
    """The function behind an SMCCC function id: a module's handler or a hypercall of the hypervisor; the id where unknown."""
    short = number & 0xFFFF
    for module in system.modules.values():
        for name, registered in module.hypercalls.items():
            if registered == short:
                return name
    for name, known in system.generation.hypercalls.items():
        if known == short:
            return name
    return f"{number:#x}"
