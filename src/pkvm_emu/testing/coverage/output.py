"""Writing coverage: a directory with ``lcov.info`` and a drcov file for each module, and a table for people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pkvm_emu.errors import UsageError
from pkvm_emu.testing.coverage import drcov, lcov
from pkvm_emu.testing.coverage.model import Coverage


def write_directory(coverage: Coverage, directory: Path) -> None:
    """Write ``lcov.info`` and ``MODULE-DIGEST.drcov``.

    Raises:
        UsageError: they cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "lcov.info").write_text(lcov.write(coverage))
        for module in coverage.in_order():
            (directory / f"{module.name}-{module.digest}.drcov").write_bytes(drcov.write(module))
    except OSError as error:
        raise UsageError(f"{directory}: coverage cannot be written ({error.strerror})") from error


def table(coverage: Coverage) -> Iterator[str]:
    """One line for each module and level: instructions of its functions, and how many of them ran."""
    for module in coverage.in_order():
        for el, half in sorted(module.halves.items(), reverse=True):
            counts = list(half.function_counts())
            done, total = sum(row[1] for row in counts), sum(row[2] for row in counts)
            called = sum(1 for row in counts if row[1])
            share = f"{100.0 * done / total:5.1f} %" if total else "     --"
            yield (
                f"{module.name:<24} EL{el}  {share}  {done} of {total} instructions, {called} of {len(counts)} functions  "
                f"({module.file}, {module.digest[:8]})"
            )


def is_enough(coverage: Coverage, least: float) -> tuple[bool, str]:
    """Whether the EL2 code is covered to ``least`` percent, and a line that says so."""
    percent = coverage.percent() or 0.0
    if percent >= least:
        return True, f"coverage of EL2 code is {percent:.1f} %, at least {least:g} % is required"
    return False, f"coverage of EL2 code is {percent:.1f} %, less than the required {least:g} %"
