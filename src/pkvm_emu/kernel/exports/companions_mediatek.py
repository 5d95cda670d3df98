"""Symbols of MediaTek modules that others depend on.

``mrdump`` (the vendor's crash dumper) finds the boundaries of the kernel image and gives them to others by ``aee_get_*()``. The
addresses are those of the emulated image (:mod:`pkvm_emu.kernel.image_sections`).
"""

from __future__ import annotations

from pkvm_emu.kernel.image_sections import section_address
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol

#: By function: the boundary that it returns.
_BOUNDARIES = {
    "aee_get_text": "_text",
    "aee_get_stext": "_stext",
    "aee_get_etext": "_etext",
    "aee_get_sdata": "_sdata",
    "aee_get_edata": "_edata",
    "aee_get_init_begin": "__init_begin",
    "aee_get_init_end": "__init_end",
    "aee_get_bss_start": "__bss_start",
    "aee_get_bss_stop": "__bss_stop",
    "aee_get_end": "_end",
}


def _serve(function: str, boundary: str) -> None:
    @kernel_symbol(function, companion="mrdump")
    def address(kernel: Kernel) -> int:
        """A boundary of the kernel image."""
        return section_address(kernel, boundary)


for _function, _boundary in _BOUNDARIES.items():
    _serve(_function, _boundary)


@kernel_symbol("aee_get_kimage_vaddr", companion="mrdump")
def aee_get_kimage_vaddr(kernel: Kernel) -> int:
    """Start of the kernel image."""
    return section_address(kernel, "_text")
