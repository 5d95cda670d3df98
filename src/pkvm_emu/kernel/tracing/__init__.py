"""Hypervisor tracing as the host kernel does it: buffers, readers, events, text. Behind tracefs and ``system.trace_pipe``."""
