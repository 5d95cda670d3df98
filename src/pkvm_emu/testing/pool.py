"""Booted systems that tests share: booted once, and brought back to that moment for each test."""

from __future__ import annotations

import struct
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pkvm_emu.testing.recipe import Recipe
from pkvm_emu.testing.wiring import Registries, Wiring

if TYPE_CHECKING:
    from pkvm_emu.elf.module_file import ModuleFile
    from pkvm_emu.machine.snapshot import Snapshot
    from pkvm_emu.system import System

_KEPT = 12
_PAGE = 4096
_TABLE_PA = (1 << 48) - _PAGE
_LAST_LEVEL = 3


@dataclass(slots=True)
class _Booted:
    system: System
    snapshot: Snapshot
    wiring: Wiring
    code: tuple[tuple[int, bytes], ...]
    tables: tuple[tuple[int, bytes], ...]

    @classmethod
    def of(cls, system: System) -> _Booted:
        ram = system.machine.ram
        snapshot = system.snapshot()
        return cls(
            system,
            snapshot,
            Wiring(system),
            tuple((pa, ram.read(pa, size)) for pa, size in _code(system)),
            tuple((pa, ram.read(pa, _PAGE)) for pa in sorted(_tables(system))),
        )

    def reset(self) -> None:
        """Back to the end of the boot: machine, models, and what was hung on them from Python."""
        machine = self.system.machine
        # What the engine made of code and tables goes back only where it was told of the change; a test may not have told it.
        code, tables = (
            any(machine.ram.read(pa, len(was)) != was for pa, was in kept) for kept in (self.code, self.tables)
        )
        # Wiring comes first: what the test hung on the machine must not hear of this, let alone stop it.
        self.wiring.put_back()
        machine.core.depth = 0
        self.system.restore(self.snapshot)
        machine.snapshots.drop(_descendants(self.snapshot))
        if tables:
            machine.engine.flush_tlb()
        if code:
            machine.engine.flush_code()


def _descendants(snapshot: Snapshot) -> list[Snapshot]:
    """Snapshots that a test took: nobody goes back to them any more."""
    found = list(snapshot.children)
    for child in found:
        found += child.children
    return found


def _code(system: System) -> Iterator[tuple[int, int]]:
    """PA and size of all code: the firmware of both levels and the text of the modules, page by page."""
    kernel, hyp = system.kernel, system.hyp
    yield kernel.memory.image_pa, kernel.symbols.next_stub - kernel.memory.image_va(0)
    yield hyp.text
    for module in system.modules.values():
        code = [region for region in module.layout.regions if region.prot == "rx" or region.name == ".hyp.text"]
        for va, (pa, order) in module.blocks.items():
            if any(region.va <= va < region.va + region.size for region in code):
                yield pa, _PAGE << order


def _tables(system: System) -> set[int]:
    """PA of the page tables that the CPUs walk: stage 1 of both levels, and the host's stage 2."""
    machine, host = system.machine, system.hyp.host.table
    read = machine.engine.read_sysreg
    spaces = (("TTBR0_EL2", "TCR_EL2", 0), ("TTBR0_EL1", "TCR_EL1", 0), ("TTBR1_EL1", "TCR_EL1", 16))
    waiting = [(read(base) & _TABLE_PA, _start_level(read(control) >> shift & 0x3F)) for base, control, shift in spaces]
    # Its root may be several pages.
    waiting += [(host.root + _PAGE * page, host.start_level) for page in range(host.root_pages)]
    found = set[int]()
    while waiting:
        pa, level = waiting.pop()
        if pa in found or pa not in machine.ram:
            continue
        found.add(pa)
        if level < _LAST_LEVEL:
            entries = struct.unpack("<512Q", machine.ram.read(pa, _PAGE))
            waiting += [(entry & _TABLE_PA, level + 1) for entry in entries if entry & 3 == 3]
    return found


def _start_level(size_offset: int) -> int:
    return _LAST_LEVEL + 1 - (64 - size_offset - 12 + 8) // 9


class SystemPool:
    """Boots what recipes say, once each.

    Args:
        built: where source directories are built; None: a temporary directory.
        prepare: called with every system before its boot.
    """

    def __init__(self, built: Path | None = None, prepare: Callable[[System], None] | None = None) -> None:
        self._built = built
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._prepare = prepare
        self._files: dict[tuple[object, ...], ModuleFile] = {}
        self._systems: OrderedDict[tuple[object, ...], _Booted] = OrderedDict()
        self._registries = Registries()
        self.boots = 0
        #: The system of the last boot, whether it came to its end or not.
        self.booting: System | None = None

    def system(self, recipe: Recipe) -> System:
        """A system as right after its boot. It is shared: the next call with this recipe brings the same one back.

        Raises:
            PkvmEmuError: the boot ended the device, or the recipe cannot be made.
        """
        self._registries.put_back()
        key = recipe.fingerprint
        booted = self._systems.get(key)
        if booted is not None:
            self._systems.move_to_end(key)
            try:
                booted.reset()
                return booted.system
            except Exception:
                # A test can break any part of it; what cannot be brought back is not used again.
                del self._systems[key]
        system = self.boot(recipe)
        self._systems[key] = _Booted.of(system)
        if len(self._systems) > _KEPT:
            self._systems.popitem(last=False)
        return system

    def boot(self, recipe: Recipe) -> System:
        """A system of its own, which nobody else gets."""
        from dataclasses import replace

        from pkvm_emu.machine.profile import MachineProfile
        from pkvm_emu.system import boot

        profile = replace(MachineProfile.parse(recipe.machine), ram_size=recipe.ram_mib << 20, cpus=recipe.cpus)
        self.boots += 1
        self.booting = None
        return boot(
            recipe.android,
            [self.module(path, recipe.android) for path in recipe.modules],
            recipe.cmdline,
            profile,
            dtb=recipe.dtb,
            prepare=self._begin,
            **dict(recipe.options),
        )

    def _begin(self, system: System) -> None:
        self.booting = system
        if self._prepare is not None:
            self._prepare(system)

    def module(self, path: Path, android: str | None) -> ModuleFile:
        """The module of a ``.ko``, or of a source directory, which is built for ``android``."""
        from pkvm_emu.elf.module_file import ModuleFile

        key = Recipe(android if path.is_dir() else None, (path,)).fingerprint
        if key not in self._files:
            self._files[key] = ModuleFile.load(self._build(path, android) if path.is_dir() else path)
        return self._files[key]

    def close(self) -> None:
        """Let everything go."""
        self._systems.clear()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _build(self, directory: Path, android: str | None) -> Path:
        from pkvm_emu.build.builder import build_module

        if self._built is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="pkvm-emu-tests-")
            self._built = Path(self._temporary.name)
        place = self._built / f"{len(self._files)}-{android or 'newest'}"
        place.mkdir(parents=True, exist_ok=True)
        return build_module(directory, place, android).path
