"""Serves ``vendor_window_pfn()`` for examples/window: what the other driver of the vendor exports on the device."""

from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import U32, Ptr

FIRST_PFN = 0x48000


@kernel_symbol("vendor_window_pfn")
def vendor_window_pfn(kernel, index: U32, pfn: Ptr) -> int:
    """``int vendor_window_pfn(unsigned int index, u64 *pfn)``: one page for each window, 16 windows."""
    if index >= 16:
        return -22
    kernel.memory.write_u64(pfn, FIRST_PFN + index)
    return 0
