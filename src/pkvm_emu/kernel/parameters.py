"""Module parameters: the ``__param`` table, and setting and reading one through its own ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pkvm_emu.elf.elements import printable
from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.vsprintf_env import GuestFault

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel
    from pkvm_emu.kernel.modules import LoadedModule

_ENTRY_SIZE = 40
_NAME, _OPS, _PERM = 0, 16, 24
_OPS_SET, _OPS_GET = 8, 16
_OPS_NOARG_FLAG = 1
ENOENT, EPERM, EINVAL = 2, 1, 22


@dataclass(frozen=True, slots=True)
class ModuleParameter:
    """One ``struct kernel_param`` of a loaded module.

    Attributes:
        module: the module's name.
        name: without the module's prefix.
        address: EL1 address of the structure.
        mode: permission bits of the file in ``/sys/module/MODULE/parameters``; 0: no file.
        ops: address of its ``struct kernel_param_ops``.
    """

    module: str
    name: str
    address: int
    mode: int
    ops: int


class ModuleParameters:
    """Finds, sets and reads the parameters of loaded modules (``kernel/params.c``)."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def of(self, module: LoadedModule) -> list[ModuleParameter]:
        """The parameters of ``module``, in table order.

        Raises:
            ModuleError: an entry has no name in memory (a table without its relocations, for one).
        """
        section = module.file.section("__param")
        if section is None or section.index not in module.layout.placements:
            return []
        memory = self._kernel.memory
        start = module.layout.placements[section.index]
        found = []
        for address in range(start, start + section.size // _ENTRY_SIZE * _ENTRY_SIZE, _ENTRY_SIZE):
            name_at = memory.read_u64(address + _NAME)
            try:
                name = printable(memory.read_cstr(name_at).decode("latin-1"))
            except GuestFault as fault:
                number = (address - start) // _ENTRY_SIZE
                raise ModuleError(
                    f"{module.name}: parameter {number} of __param has its name at {name_at:#x}, where no memory is; a device "
                    f"oopses here"
                ) from fault
            mode = memory.read_u32(address + _PERM) & 0xFFFF
            short = name.removeprefix(f"{module.name}.")
            found.append(ModuleParameter(module.name, short, address, mode, memory.read_u64(address + _OPS)))
        return found

    def set(self, parameter: ModuleParameter, value: str | None) -> int:
        """Set a parameter as ``insmod`` or a write to its file does; returns 0 or -errno."""
        memory = self._kernel.memory
        setter = memory.read_u64(parameter.ops + _OPS_SET)
        if not setter:
            return -EPERM
        if value is None and not memory.read_u32(parameter.ops) & _OPS_NOARG_FLAG:
            return -EINVAL
        text = 0
        if value is not None:
            text = self._kernel.scratch_string(value)
        return self._kernel.call_s32(setter, text, parameter.address)

    def get(self, parameter: ModuleParameter) -> str | int:
        """What reading its file gives, or -errno."""
        memory = self._kernel.memory
        getter = memory.read_u64(parameter.ops + _OPS_GET)
        if not getter:
            return -EPERM
        buffer = self._kernel.scratch_page()
        length = self._kernel.call_s32(getter, buffer, parameter.address)
        if length < 0:
            return length
        return memory.read(buffer, length).decode("latin-1")
