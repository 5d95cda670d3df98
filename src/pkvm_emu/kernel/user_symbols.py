"""Kernel symbols from a user's Python file: ``run foo.ko --kernel FILE`` and ``boot(kernel=[FILE])``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pkvm_emu.kernel import exports, registry
from pkvm_emu.user_code import run_user_file

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

T = TypeVar("T")


def load_symbol_file(path: str | Path, kernel: Kernel) -> None:
    """Run a file; the functions and variables that it registers are served in this kernel, and in no other of the process.

    Raises:
        UsageError: the file cannot be read or fails.
    """
    functions, variables = dict(registry.FUNCTIONS), dict(registry.VARIABLES)
    try:
        run_user_file("--kernel", path)
    finally:
        for name, function in list(registry.FUNCTIONS.items()):
            if functions.get(name) is not function and not _is_ours(function.function.__module__):
                kernel.symbols.provide_function(function)
                _put_back(registry.FUNCTIONS, name, functions)
        for name, variable in list(registry.VARIABLES.items()):
            if variables.get(name) is not variable and not _is_ours(variable.initial.__module__):
                kernel.symbols.provide_variable(variable)
                _put_back(registry.VARIABLES, name, variables)


def _is_ours(module: str) -> bool:
    # A file that imports one of the subsystems registers what that serves everywhere.
    return module.startswith(f"{exports.__name__}.")


def _put_back(table: dict[str, T], name: str, before: dict[str, T]) -> None:
    if name in before:
        table[name] = before[name]
    else:
        del table[name]
