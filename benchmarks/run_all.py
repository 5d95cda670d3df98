"""Run every benchmark in turn."""

from __future__ import annotations

import importlib


def main() -> None:
    for name in ("cold_run", "boot", "hvc_round_trip", "snapshot_restore", "throughput", "smp", "cases", "single_step"):
        importlib.import_module(name).main()


if __name__ == "__main__":
    main()
