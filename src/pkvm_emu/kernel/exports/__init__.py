"""Exported kernel symbols, one file a subsystem, imported when a module first needs one of its symbols.

``index.json`` says which file serves what; ``python -m pkvm_emu.kernel.exports.make_index`` writes it, and a test compares. A
name that is not in the index makes all files be imported once, so a forgotten index costs time and nothing else.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from functools import cache
from importlib.resources import files

_TOOLS = ("make_index",)
#: Symbols of which there are as many as somebody defined in some header: the beginning of the name, and the file whose
#: ``declare(name)`` makes one.
FAMILIES = {"__tracepoint_": "tracepoints", "__traceiter_": "tracepoints", "__SCK__tp_func_": "tracepoints"}


def subsystems() -> list[str]:
    """The names of the files, in order."""
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name not in _TOOLS]


@cache
def register_all() -> None:
    """Import every file of this package."""
    for name in subsystems():
        importlib.import_module(f"{__name__}.{name}")


@cache
def _index() -> dict[str, str]:
    text = files(__package__).joinpath("index.json").read_text()
    return {symbol: name for name, symbols in json.loads(text).items() for symbol in symbols}


def import_for(symbol: str) -> None:
    """Import the file that serves ``symbol``; all files where the index does not know it."""
    name = _index().get(symbol)
    family = next((file for prefix, file in FAMILIES.items() if symbol.startswith(prefix)), None)
    if family is not None:
        importlib.import_module(f"{__name__}.{family}").declare(symbol)
    elif name is None:
        register_all()
    else:
        importlib.import_module(f"{__name__}.{name}")
