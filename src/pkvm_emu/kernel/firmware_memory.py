"""The memory that the boot loader leaves the firmware of protected VMs in, and what happens to it in an insecure system.

Source: ``pkvm_firmware_rmem_init`` and ``pkvm_firmware_rmem_clear`` in ``arch/arm64/kvm/pkvm.c``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.kernel.devicetree.addresses import windows
from pkvm_emu.kernel.devicetree.setup import BoardSetup

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

_COMPATIBLE = "linux,pkvm-guest-firmware-memory"
_INFO = 6
_PAGE = 4096


def clear_firmware_memory(kernel: Kernel) -> None:
    """Overwrite the firmware, so that no protected VM can be started.

    A tree that the user gave says where it is, or that there is none; the made-up board stands for a phone that has it, outside
    of the emulated RAM.
    """
    regions = _regions(kernel)
    if not regions and kernel.part(BoardSetup).is_given:
        return
    kernel.log.write(kernel.generation.boot.clear_firmware_message, _INFO)
    ram = kernel.machine.ram
    for start, size in regions:
        first, end = max(start, ram.base), min(start + size, ram.end)
        for pa in range(first, end, _PAGE):
            ram.write(pa, bytes(min(_PAGE, end - pa)))


def _regions(kernel: Kernel) -> list[tuple[int, int]]:
    tree = kernel.part(BoardSetup).tree
    nodes = [node for node in tree.walk() if _COMPATIBLE in node.strings("compatible") and "reg" in node.properties]
    return [(window.start, window.size) for node in nodes for window in windows(node)]
