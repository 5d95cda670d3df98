"""Sections of the emulated kernel image as a linker script would name them.

What the image holds lies where :mod:`pkvm_emu.kernel.layout` says; the boundaries here enclose it the way those of a real image do:
code first (vectors, entries, the stubs of exported functions), then read-only data, then what is for init alone, then writable
data. A module that protects the kernel's code and read-only data finds nothing in those two that the kernel writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.kernel import layout

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

_RODATA = layout.IMAGE_STUBS + layout.IMAGE_STUBS_SIZE
_INIT = layout.IMAGE_DATA - 0x2_0000
_INIT_DATA = _INIT + 0x1_0000
#: Offsets from the start of the image, in order.
SECTIONS = {
    "_text": 0,
    "_stext": 0,
    "_etext": _RODATA,
    "__start_rodata": _RODATA,
    "__end_rodata": _INIT,
    "__init_begin": _INIT,
    "__inittext_begin": _INIT,
    "__inittext_end": _INIT_DATA,
    "__initdata_begin": _INIT_DATA,
    "__initdata_end": layout.IMAGE_DATA,
    "__init_end": layout.IMAGE_DATA,
    "_data": layout.IMAGE_DATA,
    "_sdata": layout.IMAGE_DATA,
    "_edata": layout.IMAGE_DATA + layout.IMAGE_DATA_SIZE,
    "__bss_start": layout.IMAGE_DATA + layout.IMAGE_DATA_SIZE,
    "__bss_stop": layout.IMAGE_TASKS,
    "_end": layout.KIMAGE_SIZE,
}


def section_address(kernel: Kernel, name: str) -> int:
    """EL1 address of a boundary (``_stext``, ``__init_begin``, ...)."""
    return kernel.memory.image_va(SECTIONS[name])
