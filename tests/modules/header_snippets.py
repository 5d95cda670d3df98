"""Compiling snippets against ``modules/include`` the way the build does, for each generation and level."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection

ROOT = Path(__file__).resolve().parents[2]
MODULES = ROOT / "modules"
INCLUDE = MODULES / "include"


@dataclass(frozen=True)
class Generation:
    """An Android generation and its kernel line."""

    android: int
    major: int
    minor: int

    def __str__(self) -> str:
        return f"android{self.android}-{self.major}.{self.minor}"

    @property
    def defines(self) -> list[str]:
        return [
            f"-DPKVM_EMU_ANDROID={self.android}",
            f"-DPKVM_EMU_KERNEL_MAJOR={self.major}",
            f"-DPKVM_EMU_KERNEL_MINOR={self.minor}",
        ]


A14_515 = Generation(14, 5, 15)
A14 = Generation(14, 6, 1)
A15 = Generation(15, 6, 6)
A16 = Generation(16, 6, 12)
GENERATIONS = [A14_515, A14, A15, A16]

BASE_FLAGS = [
    *("-target", "aarch64-freestanding-none", "-nostdinc", "-c", "-O2", "-g0", "-std=gnu11"),
    *("-fno-sanitize=undefined", "-fno-stack-protector", "-mgeneral-regs-only", "-fno-common"),
    *("-fno-asynchronous-unwind-tables", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"),
    *("-D__KERNEL__", "-DMODULE", '-DKBUILD_MODNAME="snippet"', f"-I{INCLUDE}", "-include", "linux/kconfig.h"),
]
EL2_FLAGS = ["-D__KVM_NVHE_HYPERVISOR__", "-D__DISABLE_EXPORTS", "-ffixed-x18", "-mbranch-protection=pac-ret"]


class CompileError(Exception):
    """The compiler's messages."""


class Object:
    """A compiled object with the questions that the tests ask."""

    def __init__(self, data: bytes) -> None:
        self.elf = ELFFile(io.BytesIO(data))
        symtab = self.elf.get_section_by_name(".symtab")
        self._symbols = list(symtab.iter_symbols())

    @property
    def sections(self) -> dict[str, bytes]:
        return {s.name: (b"" if s["sh_type"] == "SHT_NOBITS" else s.data()) for s in self.elf.iter_sections() if s.name}

    @property
    def undefined(self) -> set[str]:
        return {s.name for s in self._symbols if s["st_shndx"] == "SHN_UNDEF" and s.name}

    @property
    def defined(self) -> dict[str, int]:
        return {s.name: s["st_value"] for s in self._symbols if s.name and s["st_shndx"] != "SHN_UNDEF"}

    def section_of(self, symbol: str) -> str:
        [found] = [s for s in self._symbols if s.name == symbol]
        return str(self.elf.get_section(found["st_shndx"]).name)

    def absolute(self, symbol: str) -> int:
        [found] = [s for s in self._symbols if s.name == symbol]
        assert found["st_shndx"] == "SHN_ABS"
        return int(found["st_value"])

    def relocations(self, section: str) -> list[tuple[int, int, str, int]]:
        """``(offset, type, symbol or section, addend)`` of each relocation of a section, by offset."""
        table = self.elf.get_section_by_name(".rela" + section)
        if not isinstance(table, RelocationSection):
            return []
        out = []
        for rel in table.iter_relocations():
            symbol = self._symbols[rel["r_info_sym"]]
            name = symbol.name or self.elf.get_section(symbol["st_shndx"]).name
            out.append((rel["r_offset"], rel["r_info_type"], name, rel["r_addend"]))
        return sorted(out)


def compile_object(source: Path, output: Path, generation: Generation, level: int, flags: list[str]) -> Object:
    """Compile one file; raises :class:`CompileError` with the compiler's messages. ``level`` is 1 or 2."""
    command = [sys.executable, "-m", "ziglang", "cc", *BASE_FLAGS, *generation.defines]
    command += (EL2_FLAGS if level == 2 else []) + flags + [str(source), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise CompileError(done.stderr)
    return Object(output.read_bytes())


def check_all(sources: list[Path], directory: Path, generation: Generation, level: int) -> None:
    """Compile many files in one run; raises :class:`CompileError` with the messages of all that fail."""
    command = [sys.executable, "-m", "ziglang", "cc", *BASE_FLAGS, *generation.defines]
    command += (EL2_FLAGS if level == 2 else []) + [str(source) for source in sources]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise CompileError(done.stderr)


class Compile:
    """Compiles C text or a file in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(
        self, source: str | Path, generation: Generation = A16, level: int = 1, flags: list[str] | None = None
    ) -> Object:
        if isinstance(source, str):
            path = self.directory / "snippet.c"
            path.write_text(source)
            source = path
        return compile_object(source, self.directory / "snippet.o", generation, level, flags or [])
