"""Options of ``run`` and ``shell`` about what a module does wrong, or would: contracts, failure injection, the sweep."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pkvm_emu.system import System


def add_check_options(parser: argparse.ArgumentParser) -> None:
    """``--contracts``, ``--inject``, ``--sweep``."""
    add_watch_options(parser, "ops")
    parser.add_argument(
        "--sweep", action="store_true", help="run once for each call of an op, which fails that time: crashes and leaks"
    )


def add_watch_options(parser: argparse.ArgumentParser, watched: str) -> None:
    """``--contracts``, by default ``watched``, and ``--inject``."""
    words = ("ops", "memory (every load and store too)", "off", "budget=N", "NAME=error|warning|off")
    named = ", ".join(f"{word} (default)" if word == watched else word for word in words)
    parser.add_argument("--contracts", metavar="WORDS", default=watched, help=f"what to watch: {named}")
    parser.add_argument(
        "--inject",
        metavar="OP=N:ERRNO",
        action="append",
        default=[],
        help="let the N-th call (* for each) of an op, of kernel:FUNCTION or of hvc:NAME fail (repeatable)",
    )


def begin(arguments: argparse.Namespace, system: System) -> None:
    """Watch, and let fail, what the options say."""
    from pkvm_emu.contracts.rules import Selection

    selection = Selection.parse(arguments.contracts)
    if selection.levels:
        system.watch_contracts(selection)
    if arguments.inject:
        from pkvm_emu.testing.injection import Injection, inject

        inject(system, [Injection.parse(text) for text in arguments.inject])


def run_sweep(make: Callable[[], System], play: Callable[[System], None], as_json: bool) -> int:
    """Do the sweep and print it; 1 where something crashed or was left behind."""
    from pkvm_emu.testing.sweep import SURVIVED, Sweep, summary

    sweep = Sweep(make, play)
    outcomes = []
    for outcome in sweep:
        outcomes.append(outcome)
        if not as_json:
            print(outcome, flush=True)
        if sys.stderr.isatty() and not sys.stdout.isatty():
            sys.stderr.write(f"\r{len(outcomes)} of {len(sweep)}" + ("\n" if len(outcomes) == len(sweep) else ""))
    if as_json:
        import json

        rows = [
            {
                "op": outcome.injection.op,
                "call": outcome.injection.call,
                "errno": outcome.injection.errno,
                "verdict": outcome.verdict,
                "where": outcome.where,
                "details": list(outcome.details),
            }
            for outcome in outcomes
        ]
        sys.stdout.write(json.dumps({"failures": rows}, indent=2) + "\n")
    else:
        print(summary(outcomes))
    return 0 if all(outcome.verdict == SURVIVED for outcome in outcomes) else 1
