"""The last steps of a module: the generated ``.mod.c``, the module linker script, and the link to a ``.ko``.

Source of the facts: ``scripts/module.lds.S``, ``arch/arm64/include/asm/module.lds.h``, ``scripts/mod/modpost.c``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pkvm_emu.build.elfobj import SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHT_NOBITS, ElfObject, Section
from pkvm_emu.build.generation import BuildGeneration
from pkvm_emu.build.hyprel import RELOCATION_SECTION

PAGE_SIZE = 4096
TRAMPOLINE_BYTES = 20
"""The function-tracing trampoline: the last five instructions of ``.hyp.text`` (CONFIG_PKVM_FTRACE)."""

_BEFORE = """\
  /DISCARD/ : { *(.discard) *(.discard.*) *(.note.gnu.property) }
  __ksymtab : ALIGN(8) { *(SORT(___ksymtab+*)) }
  __ksymtab_gpl : ALIGN(8) { *(SORT(___ksymtab_gpl+*)) }
  .altinstructions : ALIGN(8) { *(.altinstructions) }
  __bug_table : ALIGN(8) { *(__bug_table) }
  __jump_table : ALIGN(8) { *(__jump_table) }
  __ex_table : ALIGN(4) { *(__ex_table) }
  .plt : { *(.plt) BYTE(0) }
  .init.plt : { *(.init.plt) BYTE(0) }
  .text.ftrace_trampoline : { *(.text.ftrace_trampoline) BYTE(0) }
  .init.eh_frame : { *(.eh_frame) }
"""
_AFTER = """\
  _hyp_events : ALIGN(8) { *(SORT(_hyp_events.*)) *(_hyp_events) }
  .text : { *(.text .text.[0-9a-zA-Z_]*) }
  .init.text : { *(.init.text .init.text.*) }
  .exit.text : { *(.exit.text .exit.text.*) }
"""


@dataclass(frozen=True)
class ModuleFacts:
    """What the generated source says of a module: names, and whether it has functions to load and to unload it."""

    name: str
    depends: tuple[str, ...]
    aliases: tuple[str, ...]
    has_init: bool
    has_exit: bool


def module_source(facts: ModuleFacts, generation: BuildGeneration) -> str:
    """The text of ``NAME.mod.c``: ``struct module`` and the strings of ``.modinfo`` that the build adds."""
    members = [".name = KBUILD_MODNAME,"]
    if facts.has_init:
        members.append(".init = init_module,")
    if facts.has_exit:
        members.append(".exit = cleanup_module,")
    lines = [
        "#include <linux/module.h>",
        f'MODULE_INFO(vermagic, "{generation.vermagic}");',
        "MODULE_INFO(name, KBUILD_MODNAME);",
        'struct module __this_module __attribute__((section(".gnu.linkonce.this_module"), used)) = {',
        *(f"\t{member}" for member in members),
        "};",
        f'MODULE_INFO(depends, "{",".join(facts.depends)}");',
        *(f'MODULE_INFO(alias, "{alias}");' for alias in facts.aliases),
    ]
    return "\n".join(lines) + "\n"


def module_linker_script(generation: BuildGeneration, tracing: bool = False) -> str:
    """The script of the final link: the EL2 sections page by page, in the order that the kernel's loader expects.

    *tracing* keeps the last bytes of ``.hyp.text`` free for the function-tracing trampoline (android16).
    """
    lines = [_BEFORE]
    for section in generation.sections:
        room = TRAMPOLINE_BYTES if tracing and section.name == ".hyp.text" else 0
        end = f". = ALIGN(. + {room}, {PAGE_SIZE});" if room else f". = ALIGN({PAGE_SIZE});"
        lines.append(f"  {section.name} : ALIGN({PAGE_SIZE}) {{ *({section.name}) {end} }}\n")
    lines.append(f"  {RELOCATION_SECTION} : ALIGN(4) {{ *({RELOCATION_SECTION}) }}\n")
    return f"SECTIONS {{\n{''.join(lines)}{_AFTER}}}\n"


def placeholder_object(generation: BuildGeneration) -> bytes:
    """An object with every EL2 section at size 0, so that the sections exist in modules without EL2 code too."""
    target = ElfObject()
    for name in (".plt", ".init.plt", ".text.ftrace_trampoline"):
        target.add_section(Section(name, flags=SHF_ALLOC | SHF_EXECINSTR))
    for section in generation.sections:
        if section.name == ".hyp.bss":
            target.add_section(Section(section.name, SHT_NOBITS, SHF_ALLOC | SHF_WRITE))
        elif section.name == ".hyp.text":
            target.add_section(Section(section.name, flags=SHF_ALLOC | SHF_EXECINSTR))
        else:
            target.add_section(Section(section.name, flags=SHF_ALLOC))
    target.add_section(Section(RELOCATION_SECTION, flags=SHF_ALLOC, align=4))
    return target.serialize()


def link_arguments(script: Path, objects: Sequence[Path], output: Path) -> list[str]:
    """The linker's arguments for a module. The build id is a hash of the content, so it is reproducible."""
    return ["-r", "--build-id=sha1", "-T", str(script), "-o", str(output), *map(str, objects)]
