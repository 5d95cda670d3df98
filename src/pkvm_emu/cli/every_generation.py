"""``run --android all``: one binary on every generation, what came of it, and which parts of the ABI differ."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pkvm_emu.errors import EmulatorError, PkvmEmuError

if TYPE_CHECKING:
    from pkvm_emu.elf.module_file import ModuleFile
    from pkvm_emu.inspect.abi import AbiBreak
    from pkvm_emu.results import HvcResult
    from pkvm_emu.system import System

Calls = Sequence[tuple[str, list[int]]]


@dataclass(slots=True)
class _Ran:
    """One generation: what became of the modules and calls."""

    android: str
    breaks: list[tuple[str, AbiBreak]]
    outcomes: list[tuple[str, str, str]]
    calls: list[tuple[str, HvcResult | None]]
    error: str | None = None

    @property
    def is_good(self) -> bool:
        """Everything loaded, and every call succeeded."""
        loaded = all(status == "loaded" for _, status, _ in self.outcomes)
        return not self.error and loaded and all(result is not None and result.is_success for _, result in self.calls)


def run_everywhere(
    files: Sequence[ModuleFile],
    make: Callable[[str], System],
    boot: Callable[[System], None],
    calls: Calls,
    arguments: argparse.Namespace,
) -> int:
    """Boot and call on each generation, print; 1 where something failed or the ABI of another generation breaks the module.

    Args:
        files: the modules.
        make: a system of a generation that has not booted.
        boot: boots it.
        calls: hypercalls to make.
        arguments: of the command line.
    """
    from pkvm_emu.testing.recipe import ALL

    found = [_run(android, files, make, boot, calls) for android in ALL]
    if arguments.json:
        import json

        sys.stdout.write(json.dumps({"generations": [_as_dict(ran) for ran in found]}, indent=2) + "\n")
    else:
        for number, ran in enumerate(found):
            sys.stdout.write(("\n" if number else "") + _text(ran))
    return 0 if all(ran.is_good for ran in found) else 1


def _run(
    android: str,
    files: Sequence[ModuleFile],
    make: Callable[[str], System],
    boot: Callable[[System], None],
    calls: Calls,
) -> _Ran:
    from pkvm_emu.inspect.abi import abi_breaks

    breaks = [(file.name, one) for file in files for one in abi_breaks(file, android)]
    ran = _Ran(android, breaks, [], [])
    try:
        system = make(android)
        try:
            boot(system)
            for name, values in calls:
                is_there = any(name in module.hypercalls for module in system.modules.values())
                ran.calls.append((name, system.call(name, *values) if is_there else None))
        finally:
            ran.outcomes = [(o.name, o.status, o.reason) for o in system.boot_report.outcomes]
    except EmulatorError:
        raise
    except PkvmEmuError as error:
        ran.error = str(error)
    return ran


def _text(ran: _Ran) -> str:
    lines = [ran.android]
    lines += [f"  {status:<8} {name}{f': {reason}' if reason else ''}" for name, status, reason in ran.outcomes]
    lines += [f"  {name} = {result if result is not None else 'is not registered'}" for name, result in ran.calls]
    if ran.error:
        lines.append(f"  ended    {ran.error}")
    if ran.breaks:
        lines.append("  ABI breaks")
        lines += [f"    {name}: {one}" for name, one in ran.breaks]
    else:
        lines.append("  no ABI breaks")
    return "\n".join(lines) + "\n"


def _as_dict(ran: _Ran) -> dict[str, Any]:
    return {
        "android": ran.android,
        "boot": [{"module": name, "status": status, "reason": reason} for name, status, reason in ran.outcomes],
        "calls": [
            {"name": name, **(result._asdict() if result is not None else {"error": "not registered"})}
            for name, result in ran.calls
        ],
        "error": ran.error,
        "abi_breaks": [{"module": name, **one.as_dict()} for name, one in ran.breaks],
    }
