"""The sweep: the same scenario again and again, each time another call of an op fails; what crashes, and what is left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import errno_number
from pkvm_emu.abi.ops import ops_table
from pkvm_emu.errors import EmulatorError, PkvmEmuError
from pkvm_emu.hyp.page_state import Component
from pkvm_emu.testing.injection import DEFAULT_ERRNO, Injection, failing_ops, inject
from pkvm_emu.testing.oplog import OpLog

if TYPE_CHECKING:
    from pkvm_emu.system import System

#: Makes a system that has not booted yet; does the rest of the scenario on it: boot, calls.
Make = Callable[[], "System"]
Play = Callable[["System"], None]
CRASH, LEAK, SURVIVED = "crash", "leak", "survived"
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one failure.

    Attributes:
        injection: the failure.
        verdict: ``crash`` (the system ended), ``leak`` (something stays that stays in no good run), ``survived``.
        where: the call that failed, in words.
        details: the message of the crash, or what is left.
    """

    injection: Injection
    verdict: str
    where: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        rest = "".join(f"\n    {line}" for line in self.details)
        return f"{self.verdict:<8} {self.injection}  at {self.where}{rest}"


@dataclass(frozen=True, slots=True)
class _State:
    """What one run left behind."""

    pages: frozenset[int]
    findings: frozenset[tuple[str, str]]


def sweep(make: Make, play: Play, errno: str = DEFAULT_ERRNO) -> list[Outcome]:
    """Fail each call of each op of a scenario, one at a time.

    Args:
        make: makes a system that has not booted.
        play: the scenario on it: the boot, then calls. It must not judge results.
        errno: what ops that return an int fail with.

    Returns:
        One outcome for each call, in the order of the calls.

    Raises:
        PkvmEmuError: the scenario does not come to its end even without a failure.
    """
    return list(Sweep(make, play, errno))


class Sweep:
    """The same one by one: iterating tries the next failure.

    Args:
        As for :func:`sweep`; so are the errors, when it is made.
    """

    def __init__(self, make: Make, play: Play, errno: str = DEFAULT_ERRNO) -> None:
        self._make, self._play = make, play
        self._failures, self._good = _first_run(make, play, errno)

    def __len__(self) -> int:
        """How many failures there are to try."""
        return len(self._failures)

    def __iter__(self) -> Iterator[Outcome]:
        """The outcomes, in the order of the calls."""
        for injection, where in self._failures:
            yield _one(self._make, self._play, injection, where, self._good)


def _first_run(make: Make, play: Play, errno: str) -> tuple[list[tuple[Injection, str]], _State]:
    """The run without a failure: what can fail in it, where that is called, and what stays."""
    log = OpLog()
    system = make()
    system.watch_contracts("ops")
    with system.hyp.ops.observed(log):
        play(system)
    good = _state(system)
    kinds = failing_ops(ops_table(system.generation.layout))
    counts: Counter[str] = Counter()
    failures = []
    for entry in log.entries:
        name = entry.call.name
        counts[name] += 1
        if name in kinds:
            where = system.symbols.describe(entry.call.caller, 2)
            failures.append((Injection(name, counts[name], errno_number(errno)), where))
    return failures, good


def _one(make: Make, play: Play, injection: Injection, where: str, good: _State) -> Outcome:
    system = make()
    monitor = system.watch_contracts("ops")
    inject(system, [injection])
    try:
        play(system)
    except EmulatorError:
        raise
    except PkvmEmuError as error:
        return Outcome(injection, CRASH, where, (f"{type(error).__name__}: {error}",))
    left = _state(system)
    details = [f"page {pa:#x} is {_owner(system, pa)}" for pa in sorted(left.pages - good.pages)]
    details += [
        str(finding)
        for finding in monitor.findings
        if (finding.contract, finding.where) not in good.findings and finding.contract != "slots-exhausted"
    ]
    return Outcome(injection, LEAK if details else SURVIVED, where, tuple(details))


def _state(system: System) -> _State:
    """The pages that changes of ownership have left with somebody else than the host, and the findings.

    What the hypervisor maps for a module by itself is not counted: its text stays with it whatever its init returns.
    """
    ownership, ram = system.hyp.ownership, system.machine.ram
    touched = {
        pfn * _PAGE
        for event in ownership.events
        if event.origin.startswith("EL2 ") and event.pages <= 1 << 18
        for pfn in range(event.pfn, event.pfn + event.pages)
    }
    own = {
        pa + offset
        for module in system.modules.values()
        for pa, order in module.blocks.values()
        for offset in range(0, _PAGE << order, _PAGE)
    }
    pages = frozenset(
        pa
        for pa in touched - own
        if pa in ram and (ownership.owner_of(pa) is not Component.HOST or ownership.host_state(pa))
    )
    monitor = system.contracts
    findings = monitor.findings if monitor is not None else []
    return _State(pages, frozenset((finding.contract, finding.where) for finding in findings))


def _owner(system: System, pa: int) -> str:
    info = system.pages.at(pa)
    last = info.history[-1] if info.history else None
    owner = "shared with EL2" if info.owner is Component.HOST else f"owned by {info.owner.name}"
    return owner if last is None else f"{owner}, since {last}"


def summary(outcomes: list[Outcome]) -> str:
    """``17 failures of ops: 12 survived, 4 left something behind, 1 crashed``."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    words = [f"{counts[SURVIVED]} survived", f"{counts[LEAK]} left something behind", f"{counts[CRASH]} crashed"]
    return f"{len(outcomes)} failure{'' if len(outcomes) == 1 else 's'} of ops: {', '.join(words)}"


__all__ = ["CRASH", "LEAK", "SURVIVED", "Outcome", "Sweep", "summary", "sweep"]
