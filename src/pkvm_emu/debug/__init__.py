"""Debugging: the GDB remote protocol, run control, and what a debugger has to know about the system."""
