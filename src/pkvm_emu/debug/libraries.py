"""The files that a debugger loads: made when they are asked for, named so that a change is another name.

``machine.elf`` holds nothing; ``hypervisor.elf`` and ``kernel-N.elf`` (N symbols linked so far) are the firmware;
``<module>.el1.elf`` is there when the module is placed, and ``<module>.el2.elf`` too: where its EL2 half will be is foreseen
(:mod:`pkvm_emu.debug.placement`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.debug.firmware_elf import hypervisor_elf, kernel_elf, machine_elf
from pkvm_emu.debug.module_elf import module_elf
from pkvm_emu.debug.placement import hyp_delta

if TYPE_CHECKING:
    from pkvm_emu.kernel.modules import LoadedModule
    from pkvm_emu.system import System


#: What a debugger takes for the program; everything else is a library of it.
MACHINE = "machine.elf"


class Library(NamedTuple):
    """One file: its path, the lowest address it takes, and what makes its bytes."""

    path: str
    base: int
    make: Callable[[], bytes]


class Libraries:
    """The files of a system.

    Args:
        system: whose.
        directory: where they are said to be; they are served over the protocol, or written there by :meth:`write`.
    """

    def __init__(self, system: System, directory: str) -> None:
        self._system = system
        self.directory = PurePosixPath(directory)
        self._made: dict[str, bytes] = {}
        self._foreseen: dict[LoadedModule, int] = {}

    def state(self) -> object:
        """Changes whenever :meth:`present` does."""
        modules = self._system.kernel.loader.modules.values()
        return tuple([(module.name, module.token) for module in modules])

    def present(self) -> list[Library]:
        """What is there now."""
        system = self._system
        found = [
            self._library(MACHINE, 0, machine_elf),
            self._library("hypervisor.elf", system.hyp.entry("hyp_vectors"), lambda: hypervisor_elf(system)),
            self._library(
                f"kernel-{len(system.kernel.symbols.addresses)}.elf",
                system.kernel.entry("el1_vectors"),
                lambda: kernel_elf(system),
            ),
        ]
        for module in system.kernel.loader.modules.values():
            delta = hyp_delta(system, module)
            for el in (1, 2):
                base = _lowest(module, el)
                if base is None or (el == 2 and delta is None):
                    continue
                # Another address of the EL2 half than was foreseen is another file.
                is_foreseen = el == 1 or module.token in (0, self._foreseen.setdefault(module, base + (delta or 0)))
                name = f"{module.name}.el{el}{'' if is_foreseen else '-moved'}.elf"
                shift = 0 if el == 1 else delta or 0
                found.append(
                    self._library(name, base + shift, lambda m=module, e=el, d=shift: self._module(m, e, d))  # type: ignore[misc]  # mypy: lambda default
                )
        return found

    def read(self, path: str) -> bytes | None:
        """The contents of one of the files, or None where there is no such."""
        if path not in self._made:
            for library in self.present():
                if library.path == path:
                    self._made[path] = library.make()
        return self._made.get(path)

    def write(self) -> list[str]:
        """Write the present files to the directory; their paths."""
        from pathlib import Path

        paths = []
        for library in self.present():
            data = self.read(library.path)
            if data is not None:
                Path(library.path).parent.mkdir(parents=True, exist_ok=True)
                Path(library.path).write_bytes(data)
                paths.append(library.path)
        return paths

    def _module(self, module: LoadedModule, el: int, delta: int) -> bytes:
        engine = self._system.machine.engine
        size = engine.read_sysreg("TCR_EL1") >> 16 & 0x3F if el == 1 else engine.read_sysreg("TCR_EL2") & 0x3F
        return module_elf(module, el, delta, 64 - size) or b""

    def _library(self, name: str, base: int, make: Callable[[], bytes]) -> Library:
        return Library(str(self.directory / name), base, make)


def _lowest(module: LoadedModule, el: int) -> int | None:
    """The lowest EL1 address of a half."""
    hyp = {section.index for section in module.file.hyp_mapped_sections}
    sections = module.file.sections
    places = [va for i, va in module.layout.placements.items() if (i in hyp) == (el == 2) and sections[i].size]
    return min(places, default=None)
