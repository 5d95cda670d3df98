"""Regression tests of module binaries: the pytest plugin, declarative cases, golden behaviour, contracts, coverage and reports."""
