"""What ``pkvm-emu run`` prints, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pkvm_emu.cli.device_report import iommu_dict, iommu_lines, mmio_dict, mmio_lines, uart_lines, uart_text
from pkvm_emu.cli.report_boot import boot_facts, image_lines, ordinary_lines, outcome_facts, outcome_lines
from pkvm_emu.cli.report_deferred import deferred_facts, deferred_lines
from pkvm_emu.cli.report_files import file_facts, file_lines
from pkvm_emu.hyp.op_table import FIRMWARE_OPS
from pkvm_emu.hyp.registrations import registrations
from pkvm_emu.kernel.boot import ModuleOutcome

if TYPE_CHECKING:
    from pkvm_emu.elf.module_file import ModuleFile
    from pkvm_emu.errors import PkvmEmuError
    from pkvm_emu.kernel.modules import LoadedModule
    from pkvm_emu.machine.core import Service
    from pkvm_emu.results import HvcResult
    from pkvm_emu.system import System

_PROT = ((4, "R"), (2, "W"), (1, "X"))
_STYLE_OF_STATUS = {"loaded": "green", "failed": "bold red", "stopped": "bold red", "skipped": "red"}
_OP_PREFIX, _OP_SUFFIX = "ops->", "()"


class Line(NamedTuple):
    """One line of the report and its style where there is colour (the terminal library's words)."""

    text: str
    style: str | None = None


class Call(NamedTuple):
    """One ``--call``: name, arguments, result."""

    name: str
    arguments: Sequence[int]
    result: HvcResult


class Mapped(NamedTuple):
    """One EL2 section: name, EL1 and EL2 address, bytes, protection (``R-X``)."""

    section: str
    el1: int
    el2: int
    size: int
    prot: str


def _heading(text: str) -> Line:
    return Line(text, "bold")


def _section(title: str, lines: Iterable[str]) -> Iterator[Line]:
    """A heading and its lines; nothing without lines."""
    for index, text in enumerate(lines):
        if not index:
            yield Line("")
            yield _heading(title)
        yield Line(text)


class RunReport:
    """Collects what a run did; everything but the calls is read from the system when it is printed."""

    def __init__(self, system: System, files: Sequence[ModuleFile], lists_accesses: bool = False) -> None:
        self._system = system
        self._files = files
        self._lists_accesses = lists_accesses
        self.calls: list[Call] = []
        self._ops: dict[str, int] = {}
        self._next_listener = system.machine.core.on_service
        system.machine.core.on_service = self._note_service

    def _note_service(self, service: Service, registers: tuple[int, ...]) -> None:
        if self._next_listener is not None:
            self._next_listener(service, registers)
        if service.el == 2 and (service.name.startswith(_OP_PREFIX) or service.name in FIRMWARE_OPS):
            name = service.name.removeprefix(_OP_PREFIX).removesuffix(_OP_SUFFIX)
            self._ops[name] = self._ops.get(name, 0) + 1

    def add_call(self, name: str, arguments: Sequence[int], result: HvcResult) -> None:
        """Remember one call."""
        self.calls.append(Call(name, arguments, result))

    # Text

    def as_text(self) -> str:
        """The report for people, without colour."""
        return "".join(f"{line.text}\n" for line in self.lines())

    def lines(self) -> Iterator[Line]:
        """The report line by line."""
        system = self._system
        yield _heading(self._machine_line())
        yield from self._address_lines()
        yield Line("")
        yield _heading("Boot")
        for outcome in self._outcomes():
            for text in outcome_lines(outcome):
                yield Line(text, _STYLE_OF_STATUS.get(outcome.status))
        yield Line("  the host is " + ("deprivileged" if system.kernel.deprivileged else "not deprivileged"))
        if system.kernel.deprivileged and not system.is_secure:
            yield Line("  the system is insecure: protected VMs are refused", "red")
        for text in ordinary_lines(system):
            yield Line(text)
        yield from _section("Images", image_lines(system))
        for module in system.modules.values():
            yield from self._module_lines(module)
        yield from self._link_lines()
        yield from self._el2_lines()
        yield from _section("At EL1", deferred_lines(system))
        yield from _section("Files", file_lines(system))
        yield from _section("IOMMU", iommu_lines(system))
        yield from _section("Registers", mmio_lines(system, self._lists_accesses))
        yield from _section("UART", uart_lines(system))
        if system.contracts is not None:
            yield from _section("Contracts", (str(finding) for finding in system.contracts.findings))
        if self.calls:
            yield Line("")
            yield _heading("Calls")
            for name, arguments, result in self.calls:
                style = "green" if result.is_success else "bold red"
                yield Line(f"  {name}({', '.join(f'{a:#x}' for a in arguments)}) = {result}", style)
        yield Line("")
        yield _heading("dmesg")
        for text in system.dmesg.splitlines():
            yield Line(f"  {text}")

    def _module_lines(self, module: LoadedModule) -> Iterator[Line]:
        if not module.token:
            return
        yield Line("")
        yield _heading(f"{module.name} at EL2 (token {module.token:#x})")
        yield Line(f"  {'section':<16} {'EL1':<18} {'EL2':<18} {'size':>9}  prot")
        for row in self._mapped(module):
            yield Line(f"  {row.section:<16} {row.el1:#018x} {row.el2:#018x} {row.size:>#9x}  {row.prot}")
        for name, number in module.hypercalls.items():
            yield Line(f"  hypercall {number} ({0xC600_0000 | number:#x}): {name}")

    def _link_lines(self) -> Iterator[Line]:
        companions = self._system.kernel.symbols.companions
        if not companions:
            return
        yield Line("")
        yield _heading("Modules that are not there")
        for symbol, module in companions.items():
            yield Line(f"  {symbol}: served in place of {module}")

    def _el2_lines(self) -> Iterator[Line]:
        system = self._system
        found = registrations(system.hyp)
        if not found and not self._ops and not system.hyp.el3.unanswered and not system.hyp.el3.log:
            return
        yield Line("")
        yield _heading("At EL2")
        for kind, address in found:
            yield Line(f"  registered {kind}: {system.symbols.describe(address, 2)}")
        if self._ops:
            counts = ", ".join(f"{name} {count}" for name, count in sorted(self._ops.items()))
            yield Line(f"  ops called: {counts}")
        if system.hyp.el3.unanswered:
            yield Line("  SMCs that reached EL3 and were not answered there:")
            for smc in system.hyp.el3.unanswered.values():
                yield Line(f"    {smc}")
        for text in system.hyp.el3.log:
            yield Line(f"  EL3: {text}")
        if system.hyp.el3.unlogged:
            yield Line(f"  EL3: {system.hyp.el3.unlogged} lines more")

    # Facts

    def _address_lines(self) -> Iterator[Line]:
        running = self._system.kernel.memory.layout.va_bits
        for file in self._files:
            found = file.va_bits
            if found is not None:
                differs = "" if found.bits == running else f", but this one has {running}"
                text = (
                    f"{file.name} was compiled for a kernel with {found.bits}-bit addresses ({found.reason}){differs}"
                )
                yield Line(text, "red" if differs else None)

    def _machine_line(self) -> str:
        profile = self._system.machine.profile
        features = [name for name in ("pauth", "lpa2", "fgt", "bti", "lse") if getattr(profile, name)]
        mode = "hVHE" if profile.hvhe else "nVHE"
        ram = f"{profile.ram_size >> 20} MiB at {profile.ram_base:#x}"
        return f"{self._system.generation.name}, {mode}, {' '.join(features)}, {profile.cpus} CPU, {ram}"

    def _outcomes(self) -> Iterator[ModuleOutcome]:
        report = self._system.boot_report
        yield from report.outcomes
        known = {outcome.name.replace("-", "_") for outcome in [*report.outcomes, *report.ordinary]}
        for module in self._system.modules.values():
            if module.name not in known:
                yield ModuleOutcome(module.name, module.status)

    def _mapped(self, module: LoadedModule) -> list[Mapped]:
        rows = []
        for row in self._system.generation.sections:
            section = module.file.section(row.elf_name)
            if section is None or not section.size or section.index not in module.layout.placements:
                continue
            va = module.layout.placements[section.index]
            prot = "".join(letter if row.prot & bit else "-" for bit, letter in _PROT)
            rows.append(Mapped(section.name, va, va + module.hyp_delta, section.size, prot))
        return sorted(rows, key=lambda mapped: mapped.el1)

    # JSON

    def as_dict(self, failure: PkvmEmuError | None) -> dict[str, Any]:
        """The report for programs. Addresses are numbers; ``error`` is null or the one line."""
        system = self._system
        return {
            "generation": system.generation.name,
            "va_bits": system.kernel.memory.layout.va_bits,
            "boot": [outcome_facts(outcome) for outcome in self._outcomes()],
            **boot_facts(system),
            "deprivileged": system.kernel.deprivileged,
            "secure": system.is_secure,
            "modules": [
                {
                    "name": module.name,
                    "status": module.status,
                    "token": module.token,
                    "sections": [mapped._asdict() for mapped in self._mapped(module)] if module.token else [],
                    "hypercalls": dict(module.hypercalls),
                }
                for module in system.modules.values()
            ],
            "el1": deferred_facts(system),
            "files": file_facts(system),
            "served_in_place_of": dict(self._system.kernel.symbols.companions),
            "registrations": [
                {"kind": kind, "address": address, "function": system.symbols.describe(address, 2)}
                for kind, address in registrations(system.hyp)
            ],
            "ops": dict(sorted(self._ops.items())),
            "el3": system.hyp.el3.profile,
            "unanswered_smcs": [smc.as_dict() for smc in system.hyp.el3.unanswered.values()],
            "el3_log": list(system.hyp.el3.log),
            "iommu": iommu_dict(system),
            "mmio": mmio_dict(system),
            "uart": uart_text(system),
            "calls": [
                {"name": name, "arguments": list(arguments), **result._asdict(), "status": result.status}
                for name, arguments, result in self.calls
            ],
            "dmesg": [
                {"level": record.level, "time_ns": record.time_ns, "text": record.text} for record in system.kernel.log
            ],
            "contracts": [f.as_dict() for f in system.contracts.findings] if system.contracts is not None else [],
            "error": None if failure is None else str(failure),
        }
