"""A shell on a system: its clock, its first process, and scripts or lines to run in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.kernel.fs import MemoryFile
from pkvm_emu.shell.commands import register_all
from pkvm_emu.shell.interpreter import Shell
from pkvm_emu.shell.jobs import Scheduler
from pkvm_emu.shell.streams import Empty, HostOutput

if TYPE_CHECKING:
    from pkvm_emu.system import System


class SystemClock:
    """The generic counter of the machine, in nanoseconds since boot."""

    def __init__(self, system: System) -> None:
        self._system = system

    def now(self) -> int:
        """Nanoseconds since boot."""
        return self._system.kernel.uptime_ns()

    def advance_to(self, moment: int) -> None:
        """Let the counter run up to ``moment``, never backwards; timers and deferred work of the kernel run on the way."""
        left = moment - self.now()
        if left > 0:
            self._system.kernel.idle(left)


class Session:
    """The login shell of a system.

    >>> session = Session(system, output)
    >>> session.run("cat /proc/cmdline; false")
    1

    Args:
        system: a booted system.
        out: takes what goes to standard output.
        err: takes what goes to standard error; None: the same as ``out``.
        modules: files that ``modprobe`` and ``insmod`` find by name; they show in /lib/modules.
    """

    def __init__(
        self,
        system: System,
        out: Callable[[bytes], object],
        err: Callable[[bytes], object] | None = None,
        modules: Sequence[ModuleFile] = (),
    ) -> None:
        register_all()
        self._scheduler = Scheduler(SystemClock(system))
        self.shell = Shell(system, self._scheduler, {0: Empty(), 1: HostOutput(out), 2: HostOutput(err or out)})
        self.shell.modules = {file.name: file for file in modules}
        for file in modules:
            system.modprobe.given.setdefault(file.name.replace("-", "_"), file)
            content = file.debug_parts[0].data if len(file.debug_parts) == 1 else b""
            system.fs.add(f"/lib/modules/{file.name}.ko", MemoryFile(system.fs.journal, 0o644, content))

    def run(self, text: str) -> int:
        """Run a script in the shell and return its exit status; variables and background jobs stay.

        Raises:
            ModuleError: what ends the system: a hypervisor panic, an oops.
        """
        return int(self._scheduler.run(self.shell.script(text)))

    @property
    def exited(self) -> bool:
        """Whether ``exit`` was called."""
        return self.shell.exited

    def close(self) -> None:
        """End the background jobs and close their files."""
        self._scheduler.kill_all()
