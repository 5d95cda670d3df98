"""What ``pkvm-emu run`` prints, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pkvm_emu.hyp.registrations import registrations

if TYPE_CHECKING:
    from pkvm_emu.elf.module_file import ModuleFile
    from pkvm_emu.errors import PkvmEmuError
    from pkvm_emu.kernel.modules import LoadedModule
    from pkvm_emu.results import HvcResult
    from pkvm_emu.system import System

_PROT = ((4, "R"), (2, "W"), (1, "X"))
_BOLD, _RED, _GREEN, _PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[0m"
_COLOUR_OF = {"loaded": _GREEN, "failed": _RED, "stopped": _RED, "skipped": _RED}


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


class RunReport:
    """Collects what a run did; everything but the calls is read from the system when it is printed."""

    def __init__(self, system: System, files: Sequence[ModuleFile]) -> None:
        self._system = system
        self._files = files
        self.calls: list[Call] = []

    def add_call(self, name: str, arguments: Sequence[int], result: HvcResult) -> None:
        """Remember one call."""
        self.calls.append(Call(name, arguments, result))

    # Text

    def as_text(self, colour: bool = False) -> str:
        """The report for people; ``colour`` adds ANSI colours and nothing else."""
        return "\n".join(self._lines(colour)) + "\n"

    def _lines(self, colour: bool) -> Iterator[str]:
        system = self._system

        def heading(text: str) -> str:
            return f"{_BOLD}{text}{_PLAIN}" if colour else text

        yield heading(self._machine_line())
        yield ""
        yield heading("Boot")
        for name, status, reason in self._outcomes():
            word = f"{_COLOUR_OF.get(status, '')}{status}{_PLAIN}" if colour else status
            yield f"  {word:<8} {name}" + (f": {reason}" if reason else "")
        yield "  the host is " + ("deprivileged" if system.kernel.deprivileged else "not deprivileged")
        if system.kernel.deprivileged and not system.is_secure:
            yield "  the system is insecure: protected VMs are refused"
        for module in system.modules.values():
            yield from self._module_lines(module, heading)
        found = registrations(system.hyp)
        if found:
            yield ""
            yield heading("Registered at EL2")
            for kind, address in found:
                yield f"  {kind}: {system.symbols.describe(address, 2)}"
        if system.hyp.el3.unanswered:
            ids = ", ".join(f"{function:#010x}" for function in system.hyp.el3.unanswered)
            yield f"  SMCs that reached EL3 and were not answered there: {ids}"
        if self.calls:
            yield ""
            yield heading("Calls")
            for name, arguments, result in self.calls:
                yield f"  {name}({', '.join(f'{a:#x}' for a in arguments)}) = {result}"
        yield ""
        yield heading("dmesg")
        for line in system.dmesg.splitlines():
            yield f"  {line}"

    def _module_lines(self, module: LoadedModule, heading: Any) -> Iterator[str]:
        if not module.token:
            return
        yield ""
        yield heading(f"{module.name} at EL2 (token {module.token:#x})")
        yield f"  {'section':<16} {'EL1':<18} {'EL2':<18} {'size':>9}  prot"
        for row in self._mapped(module):
            yield f"  {row.section:<16} {row.el1:#018x} {row.el2:#018x} {row.size:>#9x}  {row.prot}"
        for name, number in module.hypercalls.items():
            yield f"  hypercall {number} ({0xC600_0000 | number:#x}): {name}"

    # Facts

    def _machine_line(self) -> str:
        profile = self._system.machine.profile
        features = [name for name in ("pauth", "lpa2", "fgt", "bti", "lse") if getattr(profile, name)]
        mode = "hVHE" if profile.hvhe else "nVHE"
        ram = f"{profile.ram_size >> 20} MiB at {profile.ram_base:#x}"
        return f"{self._system.generation.name}, {mode}, {' '.join(features)}, {profile.cpus} CPU, {ram}"

    def _outcomes(self) -> Iterator[tuple[str, str, str]]:
        known = set()
        for outcome in self._system.boot_report.outcomes:
            known.add(outcome.name)
            yield outcome.name, outcome.status, outcome.reason
        for module in self._system.modules.values():
            if module.name not in known:
                yield module.name, "stopped" if module.status == "stopped" else module.status, ""

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
            "boot": [{"module": n, "status": s, "reason": r} for n, s, r in self._outcomes()],
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
            "registrations": [
                {"kind": kind, "address": address, "function": system.symbols.describe(address, 2)}
                for kind, address in registrations(system.hyp)
            ],
            "unanswered_smcs": list(system.hyp.el3.unanswered),
            "calls": [
                {"name": name, "arguments": list(arguments), **result._asdict(), "status": result.status}
                for name, arguments, result in self.calls
            ],
            "dmesg": [
                {"level": record.level, "time_ns": record.time_ns, "text": record.text} for record in system.kernel.log
            ],
            "error": None if failure is None else str(failure),
        }
