"""The assembled firmware images that the package ships."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class FirmwareImage:
    """Machine code with its symbols.

    Attributes:
        name: ``el1`` or ``el2``.
        code: the bytes, a multiple of 4 KiB.
        symbols: offset of each label.
    """

    name: str
    code: bytes
    symbols: dict[str, int]

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
    return FirmwareImage(name, code, raw["symbols"])
