"""Write ``index.json``: which file of this package serves which symbols. Run after adding a symbol."""

from __future__ import annotations

import json
from pathlib import Path

from pkvm_emu.kernel import exports, registry


def index() -> dict[str, list[str]]:
    """Served symbols by file, both in alphabetical order."""
    exports.register_all()
    found: dict[str, list[str]] = {name: [] for name in exports.subsystems()}
    sources = {symbol: served.function for symbol, served in registry.FUNCTIONS.items()}
    sources |= {symbol: served.initial for symbol, served in registry.VARIABLES.items()}
    for symbol, source in sources.items():
        package, _, name = source.__module__.rpartition(".")
        family = next((file for prefix, file in exports.FAMILIES.items() if symbol.startswith(prefix)), None)
        # The members of a family that its own file makes are there when somebody has linked to them.
        if package == exports.__name__ and name != family:
            found[name].append(symbol)
    return {name: sorted(symbols) for name, symbols in found.items() if symbols}


def main() -> None:
    """Write the file beside this one."""
    text = json.dumps(index(), indent=0, sort_keys=True)
    Path(__file__).with_name("index.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
