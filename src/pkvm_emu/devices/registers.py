"""A register file that remembers: reads give what was written last, 0 before. It stands behind the windows of devices
that have no model.
"""

from __future__ import annotations

from pkvm_emu.machine.state import Journal, State, StateDict


class RegisterFile(State):
    """Registers without a meaning.

    Args:
        journal: keeps their values.
        name: what the state is called in a digest; None for registers inside a model.

    Attributes:
        words: values by 4-byte-aligned address.
    """

    def __init__(self, journal: Journal, name: str | None = None) -> None:
        super().__init__(journal, name)
        self.words: StateDict[int, int] = StateDict(journal)

    def peek(self, address: int, size: int = 4) -> int:
        """The value of ``size`` bytes."""
        shift = 8 * (address & 3)
        value = self.words.get(address & ~3, 0) | self.words.get((address & ~3) + 4, 0) << 32
        return (value | self.words.get((address & ~3) + 8, 0) << 64) >> shift & (1 << 8 * size) - 1

    def poke(self, address: int, value: int, size: int = 4) -> None:
        """Set ``size`` bytes."""
        for at in range(address, address + size):
            shift = 8 * (at & 3)
            byte = value >> 8 * (at - address) & 0xFF
            self.words[at & ~3] = self.words.get(at & ~3, 0) & ~(0xFF << shift) | byte << shift
