"""``pkvm-emu test``: run declarative cases (``*.pkvm.toml``) without pytest."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pkvm_emu.errors import UsageError
from pkvm_emu.testing.reports import FORMATS, write_report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pkvm_emu.testing.coverage.model import Coverage
    from pkvm_emu.testing.results import CaseResult

_MARKS = {"passed": "ok     ", "failed": "FAILED ", "error": "ERROR  ", "skipped": "skipped"}


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of ``test``."""
    parser.add_argument(
        "places", metavar="FILE|DIR", nargs="*", default=["."], help="case files, or directories to look for them"
    )
    parser.add_argument("--android", metavar="N,...", help="run on these generations only: 14, 15, 16, or all")
    parser.add_argument("-k", dest="only", metavar="TEXT", default="", help="run cases whose names contain TEXT")
    parser.add_argument("-n", dest="processes", metavar="N", default="1", help="processes; auto: one a processor")
    parser.add_argument("--shard", metavar="I/N", help="run part I of N (parts on several machines, merged later)")
    parser.add_argument(
        "--contracts",
        metavar="WORDS",
        default="memory",
        help="contracts to watch: memory (default), ops, off, NAME=LEVEL",
    )
    parser.add_argument(
        "--golden", action="store_true", help="compare behaviour with golden files beside the cases; write missing ones"
    )
    parser.add_argument("--update", action="store_true", help="as --golden, and rewrite golden files that differ")
    parser.add_argument(
        "--cov", metavar="DIR", help="collect coverage of module code: lcov.info and drcov files in DIR"
    )
    parser.add_argument(
        "--cov-fail-under", metavar="PERCENT", type=float, help="fail where less of the modules' EL2 code was executed"
    )
    parser.add_argument("--results", metavar="FILE", help="write the results as JSON, for --merge")
    parser.add_argument(
        "--merge", metavar="FILE", action="append", default=[], help="run nothing: report the results of shards"
    )
    for name, text in FORMATS:
        parser.add_argument(f"--{name}", metavar="FILE", help=f"write {text}")
    parser.add_argument("--github", action="store_true", help="print annotations for GitHub Actions too")
    parser.add_argument(
        "-v",
        dest="verbose",
        action="store_true",
        help="print what the system did under each failed case: log, trace, ops",
    )
    parser.add_argument("-q", dest="quiet", action="store_true", help="print what failed and the last line only")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")


def execute(arguments: argparse.Namespace) -> int:
    """Run, or merge; print; write the reports."""
    from pkvm_emu.testing import results as of
    from pkvm_emu.testing.coverage.model import Coverage

    covers = arguments.cov or arguments.cov_fail_under is not None
    coverage = Coverage() if covers else None
    if arguments.merge:
        found = of.in_order(result for name in arguments.merge for result in of.load(Path(name), coverage))
        if not arguments.json:
            for result in found:
                _print_result(result, arguments.quiet, arguments.verbose)
    else:
        found = _run(arguments, coverage)
    for name, _ in FORMATS:
        if getattr(arguments, name):
            write_report(name, Path(getattr(arguments, name)), found)
    if arguments.github:
        from pkvm_emu.testing.reports.github import commands

        for line in commands(found):
            print(line)
    if arguments.results:
        _write(arguments.results, of.dump(found, coverage))
    if arguments.json:
        sys.stdout.write(of.dump(found, coverage))
    else:
        print(_summary(found))
    enough = coverage is None or _report_coverage(arguments, coverage)
    return of.exit_code(found) or int(not enough)


def _report_coverage(arguments: argparse.Namespace, coverage: Coverage) -> bool:
    """Write and print it; whether it is enough."""
    from pkvm_emu.testing.coverage.output import is_enough, table, write_directory

    if arguments.cov:
        write_directory(coverage, Path(arguments.cov))
    enough, verdict = True, ""
    if arguments.cov_fail_under is not None:
        enough, verdict = is_enough(coverage, arguments.cov_fail_under)
    if not arguments.json:
        for line in table(coverage):
            print(line)
        if verdict:
            print(verdict)
    return enough


def _run(arguments: argparse.Namespace, coverage: Coverage | None) -> list[CaseResult]:
    from pkvm_emu.contracts.rules import Selection
    from pkvm_emu.testing.batch import Batch, Shard
    from pkvm_emu.testing.recipe import generations

    Selection.parse(arguments.contracts)
    batch = Batch(
        [Path(place) for place in arguments.places],
        generations(arguments.android) if arguments.android else None,
        Shard.parse(arguments.shard) if arguments.shard else None,
        arguments.only,
        arguments.contracts,
        "update" if arguments.update else "check" if arguments.golden else None,
        coverage,
    )
    if not batch.jobs and not batch.broken:
        raise UsageError("no case is left to run (-k, --android, --shard)")
    progress = None if arguments.json else lambda result: _print_result(result, arguments.quiet, arguments.verbose)
    return batch.run(_processes(arguments.processes), progress)


def _processes(text: str) -> int:
    if text == "auto":
        return os.cpu_count() or 1
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise UsageError(f"-n {text}: write a number of processes, or auto")
    return int(text)


def _print_result(result: CaseResult, quiet: bool, verbose: bool) -> None:
    if quiet and not result.is_bad:
        return
    print(f"{_MARKS[result.outcome]} {result.file}:{result.line} {result.title}", flush=True)
    for message in result.messages:
        print(f"  {result.file}:{message.line}: {message.text}")
    for title, text in result.sections if verbose else ():
        print(f"  {title}:")
        for line in text.splitlines():
            print(f"    {line}")


def _summary(found: Sequence[CaseResult]) -> str:
    counts = {name: sum(1 for result in found if result.outcome == name) for name in _MARKS}
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"{len(found)} cases: {told}" if found else "no cases"


def _write(name: str, text: str) -> None:
    try:
        Path(name).write_text(text)
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from error
