"""Addresses in words, at both exception levels: firmware labels, kernel stubs, ops, modules at EL1 and EL2."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from pkvm_emu.elf.dwarf import SourceLine, SourceLines
from pkvm_emu.errors import InputError
from pkvm_emu.firmware import image as firmware
from pkvm_emu.kernel import layout as kernel_layout

if TYPE_CHECKING:
    from pkvm_emu.elf.module_file import ModuleFile
    from pkvm_emu.hyp.hypervisor import Hypervisor
    from pkvm_emu.kernel.kernel import Kernel
    from pkvm_emu.kernel.modules import LoadedModule


class Symbolizer:
    """Names addresses and finds their source lines.

    Args:
        kernel: EL1's symbols and modules.
        hyp: EL2's firmware and ops.
    """

    def __init__(self, kernel: Kernel, hyp: Hypervisor) -> None:
        self._kernel = kernel
        self._hyp = hyp
        self._lines: dict[ModuleFile, SourceLines] = {}
        self._firmware = {
            el: (base, _by_offset(firmware.load(f"el{el}").symbols), len(firmware.load(f"el{el}").code))
            for el, base in ((1, kernel.entry("el1_vectors")), (2, hyp.entry("hyp_vectors")))
        }

    def el1(self, va: int) -> str | None:
        """``symbol+0x10/0x40 [module]`` for an EL1 address, or None."""
        module = self._kernel.loader.find(va)
        if module is not None:
            return module.describe(va)
        name = self._firmware_label(1, va)
        if name is not None:
            return name
        image = self._kernel.memory.layout.kimage_vaddr
        if image <= va < image + kernel_layout.KIMAGE_SIZE:
            hyp_name = self._hyp_text(va)
            if hyp_name is not None:
                return hyp_name
            for symbol, address in self._kernel.symbols.addresses.items():
                size = self._kernel.symbols.sizes.get(symbol, 8)
                if address <= va < address + size:
                    return f"{symbol}+{va - address:#x}/{size:#x}"
        return self._kernel.symbols.unserved_places.describe(va)

    def _hyp_text(self, va: int) -> str | None:
        """The hypervisor's own code as the kernel image names it: ``__kvm_nvhe_hyp_bug+0x0/0x4``."""
        _, (offsets, names), size = self._firmware[2]
        distance = va - self._kernel.memory.layout.kimage_vaddr - kernel_layout.IMAGE_HYP_TEXT
        index = bisect_right(offsets, distance) - 1
        if not 0 <= distance < size or index < 0:
            return None
        end = offsets[index + 1] if index + 1 < len(offsets) else size
        return f"__kvm_nvhe_{names[index]}+{distance - offsets[index]:#x}/{end - offsets[index]:#x}"

    def el2(self, va: int) -> str | None:
        """The same for an EL2 address."""
        module = self.module_at_el2(va)
        if module is not None:
            return module.describe(va - module.hyp_delta)
        name = self._firmware_label(2, va)
        if name is not None:
            return name
        op = self._hyp.ops.name_at(va)
        return f"ops->{op}" if op is not None else None

    def describe(self, va: int, el: int) -> str:
        """An address for messages: symbol and offset, source line where the module has DWARF, else the number."""
        name = self.el2(va) if el == 2 else self.el1(va)
        if name is None:
            return f"EL{el} {va:#x}"
        line = self.line(va, el)
        return f"{name} ({line.file}:{line.line})" if line is not None else name

    def line(self, va: int, el: int) -> SourceLine | None:
        """The source line of an address in a module that carries DWARF."""
        module = self.module_at_el2(va) if el == 2 else self._kernel.loader.find(va)
        if module is None:
            return None
        kernel_va = va - module.hyp_delta if el == 2 else va
        section = module.image.section_at(kernel_va)
        if section is None:
            return None
        # By file: after a restore another module may have the same name.
        lines = self._lines.get(module.file)
        if lines is None:
            lines = self._lines[module.file] = SourceLines(module.file)
        try:
            return lines.lookup(section.index, kernel_va - module.layout.placements[section.index])
        except InputError:
            # Names are for messages: bad debug information must not take the place of what there is to say.
            return None

    def module_at_el2(self, va: int) -> LoadedModule | None:
        """The module whose EL2 half an EL2 address lies in."""
        for module in self._kernel.loader.modules.values():
            if module.token and module.token <= va < module.token + module.layout.hyp_size:
                return module
        return None

    def _firmware_label(self, el: int, va: int) -> str | None:
        base, (offsets, names), size = self._firmware[el]
        if not base <= va < base + size:
            return None
        index = bisect_right(offsets, va - base) - 1
        if index < 0:
            return None
        distance = va - base - offsets[index]
        return f"{names[index]}+{distance:#x}" if distance else names[index]


def _by_offset(symbols: dict[str, int]) -> tuple[list[int], list[str]]:
    ordered = sorted((offset, name) for name, offset in symbols.items() if not name.endswith("_end"))
    return [offset for offset, _ in ordered], [name for _, name in ordered]
