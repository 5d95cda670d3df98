"""Write ``index.json``: which file of this package serves which symbols. Run after adding a symbol."""

from __future__ import annotations

import json
from pathlib import Path

from pkvm_emu.kernel import exports, registry


def index() -> dict[str, list[str]]:
    """Served symbols by file, both in alphabetical order."""
    exports.register_all()
    found: dict[str, list[str]] = {name: [] for name in exports.subsystems()}
    for symbol, function in {**registry.FUNCTIONS, **registry.VARIABLES}.items():
        source = function.function if isinstance(function, registry.KernelFunction) else function.initial
        package, _, name = source.__module__.rpartition(".")
        if package == exports.__name__:
            found[name].append(symbol)
    return {name: sorted(symbols) for name, symbols in found.items() if symbols}


def main() -> None:
    """Write the file beside this one."""
    text = json.dumps(index(), indent=0, sort_keys=True)
    Path(__file__).with_name("index.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
