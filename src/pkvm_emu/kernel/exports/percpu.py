"""Per-CPU memory (``mm/percpu.c``): an address to which each CPU adds its own offset (TPIDR_EL1)."""

from __future__ import annotations

from pkvm_emu.kernel import layout
from pkvm_emu.kernel.guest_access import misuse
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.registry import kernel_part, kernel_symbol
from pkvm_emu.machine.calling import U32, U64, Bool, Ptr
from pkvm_emu.machine.state import State, StateDict

_LARGEST = 32 << 10


@kernel_part
class PercpuMemory(State):
    """Allocations at the end of the per-CPU areas, downwards.

    Attributes:
        live: size by address.
        free: sizes of pieces that were given back, by address.
        bottom: the lowest address given out.
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.percpu")
        self._kernel = kernel
        self.live: StateDict[int, int] = StateDict(journal, "kernel.percpu.live")
        self.free: StateDict[int, int] = StateDict(journal, "kernel.percpu.free")
        self.bottom = kernel.memory.image_va(layout.IMAGE_PERCPU) + layout.PERCPU_SIZE

    def allocate(self, size: int, align: int) -> int:
        """Zeroed memory on every CPU; 0 without room."""
        kernel = self._kernel
        found = next((at for at, room in self.free.items() if room >= size and not at % align), None)
        if found is not None:
            size = self.free.pop(found)
        else:
            found = (self.bottom - size) & -align
            if found < kernel.symbols.next_percpu:
                return 0
            self.bottom = found
        self.live[found] = size
        for cpu in range(kernel.machine.profile.cpus):
            kernel.memory.write(found + cpu * layout.PERCPU_SIZE, bytes(size))
        return found

    def release(self, address: int) -> bool:
        """Give memory back; whether it was allocated."""
        size = self.live.pop(address, None)
        if size is not None:
            self.free[address] = size
        return size is not None


@kernel_symbol("__alloc_percpu", "__alloc_percpu_gfp", "__alloc_reserved_percpu", runs_guest=True)
def alloc_percpu(kernel: Kernel, size: U64, align: U64) -> int:
    """Memory for each CPU, or NULL; sizes above 32 KiB and odd alignments are warned about."""
    if not size or size > _LARGEST or align > layout.PAGE_SIZE or align & (align - 1):
        warn(kernel, "mm/percpu.c", f"illegal size ({size}) or align ({align}) for percpu allocation")
        return 0
    return kernel.part(PercpuMemory).allocate(size, max(align, 8))


@kernel_symbol("pcpu_alloc_noprof", runs_guest=True)
def pcpu_alloc(kernel: Kernel, size: U64, align: U64, reserved: Bool, flags: U32) -> int:
    """The same under the name of 6.10 and later."""
    return alloc_percpu(kernel, size, align)


@kernel_symbol("free_percpu", runs_guest=True)
def free_percpu(kernel: Kernel, address: Ptr) -> None:
    """Give it back; NULL is ignored.

    Raises:
        ModuleError: nothing is allocated there.
    """
    if address and not kernel.part(PercpuMemory).release(address):
        raise misuse(kernel, f"free_percpu({address:#x}): nothing is allocated there")
