"""Declarative cases: ``*.pkvm.toml`` files with what to boot, what to do, and what has to come of it."""
