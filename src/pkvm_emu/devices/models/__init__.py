"""The models that come with the emulator, one file each: found by name (``--mmio ADDR:SIZE=NAME``) or by ``compatible``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pkvm_emu.devices.model import Model

#: By name: the file and the class.
SHIPPED: dict[str, tuple[str, str]] = {
    "smmu-v3": ("smmu_v3", "SmmuV3"),
    "google-s2mpu": ("google_s2mpu", "S2mpu"),
    "google-s2mpu-v9": ("google_s2mpu", "S2mpuV9"),
    "google-sysmmu-sync": ("google_s2mpu", "SysmmuSync"),
}
#: By string of ``compatible``: the name. The files are imported only where a board has such a node.
COMPATIBLES: dict[str, str] = {
    "arm,smmu-v3": "smmu-v3",
    # What MediaTek's driver looks for in the strings of its SMMUs, on the board that is made up for it.
    **dict.fromkeys(("mm-smmu", "apu-smmu", "soc-smmu", "gpu-smmu"), "smmu-v3"),
    "google,s2mpu": "google-s2mpu",
    "google,s2mpu-v9": "google-s2mpu-v9",
    "google,sysmmu_sync": "google-sysmmu-sync",
}


def shipped(name: str) -> type[Model] | None:
    """The model of that name."""
    entry = SHIPPED.get(name)
    if entry is None:
        return None
    found: type[Model] = getattr(import_module(f"{__name__}.{entry[0]}"), entry[1])
    return found


def for_compatible(text: str) -> type[Model] | None:
    """The model for a ``compatible`` string."""
    name = COMPATIBLES.get(text)
    return None if name is None else shipped(name)
