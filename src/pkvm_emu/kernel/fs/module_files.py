"""Which files modules made: what the report of a run lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel


class ModuleEntry(NamedTuple):
    """One file: who made it (empty: not a module), and its device number where it is a device node."""

    module: str
    device: tuple[int, int] | None = None

    def text(self, path: str) -> str:
        """``/dev/foo (10:123)``."""
        return path if self.device is None else f"{path} ({self.device[0]}:{self.device[1]})"


@kernel_part
class ModuleFiles(State):
    """The files that modules made, by path, in the order in which they were made."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.module_files")
        self._kernel = kernel
        self.entries: StateDict[str, ModuleEntry] = StateDict(kernel.machine.journal, "kernel.module_files.entries")

    def note(self, path: str, device: tuple[int, int] | None = None) -> None:
        """A file was made by the module whose code called the exported function that runs."""
        module = self._kernel.loader.find(self._kernel.machine.engine.read("x30") - 4)
        self.entries[path] = ModuleEntry(module.name if module is not None else "", device)

    def forget(self, path: str) -> None:
        """A file, or a directory with all below it, is gone."""
        for known in [known for known in self.entries if known == path or known.startswith(f"{path}/")]:
            del self.entries[known]
