"""What a stop looks like: lines of (text, style), printed plainly or, on a terminal, in colour."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pkvm_emu.arch.insn import branch_target, is_hvc, is_smc
from pkvm_emu.arch.smccc import call_name
from pkvm_emu.arch.spsr import Spsr
from pkvm_emu.debug.journey import hypercall_name
from pkvm_emu.inspect.disassembly import instruction_text

if TYPE_CHECKING:
    from pkvm_emu.debug.debugger import Debugger
    from pkvm_emu.debug.frames import Frame

#: One line: pieces with the style of each ("" for none).
Line = list[tuple[str, str]]
HEAD, CHANGED, SOURCE, HERE, DIM, NOTE = "bold", "bold yellow", "green", "bold cyan", "dim", "magenta"
GENERAL = tuple(f"x{n}" for n in range(31))
_BEFORE, _AFTER = 2, 3
_SMCCC_ARGUMENTS = 6
_PER_ROW = 4


class Output:
    """Prints lines.

    Args:
        file: where to.
        colour: whether with colours; None: where it is a terminal.
    """

    def __init__(self, file: TextIO | None = None, colour: bool | None = None) -> None:
        self._file = file or sys.stdout
        self._console: Any = None
        if self._file.isatty() if colour is None else colour:
            from rich.console import Console

            self._console = Console(
                file=self._file, force_terminal=True, highlight=False, soft_wrap=True, color_system="standard"
            )

    def line(self, line: Line) -> None:
        """Print one."""
        if self._console is None:
            self._file.write("".join(text for text, _ in line).rstrip() + "\n")
            return
        from rich.text import Text

        self._console.print(Text.assemble(*((text, style) for text, style in line)))

    def text(self, text: str) -> None:
        """Print text without style."""
        for part in text.rstrip("\n").split("\n"):
            self.line([(part, "")])

    def flush(self) -> None:
        """Let it be seen."""
        self._file.flush()


class Screen:
    """Shows where a CPU is.

    Args:
        debugger: what is shown.
        sources: ``(old, new)`` directories where sources are looked for.
    """

    def __init__(self, debugger: Debugger, sources: list[tuple[str, str]]) -> None:
        self._debugger = debugger
        self._sources = sources
        self._files: dict[str, list[str] | None] = {}
        self._registers: tuple[int, ...] = ()

    def stop(self, cpu: int, text: str = "") -> list[Line]:
        """Everything about a stop: place, source, instructions, call, registers that changed."""
        pc, pstate = (self._debugger.registers.read(cpu, name) for name in ("pc", "cpsr"))
        el = pstate >> 2 & 3
        lines: list[Line] = [[(text, NOTE)]] if text else []
        lines.append(self._head(cpu, pc, el, pstate))
        lines += self.source(pc, el)
        lines += self.instructions(pc - 4 * _BEFORE, _BEFORE + 1 + _AFTER, el, pc)
        lines += self._call(cpu, pc, el)
        return lines + self._changes(cpu)

    def frame(self, number: int, frame: Frame) -> Line:
        """One line of a backtrace."""
        return [(f"#{number:<2} ", DIM), (self.place(frame.place if frame.is_call else frame.pc, frame.el), "")]

    def place(self, va: int, el: int) -> str:
        """``EL2 handler+0x10/0x40 [module] (file.c:12)``."""
        text = self._debugger.system.symbols.describe(va, el)
        return text if text.startswith(f"EL{el} ") else f"EL{el} {text}"

    def _head(self, cpu: int, pc: int, el: int, pstate: int) -> Line:
        history = self._debugger.history
        where = f"  @{history.index}" if history is not None else ""
        number = f"CPU {cpu} " if len(self._debugger.cpus()) > 1 else ""
        return [(number, DIM), (self.place(pc, el), HEAD), (f"  {Spsr(pstate).describe()}{where}", DIM)]

    def source(self, va: int, el: int, around: int = 0) -> list[Line]:
        """The source line of an address, with lines around it; nothing where it is not known or not there."""
        place = self._debugger.system.symbols.line(va, el)
        lines = self._read(place.file) if place is not None else None
        if place is None or not lines:
            return []
        found: list[Line] = []
        for number in range(max(place.line - around, 1), min(place.line + around, len(lines)) + 1):
            mark = "->" if around and number == place.line else "  "
            found.append([(f"  {mark} {number:5}  ", DIM), (lines[number - 1], SOURCE)])
        return found

    def instructions(self, va: int, count: int, el: int, pc: int) -> list[Line]:
        """Disassembly."""
        found: list[Line] = []
        memory, symbols = self._debugger.memory, self._debugger.system.symbols
        for at in range(va, va + 4 * count, 4):
            data = memory.read(at, 4)
            if len(data) < 4:
                continue
            word = int.from_bytes(data, "little")
            text, target = instruction_text(word, at), branch_target(word, at)
            name = (symbols.el2(target) if el == 2 else symbols.el1(target)) if target is not None else None
            pieces = [(f"  {'=>' if at == pc else '  '} {at:#x}  ", HERE if at == pc else DIM), (f"{text:<36}", "")]
            if name is not None:
                pieces.append((f" {name}", DIM))
            found.append(pieces)
        return found

    def registers(self, cpu: int, names: tuple[str, ...]) -> list[Line]:
        """Registers by name, four in a row."""
        values = [self._debugger.registers.read(cpu, name) for name in names]
        width = max(len(name) for name in names)
        cells = [(f"  {name:<{width}} {value:016x}", "") for name, value in zip(names, values, strict=True)]
        return [cells[at : at + _PER_ROW] for at in range(0, len(cells), _PER_ROW)]

    def _changes(self, cpu: int) -> list[Line]:
        registers = self._debugger.registers
        values = tuple(registers.read(cpu, name) for name in (*GENERAL, "sp"))
        before, self._registers = self._registers, values
        if not before:
            return self.registers(cpu, (*GENERAL, "sp"))
        cells = [
            (f"  {name} {old:#x} -> {new:#x}", CHANGED)
            for name, old, new in zip((*GENERAL, "sp"), before, values, strict=True)
            if old != new
        ]
        return [cells[at : at + _PER_ROW] for at in range(0, len(cells), _PER_ROW)]

    def _call(self, cpu: int, pc: int, el: int) -> list[Line]:
        """The SMCCC call that the next instruction makes."""
        data = self._debugger.memory.read(pc, 4)
        word = int.from_bytes(data, "little")
        system = self._debugger.system
        immediate = is_hvc(word)
        if immediate is not None and pc + 4 in system.machine.core.services:
            service = system.machine.core.services[pc + 4]
            values = ", ".join(f"{self._debugger.registers.read(cpu, f'x{n}'):#x}" for n in range(service.nargs))
            return [[(f"  {service.name.removesuffix('()')}({values}): Python, one step", NOTE)]]
        if immediate is None and is_smc(word) is None:
            return []
        x = [self._debugger.registers.read(cpu, f"x{n}") for n in range(_SMCCC_ARGUMENTS + 1)]
        name = call_name(x[0]) if immediate is None else hypercall_name(system, x[0])
        kind = "smc" if immediate is None else "hvc"
        return [[(f"  {kind} {x[0]:#x} {name}({', '.join(f'{value:#x}' for value in x[1:])})", NOTE)]]

    def _read(self, file: str) -> list[str] | None:
        if file not in self._files:
            self._files[file] = self._find(file)
        return self._files[file]

    def _find(self, file: str) -> list[str] | None:
        candidates = [file] + [new + file[len(old) :] for old, new in self._sources if file.startswith(old)]
        if not file.startswith("/"):
            candidates += [str(Path(new) / file) for _, new in self._sources]
        for candidate in candidates:
            try:
                return Path(candidate).read_text("utf-8", "replace").expandtabs(8).split("\n")
            except OSError:
                continue
        return None
