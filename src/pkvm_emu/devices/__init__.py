"""MMIO device models over the machine's bus."""
