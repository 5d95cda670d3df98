"""Guest memory as exported functions see it: with the faults that the CPU would take, stage-2 included.

``kernel.memory`` is the model's own view and follows stage 1 only. A function such as ``memcpy`` runs on the CPU of a
device, where a page that the hypervisor took away faults. The accessors here ask the CPU once a page; they may run guest
code for that (the hypervisor maps host memory on first touch), so functions that use them are registered with
``runs_guest=True``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.faults import FaultHandler, KernelOops
from pkvm_emu.kernel.vsprintf_env import GuestFault

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

PAGE_SIZE = 4096
MASK64 = (1 << 64) - 1
_DABT_CURRENT = 0x25 << 26 | 1 << 25
_TRANSLATION_LEVEL_3 = 7
_WNR = 1 << 6


class HostFault(GuestFault):
    """The CPU refuses an access of the host.

    Attributes:
        esr: syndrome, as the EL1 vector saw it.
    """

    def __init__(self, va: int, size: int, esr: int) -> None:
        super().__init__(va, size)
        self.esr = esr


def caller(kernel: Kernel) -> str:
    """Who called the exported function that runs, with the source line where the module has DWARF."""
    return kernel.machine.core.describe(kernel.machine.engine.read("x30") - 4, 1)


def misuse(kernel: Kernel, text: str) -> ModuleError:
    """An error for a call that corrupts or hangs a device: what is wrong, and who called."""
    return ModuleError(f"{text}, called from {caller(kernel)}")


def hypercall_number(kernel: Kernel, name: str) -> int:
    """The number of a host hypercall.

    Raises:
        ModuleError: the generation has no such hypercall: the module was built for another one.
    """
    number = kernel.generation.hypercalls.get(name)
    if number is None:
        raise ModuleError(
            f"the hypervisor of {kernel.generation.name} has no hypercall {name}, which {caller(kernel)} asks for; "
            "choose the module's generation with --android"
        )
    return number


def access_oops(kernel: Kernel, name: str, fault: GuestFault) -> KernelOops:
    """The oops for an exported function that accessed an address it cannot."""
    esr = fault.esr if isinstance(fault, HostFault) else _DABT_CURRENT | _TRANSLATION_LEVEL_3
    text = FaultHandler.abort_text(esr, fault.va, False)
    pc = kernel.machine.engine.read("pc")
    kernel.faults.text.abort(text, esr, fault.va, pc)
    return KernelOops(f"{text}, in {name}() called from {caller(kernel)}", esr, fault.va, pc)


def reach(kernel: Kernel, va: int, size: int) -> None:
    """Touch the pages of a range as the CPU does.

    Raises:
        HostFault: the hypervisor does not let the host have a page of it.
    """
    if not kernel.deprivileged or size <= 0:
        return
    translate = kernel.machine.engine.translate
    for page in range(va & -PAGE_SIZE, va + size, PAGE_SIZE):
        if translate(page) is None:
            first = max(va, page)
            _, fault = kernel.access("host_load8", first)
            if fault is not None:
                raise HostFault(first, size, fault[0])


def require_mapped(kernel: Kernel, va: int, size: int) -> None:
    """Refuse a range that is not mapped to its end, before a long way through it is begun.

    Raises:
        GuestFault: at the first address that is not.
    """
    at, end = va, va + size
    while at < end:
        kernel.memory.to_pa(at)
        at = (at & -PAGE_SIZE) + PAGE_SIZE


def load(kernel: Kernel, va: int, size: int) -> bytes:
    """``size`` bytes from ``va``."""
    reach(kernel, va, size)
    return kernel.memory.read(va, size)


def store(kernel: Kernel, va: int, data: bytes | bytearray) -> None:
    """Write ``data`` to ``va``."""
    reach(kernel, va, len(data))
    _refuse_read_only(kernel, va, len(data))
    kernel.memory.write(va, data)


def _refuse_read_only(kernel: Kernel, va: int, size: int) -> None:
    if size > 0:
        for page in range(va & -PAGE_SIZE, va + size, PAGE_SIZE):
            if not kernel.memory.is_writable(page):
                raise HostFault(max(va, page), size, _DABT_CURRENT | _WNR | 0xF)


def load_string(kernel: Kernel, va: int, limit: int = 1 << 20) -> bytes:
    """The string at ``va`` without its NUL, ``limit`` bytes at most."""
    out = bytearray()
    while len(out) < limit:
        size = min(PAGE_SIZE - va % PAGE_SIZE, limit - len(out))
        chunk = load(kernel, va, size)
        end = chunk.find(0)
        if end >= 0:
            out += chunk[:end]
            break
        out += chunk
        va += size
    return bytes(out)


def load_u32(kernel: Kernel, va: int) -> int:
    """The 32-bit value at ``va``."""
    return int.from_bytes(load(kernel, va, 4), "little")


def load_u64(kernel: Kernel, va: int) -> int:
    """The 64-bit value at ``va``."""
    return int.from_bytes(load(kernel, va, 8), "little")


def store_uint(kernel: Kernel, va: int, value: int, size: int) -> None:
    """Store the low ``size`` bytes of ``value``."""
    store(kernel, va, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))


def empty_list(kernel: Kernel, head: int) -> None:
    """Make a ``struct list_head`` point at itself."""
    store(kernel, head, struct.pack("<QQ", head, head))


def list_add_tail(kernel: Kernel, node: int, head: int) -> None:
    """Put a ``struct list_head`` at the end of a list."""
    last = load_u64(kernel, head + 8)
    store(kernel, node, struct.pack("<QQ", head, last))
    store_uint(kernel, last, node, 8)
    store_uint(kernel, head + 8, node, 8)


def list_del_init(kernel: Kernel, node: int) -> None:
    """Take a node off its list and make it a list of its own."""
    following, previous = load_u64(kernel, node), load_u64(kernel, node + 8)
    store_uint(kernel, previous, following, 8)
    store_uint(kernel, following + 8, previous, 8)
    empty_list(kernel, node)


def list_nodes(kernel: Kernel, head: int) -> list[int]:
    """The nodes of a list, first to last."""
    nodes, node = [], load_u64(kernel, head)
    while node != head:
        nodes.append(node)
        node = load_u64(kernel, node)
    return nodes
