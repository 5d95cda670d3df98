"""``monitor`` commands of the debug server."""

from __future__ import annotations

from pkvm_emu.debug.monitor import help, hypervisor, reverse, run, snapshots, tables, who
from pkvm_emu.debug.monitor.registry import COMMANDS, monitor, perform

__all__ = ["COMMANDS", "help", "hypervisor", "monitor", "perform", "reverse", "run", "snapshots", "tables", "who"]
