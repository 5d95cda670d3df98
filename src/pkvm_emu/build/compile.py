"""Compiling one EL1 or EL2 source as a kernel build does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pkvm_emu.build.eventfile import MissingHeaders
from pkvm_emu.build.generation import BuildGeneration
from pkvm_emu.build.headers import include_directories
from pkvm_emu.build.plan import ModulePlan, SourceFile, enabled
from pkvm_emu.build.report import BuildLog, ToolError
from pkvm_emu.build.toolchain import KCFI, KCFI_NORMALIZE, Toolchain

_COMMON = (
    "-nostdinc",
    "-std=gnu11",
    "-O2",
    "-g",
    "-fno-strict-aliasing",
    "-fno-common",
    "-fno-PIE",
    "-fno-pic",
    "-mcmodel=small",
    "-fshort-wchar",
    "-funsigned-char",
    "-fno-delete-null-pointer-checks",
    "-fno-omit-frame-pointer",
    "-fno-optimize-sibling-calls",
    "-fno-strict-overflow",
    "-mgeneral-regs-only",
    "-mno-outline-atomics",
    "-mbranch-protection=pac-ret",
    "-ftrivial-auto-var-init=zero",
    "-fno-color-diagnostics",
    "-Qunused-arguments",
    "-fno-addrsig",
)
_C_WARNINGS = (
    "-Wall",
    "-Wno-gnu",
    "-Wno-unused-but-set-variable",
    "-Wno-address-of-packed-member",
    "-Werror=implicit-function-declaration",
    "-Werror=implicit-int",
    "-Werror=return-type",
    "-Werror=incompatible-pointer-types",
)
_ASSEMBLY = ("-D__ASSEMBLY__",)
_EL1 = ("-fasynchronous-unwind-tables",)
_EL2 = (
    "-D__KVM_NVHE_HYPERVISOR__",
    "-D__DISABLE_EXPORTS",
    "-D__DISABLE_TRACE_MMIO__",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
    "-ffixed-x18",
)
_MISSING_HEADER = re.compile(
    r"^(?P<file>[^\n]*?):(?P<line>\d+):\d+: fatal error: '(?P<name>[^']+)' file not found", re.M
)
_MISSING_HEADER_ROUNDS = 64
_MISSING_OPTION = re.compile(r"undeclared identifier 'CONFIG_(\w+)'")


@dataclass
class Compiler:
    """Compiles the sources of one generation and configuration.

    ``work`` is the directory for what the build generates, ``headers`` the root of the kernel headers, ``config`` the
    options given by the user (names without ``CONFIG_``).
    """

    toolchain: Toolchain
    generation: BuildGeneration
    headers: Path
    work: Path
    config: Mapping[str, str]
    log: BuildLog

    def __post_init__(self) -> None:
        self.override = self.work / "pkvm-emu-config.h"
        self.override.write_text("".join(_option_lines(self.config)))
        self._level_flags = {True: self._el2_flags(), False: self._el1_flags()}

    def macros(self) -> str:
        """All macros that a source sees before its first line, as ``#define`` lines."""
        empty = self.work / "pkvm-emu-empty.c"
        empty.write_text("")
        return self.toolchain.compile([*self._preprocessor_flags("none"), "-E", "-dM", str(empty)])

    def compile(self, plan: ModulePlan, source: SourceFile, output: Path, el2: bool) -> None:
        """Compile *source* of the module *plan* to the object *output*, for EL2 if *el2*, else for EL1.

        A quoted header whose path leads out of the module's tree and does not exist is found by the longest tail of
        its path (see eventfile). Raises ToolError with the compiler's first error line.
        """
        missing = MissingHeaders(plan.directory, output.with_suffix(".headers"))
        assembly = source.path.suffix == ".S"
        arguments = [
            *_COMMON,
            *(_ASSEMBLY if assembly else _C_WARNINGS),
            *self._preprocessor_flags(plan.name, source.path),
            *(flag for flag in self._level_flags[el2] if not (assembly and flag.startswith("-fsanitize"))),
            f"-ffile-prefix-map={self.work}=.",
            f"-fdebug-compilation-dir={plan.directory if plan.directory.is_absolute() else Path.cwd()}",
            *source.flags,
        ]
        output.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_MISSING_HEADER_ROUNDS):
            command = [*arguments, *missing.flags(), "-c", str(source.path), "-o", str(output)]
            try:
                warnings = self.toolchain.compile(command)
            except ToolError as error:
                match = _MISSING_HEADER.search(error.output)
                if match and missing.provide(match["name"], source.path, f"{match['file']}:{match['line']}"):
                    continue
                raise _name_source(error, source.path) from error
            self.log.command([*self.toolchain.clang, *command])
            self.log.note(warnings)
            return
        raise ToolError(f"{source.path}: headers that do not exist include each other without end")

    def _preprocessor_flags(self, module: str, source: Path | None = None) -> list[str]:
        builtin = self.toolchain.builtin_headers
        generation = self.generation
        major, minor, patch = generation.kernel
        base = re.sub(r"\W", "_", source.name.rpartition(".")[0]) if source else module
        name = re.sub(r"\W", "_", module)
        return [
            *(f"-I{path}" for path in include_directories(self.headers)),
            *([f"-isystem{builtin}"] if builtin else []),
            "-D__KERNEL__",
            "-DMODULE",
            f"-DPKVM_EMU_ANDROID={generation.android}",
            f"-DPKVM_EMU_KERNEL_MAJOR={major}",
            f"-DPKVM_EMU_KERNEL_MINOR={minor}",
            f"-DPKVM_EMU_KERNEL_PATCH={patch}",
            f'-DKBUILD_MODNAME="{name}"',
            f"-D__KBUILD_MODNAME=kmod_{name}",
            f'-DKBUILD_BASENAME="{base}"',
            f'-DKBUILD_MODFILE="{name}"',
            '-DARM64_ASM_ARCH="armv8.5-a"',
            "-include",
            "linux/kconfig.h",
            "-include",
            str(self.override),
        ]

    def _el1_flags(self) -> list[str]:
        flags = [*_EL1]
        guard = (
            "-fstack-protector-strong",
            "-mstack-protector-guard=sysreg",
            "-mstack-protector-guard-reg=sp_el0",
            f"-mstack-protector-guard-offset={self.generation.canary_offset}",
        )
        if self.toolchain.supports(*guard):
            flags += guard
        else:
            flags.append("-fno-stack-protector")
            self.log.note("note: this compiler cannot read the stack canary from SP_EL0: no stack protector at EL1")
        return flags + self._kcfi(self.generation.el1_kcfi)

    def _el2_flags(self) -> list[str]:
        # Makefile.module lets EL2 sources write <trace.h>; in android15-6.6 that is the only name of it.
        flags = [*_EL2, f"-I{self.headers / 'nvhe'}", *self._kcfi(self.generation.el2_kcfi)]
        if enabled(self.config.get("PKVM_FTRACE", "")):
            flags.append("-fpatchable-function-entry=3")
        return flags

    def _kcfi(self, wanted: bool) -> list[str]:
        if not wanted:
            return []
        if not self.toolchain.supports(KCFI):
            self.log.note(f"note: {self.toolchain.version} has no kCFI: type ids are left out")
            return []
        if not self.generation.normalized_cfi:
            return [KCFI]
        if not self.toolchain.supports(KCFI, KCFI_NORMALIZE):
            self.log.note(f"note: {self.toolchain.version} cannot normalise kCFI type ids: kCFI is left out")
            return []
        return [KCFI, KCFI_NORMALIZE]


def _option_lines(config: Mapping[str, str]) -> Sequence[str]:
    lines = []
    for name, value in config.items():
        lines.append(f"#undef CONFIG_{name}\n#undef CONFIG_{name}_MODULE\n")
        if value == "m":
            lines.append(f"#define CONFIG_{name}_MODULE 1\n")
        elif value == "y":
            lines.append(f"#define CONFIG_{name} 1\n")
        elif value not in ("", "n"):
            lines.append(f"#define CONFIG_{name} {value}\n")
    return lines


def _name_source(error: ToolError, source: Path) -> ToolError:
    """*error*, with the name of the source where its message speaks only of a header."""
    message = str(error)
    option = _MISSING_OPTION.search(message)
    if option:
        message += f" (an option with a value: give it with --config {option[1]}=VALUE)"
    if message.startswith(f"{source}:"):
        return ToolError(message, error.output, error.command)
    return ToolError(f"{message} [compiling {source}]", error.output, error.command)
