"""Instruction words as text: the only importer of capstone, and only when a word has to be named."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def _disassembler() -> Any:
    import capstone

    return capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)


def instruction_text(word: int, va: int = 0) -> str:
    """Return one instruction as assembler text (``tlbi alle1is``), ``.word 0x...`` where it is none.

    Args:
        word: the 32-bit instruction.
        va: its address, which branch targets are printed relative to.
    """
    for _, _, mnemonic, operands in _disassembler().disasm_lite(word.to_bytes(4, "little"), va, 1):
        return f"{mnemonic} {operands}".rstrip()
    return f".word {word:#010x}"
