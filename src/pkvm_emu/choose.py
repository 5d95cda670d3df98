"""What to boot for a set of modules: the generation, and the machine profile, where the user does not say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pkvm_emu.abi.generation import Generation, generation
from pkvm_emu.elf.detect import detect_generation_name
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.errors import UsageError
from pkvm_emu.machine.profile import MachineProfile


def choose_generation(wanted: str | int | Generation | None, files: Sequence[ModuleFile]) -> Generation:
    """The generation to run: the one asked for, else the one that the modules were built for.

    Raises:
        UsageError: the modules were built for different generations, or for one that is not known.
    """
    if wanted is not None:
        return generation(wanted)
    found: dict[str, str] = {}
    for file in files:
        detected = detect_generation_name(file)
        if detected.name is None and file.has_el2:
            raise UsageError(f"{file.file_name}: {detected.reason}; say which with --android 14, 15 or 16")
        if detected.name is not None:
            found.setdefault(detected.name, file.file_name)
    if len(found) > 1:
        pairs = ", ".join(f"{file} for {name}" for name, file in found.items())
        raise UsageError(f"the modules were built for different kernels ({pairs}); choose one with --android")
    return generation(next(iter(found), None))


def choose_profile(wanted: MachineProfile, files: Sequence[ModuleFile]) -> MachineProfile:
    """The profile to run: the one asked for, with the address bits that the modules were compiled for where it leaves them open.

    Raises:
        UsageError: modules were compiled for kernels with different address bits.
    """
    if wanted.va_bits is not None:
        return wanted
    found: dict[int, str] = {}
    for file in files:
        if file.va_bits is not None:
            found.setdefault(file.va_bits.bits, f"{file.file_name} for {file.va_bits.bits} ({file.va_bits.reason})")
    if len(found) > 1:
        raise UsageError(
            f"the modules were compiled for kernels with different address bits: {', '.join(found.values())}; "
            "choose one with --machine va39 or va48"
        )
    return replace(wanted, va_bits=next(iter(found), None))
