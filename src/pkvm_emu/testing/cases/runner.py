"""Doing a case: step after step on a booted system, and what was not as it had to be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pkvm_emu.errors import EmulatorError, PkvmEmuError, UsageError
from pkvm_emu.testing.cases.expect import Seen, Since, judge
from pkvm_emu.testing.cases.model import Case, Failure
from pkvm_emu.testing.cases.steps import Context, Outcome, perform
from pkvm_emu.testing.injection import Injection, inject
from pkvm_emu.testing.oplog import OpLog

if TYPE_CHECKING:
    from pkvm_emu.system import System


def run_case(system: System, path: Path, case: Case) -> list[Failure]:
    """Do ``case`` on a system that was just booted for it; what is wrong, in the order of the file.

    A step whose expectations are not met does not end the case; one that ends the system does.

    Raises:
        EmulatorError: the emulator failed, which says nothing about the module.
    """
    return _Run(system, path, case).run()


class _Run:
    def __init__(self, system: System, path: Path, case: Case) -> None:
        self._system = system
        self._case = case
        self._context = Context(system, path.parent)
        self._ops = OpLog()
        self._trace = ""
        self._reads_trace = any("trace" in expect for expect in (case.expect, *(step.expect for step in case.steps)))
        self._failures: list[Failure] = []

    def run(self) -> list[Failure]:
        case, system = self._case, self._system
        if case.expect.get("secure") is not False:
            for outcome in system.boot_report.outcomes:
                if outcome.status == "failed":
                    reason = f"{outcome.name} was not loaded: {outcome.reason}"
                    return [Failure(case.line, f"{reason} (expect.secure = false where that is right)")]
        injections = [Injection.parse(text) for text in case.table.get("inject", ())]
        try:
            injector = inject(system, injections) if injections else None
        except UsageError as error:
            return [Failure(case.line_of("inject"), str(error))]
        system.hyp.ops.observe(self._ops)
        try:
            for number, step in enumerate(case.steps):
                if not self._step(number, step.line, step.table):
                    return self._failures
            # Of the case, everything since the power came on is judged: loading its modules is part of it.
            self._judge((), Outcome(), Since(0, 0, 0), case.expect)
        finally:
            system.hyp.ops.forget(self._ops)
            if injector is not None:
                system.hyp.ops.forget(injector)
                injector.detach()
        return self._failures

    def _step(self, number: int, line: int, table: dict[str, object] | object) -> bool:
        assert isinstance(table, dict)
        since = self._now()
        wanted = table.get("fails")
        try:
            outcome = perform(self._context, table)
        except EmulatorError:
            raise
        except PkvmEmuError as error:
            return self._ended(line, wanted, error)
        if wanted is not None:
            self._failures.append(Failure(line, f"a failure like {wanted!r} is expected: {outcome.summary}"))
        self._judge(("step", number), outcome, since, table.get("expect", {}))
        return True

    def _ended(self, line: int, wanted: object, error: PkvmEmuError) -> bool:
        if wanted is None:
            self._failures.append(Failure(line, f"{type(error).__name__}: {error}"))
            return False
        try:
            is_wanted = re.search(str(wanted), str(error)) is not None
        except re.error as wrong:
            self._failures.append(Failure(line, f"fails: {wanted!r} is no regular expression: {wrong}"))
            return False
        if not is_wanted:
            self._failures.append(Failure(line, f"a failure like {wanted!r} is expected: {error}"))
        return True

    def _judge(self, place: tuple[str | int, ...], outcome: Outcome, since: Since, expect: object) -> None:
        assert isinstance(expect, dict)
        if not expect:
            return
        if self._reads_trace:
            self._trace += self._system.trace_pipe.read()
        seen = Seen(self._system, outcome, since, self._ops.entries, self._trace)
        for name, message in judge(seen, expect):
            self._failures.append(Failure(self._case.line_of(*place, "expect", name), message))

    def _now(self) -> Since:
        system = self._system
        return Since(len(list(system.kernel.log)), len(system.mmio.log), len(self._ops.entries))
