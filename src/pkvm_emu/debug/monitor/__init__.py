"""``monitor`` commands of the debug server."""

from __future__ import annotations

from pkvm_emu.debug.monitor import help, hypervisor, run, snapshots, tables
from pkvm_emu.debug.monitor.registry import COMMANDS, monitor, perform

__all__ = ["COMMANDS", "help", "hypervisor", "monitor", "perform", "run", "snapshots", "tables"]
