"""Exceptions and the way back: hypercalls, SMCs, aborts and other traps, in the rows of both sides, and guests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.arch.esr import Esr, ExceptionClass
from pkvm_emu.arch.smccc import call_name
from pkvm_emu.firmware import image as firmware
from pkvm_emu.hyp import registry
from pkvm_emu.hyp.vms import FIRMWARE_OFFSET, Vms
from pkvm_emu.machine.calling import signature_of
from pkvm_emu.tracing.timeline.recorder import Open
from pkvm_emu.tracing.timeline.records import Arguments, Level
from pkvm_emu.tracing.timeline.services import signed_result

if TYPE_CHECKING:
    from pkvm_emu.machine.exceptions import Taken
    from pkvm_emu.tracing.timeline.recorder import Timeline

_ERET = 0xD69F03E0
_HCALL_BASE, _HINT = 0xC600_0000, 1 << 16
_REGISTERS = 8
_ABORTS = frozenset((ExceptionClass.IABT_LOW, ExceptionClass.DABT_LOW))
_WNR = 1 << 6
_NAMES: dict[int, str] = {
    ExceptionClass.IABT_LOW: "instruction abort",
    ExceptionClass.IABT_CUR: "instruction abort",
    ExceptionClass.SYS64: "system register access",
    ExceptionClass.WFX: "WFI or WFE",
    ExceptionClass.UNKNOWN: "undefined instruction",
    ExceptionClass.PAUTH: "pointer authentication trap",
    ExceptionClass.SVC64: "SVC",
}
_HOST_ROW, _GUEST_EXIT = "trap", "guest exit"


class TrapListener:
    """Records exceptions as slices that end with the ERET which returns from them."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        system = timeline.system
        self._system = system
        self._engine = system.machine.engine
        self._registers = self._engine.batch(*[f"x{n}" for n in range(_REGISTERS)])
        self._injected: set[int] = set()
        hyp, kernel = system.hyp, system.kernel
        for name, base, handler in (
            ("el1", kernel.entry("el1_vectors"), self._el1_returns),
            ("el2", hyp.entry("hyp_vectors"), self._el2_returns),
            ("guest", hyp.entry("hyp_vectors") + FIRMWARE_OFFSET, self._guest_enters),
        ):
            code = firmware.load(name).code
            for offset in range(0, len(code), 4):
                if int.from_bytes(code[offset : offset + 4], "little") == _ERET:
                    self._engine.hook_code(base + offset, base + offset, handler)

    # Into

    def taken(self, taken: Taken) -> None:
        """An exception was entered."""
        esr = Esr(taken.syndrome)
        if taken.target_el == 1:
            self._timeline.begin(
                Level.EL1, _class_name(esr), Open("exception"), _fault(esr, taken), pc=taken.pc, before_step=True
            )
        elif taken.source_el == 2:
            self._timeline.cut_short(taken.pc)
            self._timeline.instant(
                Level.EL2, _class_name(esr), "exception", _fault(esr, taken), pc=taken.pc, before_step=True
            )
        else:
            self._trap(esr, taken)

    def _trap(self, esr: Esr, taken: Taken) -> None:
        timeline, cpu = self._timeline, self._timeline.cpu
        is_guest = timeline.in_guest(cpu)
        kind = int(esr.ec)
        if kind in (ExceptionClass.HVC64, ExceptionClass.SMC64):
            values = tuple(self._registers.read()[:])
            category = "hvc" if kind == ExceptionClass.HVC64 else "smc"
            name, arguments = self._call(category, values, is_guest)
        else:
            category = "abort" if kind in _ABORTS else "trap"
            name, arguments = _class_name(esr), _fault(esr, taken)
            if kind in _ABORTS:
                ipa = self._engine.read_sysreg("HPFAR_EL2") >> 4 << 12 | taken.fault_va & 0xFFF
                arguments = (("ipa", ipa), *arguments)
        flow = timeline.next_flow()
        lower = Level.GUEST if is_guest else Level.EL1
        # An HVC and an SMC have been executed when they are taken; an abort will be again.
        pc = taken.pc - 4 if category == "hvc" else taken.pc
        timeline.begin(lower, name, Open(category, _HOST_ROW), arguments, pc=pc, flow=flow, before_step=True)
        timeline.begin(
            Level.EL2,
            name,
            Open(category, _GUEST_EXIT if is_guest else _HOST_ROW, partner=lower),
            arguments,
            pc=pc,
            flow=-flow,
        )
        timeline.set_in_guest(cpu, inside=False)

    def _call(self, category: str, values: tuple[int, ...], is_guest: bool) -> tuple[str, Arguments]:
        """Name and arguments of a hypercall or SMC.

        The arguments of the hypervisor's own have names; of others x1 to the last register that is not 0 are given.
        """
        function = values[0] & 0xFFFF_FFFF
        name = call_name(function)
        names: tuple[str, ...] = ()
        if category == "hvc" and not is_guest:
            number = (values[0] & ~_HINT) - _HCALL_BASE
            known = self._system.hyp.traps.name_of(number)
            if known is not None:
                name, names = known, self._parameters(known)
            else:
                name = self._of_modules(number) or name
        given = list(values[1:])
        if names:
            given = given[: len(names)]
        else:
            while given and not given[-1]:
                given.pop()
        labels = [names[i] if names else f"x{i + 1}" for i in range(len(given))]
        return name, (("id", function), *zip(labels, given, strict=True))

    @staticmethod
    def _parameters(hypercall: str) -> tuple[str, ...]:
        served = registry.HYPERCALLS.get(hypercall)
        if served is None:
            return ()
        return tuple(name.lstrip("_") for name in signature_of(served.function).names)[: _REGISTERS - 1]

    def _of_modules(self, number: int) -> str | None:
        for module in self._system.modules.values():
            for name, registered in module.hypercalls.items():
                if registered == number:
                    return name
        return None

    # Back

    def _el2_returns(self, _pc: int) -> None:
        """The ERET to the host."""
        timeline = self._timeline
        row = timeline.row(Level.EL2)
        depth = next((i for i in range(len(row) - 1, -1, -1) if row[i].key == _HOST_ROW), None)
        if depth is None:
            return
        opened = row[depth]
        results: Arguments = ()
        if opened.category in ("hvc", "smc"):
            values = self._registers.read()
            results = tuple((f"x{n}", signed_result(values[n])) for n in range(4))
        timeline.end_down_to(Level.EL2, depth, results)
        # The run of a vCPU is over with the exit that the host deals with.
        timeline.end_down_to(Level.GUEST, 0)
        below = timeline.row(Level.EL1)
        if below and below[-1].key == _HOST_ROW:
            timeline.end(Level.EL1, results)
        if timeline.cpu in self._injected:
            self._injected.discard(timeline.cpu)
            esr = Esr(self._engine.read("esr_el1"))
            far, pc = self._engine.read("far_el1"), self._engine.read("elr_el1")
            arguments: Arguments = (("far", far), ("esr", int(esr)), ("syndrome", esr.detail().describe()))
            timeline.begin(Level.EL1, f"{_class_name(esr)} (injected)", Open("exception"), arguments, pc=pc)

    def injects(self) -> None:
        """The hypervisor gives the host its abort."""
        self._injected.add(self._timeline.cpu)

    def _el1_returns(self, _pc: int) -> None:
        row = self._timeline.row(Level.EL1)
        depth = next((i for i in range(len(row) - 1, -1, -1) if row[i].category == "exception"), None)
        if depth is not None:
            self._timeline.end_down_to(Level.EL1, depth)

    def _guest_enters(self, _pc: int) -> None:
        """The ERET to a guest: a first entry, or back from one of its exits."""
        timeline = self._timeline
        row = timeline.row(Level.EL2)
        depth = next((i for i in range(len(row) - 1, -1, -1) if row[i].key == _GUEST_EXIT), None)
        if depth is not None:
            timeline.end_down_to(Level.EL2, depth)
        below = timeline.row(Level.GUEST)
        while below and below[-1].key == _HOST_ROW:
            timeline.end(Level.GUEST)
        machine = self._system.hyp.part(Vms).current
        if not below:
            name = "guest" if machine is None else f"VM {machine.handle:#x}"
            timeline.begin(Level.GUEST, name, Open("guest"))
        timeline.set_in_guest(timeline.cpu, inside=True)

    # EL3

    def smc_begins(self) -> int:
        """An SMC reaches EL3; the depth of its row, for :meth:`smc_ends`."""
        values = tuple(self._registers.read()[:])
        timeline = self._timeline
        flow = timeline.next_flow()
        depth = len(timeline.row(Level.EL3))
        name = call_name(values[0] & 0xFFFF_FFFF)
        source = Level.EL2 if self._system.machine.core.el == 2 else Level.EL1
        timeline.begin(source, name, Open("smc", "smc to EL3"), pc=self._engine.read("pc"), flow=flow, before_step=True)
        _, arguments = self._call("smc", values, False)
        timeline.begin(Level.EL3, name, Open("smc"), arguments, flow=-flow, before_step=True)
        return depth

    def smc_ends(self, depth: int) -> None:
        """It was answered."""
        timeline = self._timeline
        values = self._registers.read()
        results = tuple((f"x{n}", signed_result(values[n])) for n in range(4))
        timeline.end_down_to(Level.EL3, depth, results)
        for level in (Level.EL2, Level.EL1):
            row = timeline.row(level)
            if row and row[-1].key == "smc to EL3":
                timeline.end(level, results)
                return


def _class_name(esr: Esr) -> str:
    kind = int(esr.ec)
    if kind in (ExceptionClass.DABT_LOW, ExceptionClass.DABT_CUR):
        return "data abort (write)" if int(esr) & _WNR else "data abort (read)"
    if kind == ExceptionClass.BRK64:
        return f"BRK #{int(esr) & 0xFFFF:#x}"
    if kind in _NAMES:
        return _NAMES[kind]
    try:
        return ExceptionClass(kind).name
    except ValueError:
        return f"exception class {kind:#x}"


def _fault(esr: Esr, taken: Taken) -> Arguments:
    return (("far", taken.fault_va), ("esr", taken.syndrome), ("syndrome", esr.detail().describe()))
