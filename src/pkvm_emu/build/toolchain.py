"""Finding a clang and an LLD that can build kernel modules for AArch64, and running them."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pkvm_emu.build.report import ToolError, first_error
from pkvm_emu.errors import UsageError

TARGET = "aarch64-linux-gnu"
KCFI = "-fsanitize=kcfi"
KCFI_NORMALIZE = "-fsanitize-cfi-icall-experimental-normalize-integers"

_VERSIONS = range(30, 13, -1)
_TIMEOUT_SECONDS = 300


@dataclass
class Toolchain:
    """A compiler and its linker.

    ``clang`` and ``lld`` are argument prefixes (``["clang-19"]`` or ``["…/zig", "clang"]``), ``builtin_headers`` the
    directory of the compiler's own headers (``stdarg.h`` …) or None.
    """

    name: str
    clang: tuple[str, ...]
    lld: tuple[str, ...]
    version: str
    builtin_headers: Path | None
    _supported: dict[tuple[str, ...], bool] = field(default_factory=dict)

    def supports(self, *flags: str) -> bool:
        """True if the compiler takes *flags* for AArch64: an empty function is compiled, and the answer remembered."""
        if flags not in self._supported:
            with tempfile.TemporaryDirectory(prefix="pkvm-emu-probe-") as directory:
                source = Path(directory, "probe.c")
                source.write_text("int probe(int a);\nint probe(int a) { return a; }\n")
                argv = [*self.clang, f"--target={TARGET}", "-Werror", *flags, "-c", str(source)]
                self._supported[flags] = _probe([*argv, "-o", str(source.with_suffix(".o"))]) is not None
        return self._supported[flags]

    def compile(self, arguments: Sequence[str]) -> str:
        """Run the compiler for AArch64 with *arguments*; its warnings. Raises ToolError with the first error line."""
        return _run([*self.clang, f"--target={TARGET}", *arguments], "compile")

    def link(self, arguments: Sequence[str]) -> str:
        """Run the linker with *arguments*; its warnings. Raises ToolError with the first error line."""
        return _run([*self.lld, *arguments], "link")


def find_toolchain() -> Toolchain:
    """The compiler to use: a system clang with ld.lld where there is one, else the ``ziglang`` package.

    ``PKVM_EMU_CLANG`` and ``PKVM_EMU_LLD`` name other programs. A clang that lacks kCFI is taken only if nothing
    better is installed. Raises UsageError when nothing is found.
    """
    return _find(*(os.environ.get(name) for name in ("PATH", "PKVM_EMU_CLANG", "PKVM_EMU_LLD")))


@functools.lru_cache(maxsize=4)
def _find(*environment: str | None) -> Toolchain:
    """The search itself, done once for each *environment* in the life of the process."""
    working = []
    for candidate in _candidates():
        if not candidate.supports("-mgeneral-regs-only", "-ffixed-x18", "-mbranch-protection=pac-ret"):
            continue
        if candidate.supports(KCFI, KCFI_NORMALIZE):
            return candidate
        working.append(candidate)
    if working:
        return working[0]
    raise UsageError("no compiler for AArch64: install clang and lld (19 or newer), or `pip install 'pkvm-emu[build]'`")


def _candidates() -> Iterator[Toolchain]:
    chosen = os.environ.get("PKVM_EMU_CLANG")
    if chosen:
        clang = shutil.which(chosen)
        lld = shutil.which(os.environ.get("PKVM_EMU_LLD", "ld.lld"))
        if clang is None or lld is None:
            missing = chosen if clang is None else os.environ.get("PKVM_EMU_LLD", "ld.lld")
            raise UsageError(
                f"{missing} is not a program: set PKVM_EMU_CLANG and PKVM_EMU_LLD to a clang and its ld.lld"
            )
        yield _system_clang(clang, lld)
        return
    for suffix in ("", *(f"-{version}" for version in _VERSIONS)):
        clang = shutil.which(f"clang{suffix}")
        lld = shutil.which(f"ld.lld{suffix}") or shutil.which("ld.lld")
        if clang and lld:
            yield _system_clang(clang, lld)
    zig = _ziglang()
    if zig is not None:
        yield zig


def _system_clang(clang: str, lld: str) -> Toolchain:
    version = (_probe([clang, "--version"]) or "clang").splitlines()[0]
    headers = (_probe([clang, "-print-file-name=include"]) or "").strip()
    return Toolchain("clang", (clang,), (lld,), version, Path(headers) if Path(headers).is_dir() else None)


def _ziglang() -> Toolchain | None:
    spec = importlib.util.find_spec("ziglang")
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(next(iter(spec.submodule_search_locations)))
    for name in ("zig", "zig.exe"):
        program = root / name
        if program.is_file():
            # `zig clang` is the plain clang driver: no flags of Zig's own, no cache directory.
            version = (_probe([str(program), "clang", "--version"]) or "clang").splitlines()[0]
            return Toolchain(
                "ziglang",
                (str(program), "clang"),
                (str(program), "ld.lld"),
                f"{version} (ziglang)",
                root / "lib" / "include",
            )
    return None


def _probe(argv: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _run(argv: Sequence[str], what: str) -> str:
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolError(f"cannot run {argv[0]} to {what}: {error}", command=argv) from error
    output = done.stdout + done.stderr
    if done.returncode != 0:
        message = first_error(output) or f"{Path(argv[0]).name} failed with status {done.returncode}"
        raise ToolError(message, re.sub(r"\x1b\[[0-9;]*m", "", output), argv)
    return output
