"""What is debugged, in one object: the system with its registers, memory, files and run control, and its commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.debug.control import RunControl
from pkvm_emu.debug.libraries import Libraries
from pkvm_emu.debug.memory import DebugMemory
from pkvm_emu.debug.registers import RegisterFile
from pkvm_emu.debug.window import Window

if TYPE_CHECKING:
    from pkvm_emu.debug.flow import Flow
    from pkvm_emu.debug.history import History
    from pkvm_emu.debug.journey import HypercallStops
    from pkvm_emu.debug.packets.registry import Go
    from pkvm_emu.debug.session import Session
    from pkvm_emu.system import System

#: Where the files are said to be when nobody chose a directory.
VIRTUAL_DIRECTORY = "/pkvm-emu"


class Debugger:
    """One system under a debugger.

    Args:
        system: what is debugged.
        flow: what it is made to do.
        directory: where the ELF files are said to be.

    Attributes:
        control: run control, attached.
        extra_features: words for ``qSupported`` from parts that add packets.
    """

    def __init__(self, system: System, flow: Flow, directory: str = VIRTUAL_DIRECTORY) -> None:
        from pkvm_emu.debug.journey import HypercallStops
        from pkvm_emu.debug.saved_states import SavedStates

        self.system = system
        self.flow = flow
        self.control = RunControl(system.machine)
        self.memory = DebugMemory(system, Window(system, self.control))
        self.registers = RegisterFile(system.machine)
        self.libraries = Libraries(system, directory)
        self.control.library_state = self.libraries.state
        self.hypercalls: HypercallStops = HypercallStops(system, self.control, self.memory)
        self.saved_states = SavedStates(system, self.control)
        self.extra_features: list[str] = []
        #: Where the run has been; None: it cannot go back.
        self.history: History | None = None
        self.control.attach()

    def keep_history(self) -> History:
        """Let the run be able to go back, from its beginning on; before the flow runs."""
        self.history = self.control.keep_history(self.flow)
        self.memory.on_edit = self.registers.on_edit = self.history.edited
        self.saved_states.history = self.history
        self.extra_features += ["ReverseStep+", "ReverseContinue+"]
        return self.history

    def complain(self, text: str) -> None:
        """Say on the terminal that something went wrong in the debug server."""
        import sys

        sys.stderr.write(f"pkvm-emu: internal error in the debug server: {text}\n")

    def cpus(self) -> list[int]:
        """The CPUs that are on."""
        return self.system.machine.power.running or [self.system.machine.current.index]

    def describe_cpu(self, cpu: int) -> str:
        """``EL2 handle_trap+0x24``."""
        pc, pstate = (self.registers.read(cpu, name) for name in ("pc", "cpsr"))
        el = pstate >> 2 & 3
        place = self.system.symbols.describe(pc, el)
        return place if place.startswith(f"EL{el} ") else f"EL{el} {place}"

    def name_of_region(self, va: int) -> str:
        """What lies at an address, for lists of memory regions: the module, the firmware, or nothing."""
        found = self.memory.locate(va)
        if found is None:
            return ""
        regime, _ = found
        symbols = self.system.symbols
        module = symbols.module_at_el2(va) if regime == 2 else self.system.kernel.loader.find(va)
        if module is not None:
            return module.name
        name = symbols.el2(va) if regime == 2 else symbols.el1(va)
        return "" if name is None else ("hypervisor" if regime == 2 else "kernel")

    def monitor(self, session: Session, line: str) -> str | Go:
        """Perform a ``monitor`` command; its output.

        Raises:
            PkvmEmuError: the command fails; the message says why.
        """
        from pkvm_emu.debug.monitor import perform

        return perform(session, line)
