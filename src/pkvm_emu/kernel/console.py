"""The kernel's console on the UART, as far as the hypervisor sees it: the host touches the device.

Source: the console of a recorded boot was ``ttyAMA0``; its driver polls UARTFR before each character.
"""

from __future__ import annotations

from pkvm_emu.devices.pl011 import FLAGS, SIZE
from pkvm_emu.devices.standard import UART_BASE
from pkvm_emu.kernel.kernel import Kernel


def touch_uart(kernel: Kernel) -> None:
    """Read UARTFR from EL1.

    After deprivilege this is the host's first access outside RAM: the hypervisor maps the whole gap around the UART into
    the host stage-2, in blocks of up to 1 GiB (``host_stage2_idmap``). A machine with RAM at that address has no UART.
    """
    if UART_BASE in kernel.machine.ram:
        return
    registers = kernel.memory.reserve_vmalloc_area(SIZE)
    kernel.memory.map(registers, UART_BASE, SIZE, "device")
    kernel.access("host_load32", registers + FLAGS)
