"""EL2 calls from one module to another: the branches that android16 patches when it loads the EL2 half of the caller.

Source: ``module_init_hyp_imported_sym()`` in ``arch/arm64/kernel/module.c``, ``pkvm_reloc_imported_symbols()`` in
``arch/arm64/kvm/pkvm.c`` (6.12.23).
"""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING

from pkvm_emu.elf import hyprel
from pkvm_emu.elf.link import HypImport
from pkvm_emu.elf.relocation import R_AARCH64_CALL26

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel
    from pkvm_emu.kernel.modules import LoadedModule

_WARNING = 4
_FARTHEST = 1 << 27


def patch_imports(kernel: Kernel, module: LoadedModule) -> int:
    """Point the EL2 calls of a module at functions of modules whose EL2 halves are loaded.

    As in the kernel, a branch that cannot be patched is left as the EL1 linker made it, with a warning; only a function that
    nobody has fails the load. Generations before android16 patch none.

    Returns:
        0, or -EINVAL: a symbol that no loaded EL2 half has, or that is not inside that half's text.
    """
    imports = _imports(kernel, module)
    for entry in imports:
        found = _find(kernel, entry.name)
        if found is None:
            kernel.log.write(f"pKVM symbol {entry.name} not exported by any module", _WARNING)
            return -EINVAL
        exporter, va = found
        if not _is_inside_text(exporter, va):
            kernel.log.write(f"pKVM symbol {entry.name} not part of {exporter.name} .text section", _WARNING)
            return -EINVAL
        _patch(kernel, module, entry, _el2_address(exporter, va))
    return 0


def _imports(kernel: Kernel, module: LoadedModule) -> list[HypImport]:
    """The calls that the kernel knows about, newest first as in its list."""
    known: list[HypImport] = []
    entries = module.image.hyp_imports
    if entries and not kernel.generation.boot.patches_el2_imports:
        _tell(kernel, module, entries[0], "this kernel does not relocate EL2 calls between modules")
        return known
    for entry in entries:
        if entry.type != R_AARCH64_CALL26:
            kernel.log.write(f"Unknown relocation type for imported symbol {entry.name}", _WARNING)
            _tell(
                kernel, module, entry, "only bl instructions are relocated, and what follows the first other one is not"
            )
            break
        known.insert(0, entry)
    return known


def _find(kernel: Kernel, name: str) -> tuple[LoadedModule, int] | None:
    for module in reversed(list(kernel.loader.modules.values())):
        va = module.symbol(name) if module.token else None
        if va is not None and module.contains(va):
            return module, va
    return None


def _text(module: LoadedModule) -> tuple[int, int]:
    section = module.file.section(".hyp.text")
    assert section is not None
    start = module.layout.placements[section.index]
    return start, start + section.size


def _is_inside_text(module: LoadedModule, va: int) -> bool:
    # The kernel's check leaves the first byte out.
    start, end = _text(module)
    return start < va < end


def _el2_address(module: LoadedModule, va: int) -> int:
    # Counted from the text, as the kernel does it: right where the text is the first section.
    return module.token + va - _text(module)[0]


def _patch(kernel: Kernel, module: LoadedModule, entry: HypImport, target: int) -> None:
    if not _is_inside_text(module, entry.va):
        _tell(kernel, module, entry, "a call at the very beginning of .hyp.text is left out")
        return
    place = _el2_address(module, entry.va)
    if place < target:
        pc = kernel.machine.engine.read("pc")
        kernel.faults.text.warning(kernel.generation.boot.import_order_place, kernel.describe(pc), pc)
        _tell(kernel, module, entry, "the function lies above the caller at EL2")
        return
    if target - place < -_FARTHEST:
        kernel.log.write(
            f"Exported symbol {entry.name} is too far for the relocation in module {module.name}", _WARNING
        )
        return
    word = hyprel.hyp_import_word(kernel.memory.read_u32(entry.va), entry, place, target)
    kernel.memory.write_u32(entry.va, word)


def _tell(kernel: Kernel, module: LoadedModule, entry: HypImport, why: str) -> None:
    where = kernel.describe(entry.va)
    kernel.log.write(
        f"pkvm_emu: {module.name}: the EL2 call of {entry.name} at {where} goes astray, as on a device: {why}", _WARNING
    )
