"""Time in the kernel: the deterministic counter, jiffies, and letting time pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.kernel.registry import kernel_part

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

#: ``CONFIG_HZ`` of GKI kernels.
HZ = 250
NS_PER_SECOND = 1_000_000_000
#: Jiffies start five minutes before the low 32 bits overflow.
_INITIAL_JIFFIES = (-300 * HZ) & 0xFFFF_FFFF


@kernel_part
class Clock:
    """Reads and advances the counter. The time itself is the machine's, so nothing is kept here.

    Args:
        kernel: whose machine counts.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    @property
    def jiffies(self) -> int:
        """The number of timer ticks."""
        return _INITIAL_JIFFIES + self._kernel.uptime_ns() * HZ // NS_PER_SECOND

    def advance(self, nanoseconds: int) -> None:
        """Let time pass, rounded up to whole ticks of the counter; the exported jiffies follow."""
        hz = self._kernel.machine.profile.counter_hz
        self._kernel.machine.core.ticks += -(-nanoseconds * hz // NS_PER_SECOND)
        self.publish()

    def publish(self) -> None:
        """Store the jiffies where modules read them."""
        symbols = self._kernel.symbols
        for name in ("jiffies", "jiffies_64"):
            address = symbols.addresses.get(name)
            if address is not None:
                self._kernel.memory.write_u64(address, self.jiffies)
