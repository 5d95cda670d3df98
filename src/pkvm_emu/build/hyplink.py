"""The EL2 half of a module: partial link, ``.hyp.reloc``, and the ``__kvm_nvhe_`` prefix on every symbol.

Source of the facts: ``arch/arm64/kvm/hyp/nvhe/{Makefile.nvhe,module.lds.S}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pkvm_emu.build.elfobj import SHN_UNDEF, STB_WEAK, ElfObject
from pkvm_emu.build.generation import BuildGeneration, HypSection
from pkvm_emu.build.hyprel import SECTION_SYMBOL_PREFIX, add_hyp_relocations
from pkvm_emu.build.report import BuildLog
from pkvm_emu.build.toolchain import Toolchain
from pkvm_emu.errors import BuildError

SYMBOL_PREFIX = "__kvm_nvhe_"


def hyp_linker_script(generation: BuildGeneration) -> str:
    """The script of the EL2 partial link: input sections collapse into the ``.hyp.*`` sections of *generation*."""
    body = "".join(_output_section(section) for section in (*generation.sections, *generation.unmapped_sections))
    return f"SECTIONS {{\n{body}  /DISCARD/ : {{ *(.note.gnu.property) }}\n}}\n"


def _output_section(section: HypSection) -> str:
    parts = [f"{SECTION_SYMBOL_PREFIX}{section.name} = .;"]
    if section.start_symbol:
        parts.append(f"{section.start_symbol} = .;")
    parts += section.inputs
    if section.end_symbol:
        parts.append(f"{section.end_symbol} = .;")
    return f"  {section.name} : {{ {' '.join(parts)} }}\n"


def prefix_symbols(target: ElfObject, prefix: str) -> None:
    """Put *prefix* in front of every symbol name, those of files and of mapping symbols included."""
    for symbol in target.symbols:
        if symbol.name:
            symbol.name = prefix + symbol.name


def undefined_symbols(target: ElfObject) -> list[str]:
    """Names of the symbols that *target* needs from elsewhere, in table order; weak ones are not needed."""
    return [
        symbol.name
        for symbol in target.symbols
        if symbol.name and symbol.section == SHN_UNDEF and symbol.bind != STB_WEAK
    ]


def link_hyp_object(
    toolchain: Toolchain, generation: BuildGeneration, objects: Sequence[Path], output: Path, log: BuildLog
) -> ElfObject:
    """Link the EL2 *objects* to *output* (``kvm_nvhe.o``), ready to be linked into a module; the finished object.

    Raises BuildError for relocations that cannot work at EL2.
    """
    script = output.with_name("hyp.lds")
    script.write_text(hyp_linker_script(generation))
    partial = output.with_name("kvm_nvhe.tmp.o")
    arguments = ["-r", "-T", str(script), "-o", str(partial), *map(str, objects)]
    log.note(toolchain.link(arguments))
    log.command([*toolchain.lld, *arguments])
    target = ElfObject.read(partial)
    try:
        count = add_hyp_relocations(target)
    except BuildError as error:
        sources = ", ".join(path.name for path in objects)
        raise BuildError(f"{error} [in {sources}]") from error
    log.step("HYPREL", f"{count} pointers in .hyp.reloc")
    prefix_symbols(target, SYMBOL_PREFIX)
    output.write_bytes(target.serialize())
    return target
