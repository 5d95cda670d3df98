"""Contracts: what EL2 code of a module must not do although no op refuses it, found while it runs."""
