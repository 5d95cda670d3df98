"""The commands of the shell, one file a topic. :func:`register_all` makes them known."""

from __future__ import annotations


def register_all() -> None:
    """Import every file of this package."""
    import importlib
    import pkgutil

    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
