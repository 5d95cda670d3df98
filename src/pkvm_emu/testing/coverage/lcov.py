"""LCOV: the lines and functions of modules that have debug information (the format of ``geninfo``)."""

from __future__ import annotations

from collections.abc import Iterator

from pkvm_emu.testing.coverage.model import WORD, Coverage, Half, ModuleCoverage


def write(coverage: Coverage) -> str:
    """The file's text: a record for each source file of each module, in order."""
    return "".join(line for module in coverage.in_order() for line in _module(module))


def _module(module: ModuleCoverage) -> Iterator[str]:
    lines: dict[str, dict[int, int]] = {}
    functions: dict[str, dict[str, tuple[int, int]]] = {}
    for half in module.halves.values():
        _collect(half, lines, functions)
    for file in sorted(lines):
        yield f"TN:{_name(module.name)}\nSF:{file}\n"
        here = functions.get(file, {})
        for name, (line, _) in sorted(here.items(), key=lambda entry: entry[1]):
            yield f"FN:{line},{name}\n"
        for name, (_, count) in sorted(here.items(), key=lambda entry: entry[1]):
            yield f"FNDA:{count},{name}\n"
        yield f"FNF:{len(here)}\nFNH:{sum(1 for _, count in here.values() if count)}\n"
        for line, count in sorted(lines[file].items()):
            yield f"DA:{line},{count}\n"
        yield f"LF:{len(lines[file])}\nLH:{sum(1 for count in lines[file].values() if count)}\nend_of_record\n"


def _collect(half: Half, lines: dict[str, dict[int, int]], functions: dict[str, dict[str, tuple[int, int]]]) -> None:
    executed = half.executed()
    for function in half.functions:
        first = half.line_at(function.offset)
        if first is not None:
            functions.setdefault(first.file, {})[function.name] = (first.line, executed.get(function.offset, 0))
        for place in range(function.offset, function.offset + function.size, WORD):
            row = half.line_at(place)
            if row is not None:
                counts = lines.setdefault(row.file, {})
                counts[row.line] = max(counts.get(row.line, 0), executed.get(place, 0))


def _name(text: str) -> str:
    # The format allows letters, digits and underscores only.
    return "".join(character if character.isalnum() else "_" for character in text)
