"""Symbols that Google's SoC drivers export to each other, served where the exporting module is not given.

``phy-exynos-usbdrd-super`` (with an eUSB variant) drives the USB PHY. The power of USB is not switched by runtime PM, so the PHY
driver calls the S2MPU driver back: with true when the PHY is powered, with false before it goes off.

Sources: ``include/soc/google/exynos_usbdrd.h``, ``drivers/phy/samsung/phy-exynos-usbdrd-super.c`` of the gs kernels.
"""

from __future__ import annotations

from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_part, kernel_symbol
from pkvm_emu.machine.calling import Ptr
from pkvm_emu.machine.state import State

_USB_PHY = ("phy-exynos-usbdrd-super", "phy-exynos-usbdrd-eusb-super")


@kernel_part
class UsbPhy(State):
    """The USB PHY driver as its S2MPU sees it.

    Attributes:
        s2mpu_callback: EL1 address of ``int cb(struct device *s2mpu, bool on)``, 0 before one is registered.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.companions.usb_phy")
        self._kernel = kernel
        self.s2mpu_callback = 0

    def power(self, s2mpu: int, on: bool) -> int:
        """Do what the PHY driver does when USB's power comes or is about to go.

        Args:
            s2mpu: EL1 address of the ``struct device`` of USB's S2MPU.
            on: whether the power is there from now on.

        Returns:
            what the callback returned; 0 where none is registered.
        """
        return self._kernel.call_s32(self.s2mpu_callback, s2mpu, int(on)) if self.s2mpu_callback else 0


@kernel_symbol("exynos_usbdrd_set_s2mpu_pm_ops", companion=_USB_PHY)
def exynos_usbdrd_set_s2mpu_pm_ops(kernel: Kernel, callback: Ptr) -> int:
    """Remember the S2MPU driver's callback; 0."""
    kernel.part(UsbPhy).s2mpu_callback = callback
    return 0
