"""Booted systems that tests share: booted once, and brought back to that moment for each test."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkvm_emu.errors import PkvmEmuError
from pkvm_emu.testing.recipe import Recipe

if TYPE_CHECKING:
    from pkvm_emu.elf.module_file import ModuleFile
    from pkvm_emu.machine.snapshot import Snapshot
    from pkvm_emu.system import System

_KEPT = 12
_PAGE = 4096
#: Attributes that a snapshot does not bring back, because they are how the parts are wired, and that a test may change.
_WIRING = ("on_service", "on_exception", "instruction_budget", "event_budget", "repeat_limit")


@dataclass(slots=True)
class _Booted:
    system: System
    snapshot: Snapshot
    core: dict[str, Any] = field(default_factory=dict)
    observers: tuple[Any, ...] = ()
    smc_handlers: tuple[Any, ...] = ()
    served: dict[str, Any] = field(default_factory=dict)
    code: tuple[tuple[int, bytes], ...] = ()

    @classmethod
    def of(cls, system: System) -> _Booted:
        return cls(
            system,
            system.snapshot(),
            {name: getattr(system.machine.core, name) for name in _WIRING},
            system.hyp.ops.observers,
            system.hyp.el3.handlers,
            system.kernel.symbols.provided,
            tuple((pa, system.machine.ram.read(pa, size)) for pa, size in _code(system)),
        )

    def reset(self) -> None:
        """Back to the end of the boot: machine, models, and what was hung on them from Python."""
        system = self.system
        # What the engine made of code goes back only where it was told of the change; a test may have written without telling.
        ruined = any(system.machine.ram.read(pa, len(code)) != code for pa, code in self.code)
        system.restore(self.snapshot)
        if ruined:
            system.machine.engine.flush_code()
        core = system.machine.core
        for name, value in self.core.items():
            if getattr(core, name) is not value:
                setattr(core, name, value)
        if system.hyp.ops.observers != self.observers:
            system.hyp.ops.observers = self.observers
        if system.hyp.el3.handlers != self.smc_handlers:
            system.hyp.el3.replace_handlers(self.smc_handlers)
        if system.kernel.symbols.provided != self.served:
            system.kernel.symbols.replace_provided(self.served)


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
        self.boots = 0

    def system(self, recipe: Recipe) -> System:
        """A system as right after its boot. It is shared: the next call with this recipe brings the same one back.

        Raises:
            PkvmEmuError: the boot ended the device, or the recipe cannot be made.
        """
        key = recipe.fingerprint
        booted = self._systems.get(key)
        if booted is not None:
            self._systems.move_to_end(key)
            try:
                booted.reset()
                return booted.system
            except PkvmEmuError:
                # What cannot be brought back is not used again.
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
        return boot(
            recipe.android,
            [self.module(path, recipe.android) for path in recipe.modules],
            recipe.cmdline,
            profile,
            dtb=recipe.dtb,
            prepare=self._prepare,
            **dict(recipe.options),
        )

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
