"""Memory as EL2 sees it: reads and writes at hyp VAs, through the hypervisor's own translation table."""

from __future__ import annotations

from pkvm_emu.hyp import layout
from pkvm_emu.hyp.errors import HypFault
from pkvm_emu.hyp.hyp_stage1 import HypStage1
from pkvm_emu.hyp.pgtable import PROT_W
from pkvm_emu.machine.machine import Machine

PAGE_SIZE = 4096


class HypMemory:
    """EL2's view of memory (a base of :class:`~pkvm_emu.hyp.hypervisor.Hypervisor`)."""

    _machine: Machine
    _stage1: HypStage1

    def to_pa(self, va: int) -> int | None:
        """Physical address of a hyp VA, or None where EL2 has no mapping."""
        leaf = self._stage1.leaf(va)
        return leaf.pa if leaf is not None and leaf.valid else None

    def read(self, va: int, size: int) -> bytes | None:
        """``size`` bytes at a hyp VA; None where some of it is not mapped."""
        out = bytearray()
        while size:
            chunk = min(size, PAGE_SIZE - va % PAGE_SIZE)
            pa = self.to_pa(va)
            if pa is None or pa not in self._machine.ram:
                return None
            out += self._machine.ram.read(pa, chunk)
            va += chunk
            size -= chunk
        return bytes(out)

    def read_cstr(self, va: int, limit: int = 1 << 12) -> bytes:
        """A string at a hyp VA, without its NUL; what is not mapped ends it."""
        out = bytearray()
        while len(out) < limit:
            chunk = self.read(va, min(PAGE_SIZE - va % PAGE_SIZE, limit - len(out)))
            if chunk is None:
                break
            end = chunk.find(0)
            if end >= 0:
                return bytes(out + chunk[:end])
            out += chunk
            va += len(chunk)
        return bytes(out)

    def load(self, va: int, size: int, what: str) -> bytes:
        """``size`` bytes that the hypervisor itself reads at a hyp VA for an op.

        Raises:
            HypFault: not mapped at EL2: on the device the hypervisor faults here. ``what`` says what it wanted.
        """
        data = self.read(va, size)
        if data is None:
            raise HypFault(f"{what}: the {size} bytes at {va:#x} are not mapped at EL2", va, is_write=False)
        return data

    def load_u64(self, va: int, what: str) -> int:
        """64 bits at a hyp VA; raises as :meth:`load`."""
        return int.from_bytes(self.load(va, 8, what), "little")

    def write(self, va: int, data: bytes, what: str = "the result of the op") -> None:
        """Write at a hyp VA.

        Raises:
            HypFault: not mapped writable at EL2: on the device the hypervisor itself faults here.
        """
        done = 0
        while done < len(data):
            here = va + done
            chunk = data[done : done + PAGE_SIZE - here % PAGE_SIZE]
            leaf = self._stage1.leaf(here)
            if (
                leaf is None
                or not leaf.valid
                or leaf.pa not in self._machine.ram
                or not (self._stage1.prot(leaf.descriptor) & PROT_W)
            ):
                raise HypFault(f"{what}: {here:#x} is not writable at EL2", here, is_write=True)
            self._machine.ram.write(leaf.pa, chunk)
            done += len(chunk)

    def write_u64(self, va: int, value: int, what: str = "the result of the op") -> None:
        """Store 64 bits at a hyp VA."""
        self.write(va, (value & (1 << 64) - 1).to_bytes(8, "little"), what)

    def read_host(self, kernel_va: int, size: int) -> bytes:
        """``size`` bytes that the host passed by linear-map address (EL2 reads them at ``kern_hyp_va``)."""
        pa = self._stage1.pa_of(layout.kern_hyp_va(kernel_va))
        return self._machine.ram.read(pa, size)
