"""The hypervisor's own hypercalls, one file a domain."""
