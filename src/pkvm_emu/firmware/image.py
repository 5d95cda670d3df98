"""The assembled firmware images that the package ships."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple


class LineRow(NamedTuple):
    """Where an instruction comes from: ``offset`` in the image, its file (``el2/vectors.S``) and its line."""

    offset: int
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class FirmwareImage:
    """Machine code with its symbols.

    Attributes:
        name: ``el1`` or ``el2``.
        code: the bytes, a multiple of 4 KiB.
        symbols: offset of each label.
        files: the sources of its instructions.
        row_text: the rows of :attr:`rows` as the image holds them.
    """

    name: str
    code: bytes
    symbols: dict[str, int]
    files: tuple[str, ...] = ()
    row_text: str = ""

    @property
    def rows(self) -> list[LineRow]:
        """One row for each instruction, by ascending offset; what only fills up has none."""
        found = []
        for entry in self.row_text.split():
            offset, file, line = entry.split(":")
            found.append(LineRow(int(offset, 16), self.files[int(file)], int(line)))
        return found

    @property
    def text_size(self) -> int:
        """Bytes of instructions; data pages follow in images that have some."""
        return self.symbols.get("text_end", len(self.code))


@cache
def load(name: str) -> FirmwareImage:
    """The image called ``name`` (``el1`` or ``el2``)."""
    raw = json.loads(files(__package__).joinpath("images", f"{name}.json").read_text())
    words = raw["words"].split()
    code = b"".join(int(w, 16).to_bytes(4, "little") for w in words)
    return FirmwareImage(name, code, raw["symbols"], tuple(raw["files"]), raw["lines"])


def source_directory() -> Path | None:
    """Where the sources are: beside this package in an installation, else in the source tree; None where they are not."""
    package = Path(__file__).resolve().parents[1]
    for place in (package / "firmware", package.parents[1] / "firmware"):
        if (place / "el2.S").is_file():
            return place
    return None
