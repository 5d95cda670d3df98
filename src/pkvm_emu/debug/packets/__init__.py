"""The commands of the GDB remote protocol, one function each, found by the decorator :func:`packet`."""

from __future__ import annotations

from pkvm_emu.debug.packets import files, lldb, memory, queries, registers, reverse, running, xfer

__all__ = ["files", "lldb", "memory", "queries", "registers", "reverse", "running", "xfer"]
