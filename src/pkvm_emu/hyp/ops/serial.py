"""The serial driver. ``putc``, ``puts`` and ``putx64`` are guest code in the firmware: they call the driver.

Source: arch/arm64/kvm/hyp/nvhe/serial.c.
"""

from __future__ import annotations

from errno import EBUSY

from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.registry import op
from pkvm_emu.machine.calling import Ptr


@op("register_serial_driver")
def register_serial_driver(hyp: Hypervisor, putc: Ptr) -> int:
    """Make ``putc(char)`` (a hyp VA) the one serial driver; 0, or -EBUSY when there is one."""
    if hyp.read_word("serial_putc_fn"):
        return -EBUSY
    hyp.write_word("serial_putc_fn", putc)
    return 0
