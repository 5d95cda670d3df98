"""Run every benchmark in turn."""

from __future__ import annotations

import importlib


def main() -> None:
    names = ("cold_run", "boot", "hvc_round_trip", "snapshot_restore", "throughput", "smp", "cases")
    for name in (*names, "page_tables", "single_step", "step", "reverse"):
        importlib.import_module(name).main()


if __name__ == "__main__":
    main()
