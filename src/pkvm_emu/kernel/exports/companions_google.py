"""Symbols that Google's SoC drivers export to each other, served where the exporting module is not given.

``phy-exynos-usbdrd-super`` (with an eUSB variant) drives the USB PHY. The power of USB is not switched by runtime PM, so the PHY
driver calls the S2MPU driver back: with true when the PHY is powered, with false before it goes off.

Sources: ``include/soc/google/exynos_usbdrd.h``, ``drivers/phy/samsung/phy-exynos-usbdrd-super.c`` of the gs kernels.
"""

from __future__ import annotations

from pkvm_emu.kernel.bus_masters import BusMasters
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import Ptr

_USB_PHY = ("phy-exynos-usbdrd-super", "phy-exynos-usbdrd-eusb-super")


@kernel_symbol("exynos_usbdrd_set_s2mpu_pm_ops", companion=_USB_PHY)
def exynos_usbdrd_set_s2mpu_pm_ops(kernel: Kernel, callback: Ptr) -> int:
    """Remember ``int callback(struct device *s2mpu, bool on)``, which the made-up bus masters call; 0."""
    kernel.part(BusMasters).callbacks[_USB_PHY[0]] = callback
    return 0
