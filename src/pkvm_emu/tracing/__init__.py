"""Traces of a system for Python: the hypervisor's trace pipe."""
