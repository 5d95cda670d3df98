"""Who made the module and how it was built, from its headers, its symbols and the instructions that options leave behind."""

from __future__ import annotations

from dataclasses import dataclass

from pkvm_emu.abi.generation import Generation
from pkvm_emu.arch import insn
from pkvm_emu.elf.detect import detect_generation_name
from pkvm_emu.elf.elements import printable
from pkvm_emu.elf.module_file import HYP_MAPPED_SECTIONS, THIS_MODULE_SECTION, ModuleFile
from pkvm_emu.inspect.functions import CodeMap
from pkvm_emu.inspect.program import Program

SCS_PUSH = 0xF800_865E
"""``str x30, [x18], #8``: the prologue of code with the shadow call stack."""
_BTI = frozenset({insn.BTI, insn.BTI_C, insn.BTI_J, insn.BTI_JC})
_PAC = frozenset({insn.PACIASP, 0xD503_237F})
_NAME_OFFSET = 24
_DEBUG_IMPORTS = (
    ("KASAN", ("__asan_", "__hwasan_", "kasan_")),
    ("KCSAN", ("__tsan_",)),
    ("UBSAN", ("__ubsan_handle_",)),
    ("KCOV", ("__sanitizer_cov_",)),
    (
        "lock debugging",
        ("lockdep_", "lock_acquire", "lock_release", "debug_check_no_locks", "__mutex_init_", "do_raw_spin_"),
    ),
    ("kmemleak", ("kmemleak_",)),
    ("stack protector", ("__stack_chk_fail",)),
)


@dataclass(frozen=True, slots=True)
class Signature:
    """The appended signature; ``hash`` is None where its format does not tell, ``length`` in bytes with the trailer."""

    id_type: str
    hash: str | None
    signer: str
    length: int


@dataclass(frozen=True, slots=True)
class Identity:
    """What the file says about itself. ``generation`` is None when nothing tells, ``generation_reason`` says why."""

    file: str
    name: str
    generation: str | None
    generation_reason: str
    vermagic: str
    license: str | None
    author: list[str]
    description: str | None
    version: str | None
    srcversion: str | None
    scmversion: str | None
    depends: list[str]
    parameters: list[str]
    signature: Signature | None


@dataclass(frozen=True, slots=True)
class Build:
    """How the module was built.

    Attributes:
        kcfi_el1, kcfi_el2: ``plain``, ``normalised``, ``jump-table`` (5.15's) or None.
        scs_el1, bti_el1, pac_el1, bti_el2, pac_el2: whether instructions of the option are there.
        modversions, btf, dwarf, compilers: as it says.
        instrumentation: names of sanitizers and debug options whose helpers the module imports.
        lto: ``clang LTO`` where symbols show it, else None (no proof of the contrary).
        va_bits, va_bits_reason: address bits of the kernel that the EL1 code was compiled for, and what tells; None: nothing does.
        kasan_shadow: the offset of the KASAN shadow that the code reads by itself; None: it does not.
    """

    kcfi_el1: str | None
    kcfi_el2: str | None
    scs_el1: bool
    bti_el1: bool
    pac_el1: bool
    bti_el2: bool
    pac_el2: bool
    modversions: bool
    btf: bool
    dwarf: bool
    compilers: list[str]
    instrumentation: list[str]
    lto: str | None
    va_bits: int | None
    va_bits_reason: str | None
    kasan_shadow: int | None


@dataclass(frozen=True, slots=True)
class StructModule:
    """``struct module``: bytes, offsets of members found, and what ``arch.hyp`` lies at compared with stock builds.

    ``layout`` is ``stock``, ``debug build``, ``randomised`` (RANDSTRUCT), ``other`` or ``unknown``.
    """

    size: int | None
    name_offset: int | None
    init_offset: int | None
    exit_offset: int | None
    arch_hyp_offset: int | None
    arch_hyp_stock: int | None
    layout: str


@dataclass(frozen=True, slots=True)
class SectionInfo:
    """A section that takes memory: bytes, protection at its exception level (``R-X``)."""

    name: str
    el: int
    size: int
    prot: str


def read_identity(file: ModuleFile) -> Identity:
    """Collect the identity of a module."""
    detected = detect_generation_name(file)
    info = {key: [printable(value) for value in values] for key, values in file.modinfo.items()}

    def first(key: str) -> str | None:
        return info.get(key, [None])[0] or None

    parameters = sorted({value.partition(":")[0] + ":" + value.partition(":")[2] for value in info.get("parmtype", [])})
    signature = None
    if file.signature is not None:
        found = file.signature
        signer = printable(found.signer.decode("utf-8", "replace"))
        signature = Signature(found.id_type, found.hash_name, signer, found.length)
    return Identity(
        file.file_name, file.name, detected.name, detected.reason, printable(file.vermagic), first("license"),
        info.get("author", []), first("description"), first("version"), first("srcversion"), first("scmversion"),
        [printable(name) for name in file.depends], parameters, signature,
    )  # fmt: skip


def read_build(program: Program, code: CodeMap) -> Build:
    """Collect what the code and the symbols tell of the build."""
    file = program.file
    words: dict[bool, set[int]] = {False: set(), True: set()}
    for section in code.sections:
        words[program.is_el2(section)].update(word for _, word in code.instructions(section))
    names = {symbol.name for symbol in file.symbols}
    imported = {symbol.name for symbol in file.symbols if not symbol.is_defined}
    jump_tables = any(name.endswith(".cfi_jt") for name in names) or "__cfi_check" in names
    el1, el2 = file.kcfi.el1, file.kcfi.el2
    is_lto = jump_tables or any(".llvm." in name for name in names)
    comment = file.section(".comment")
    compilers = (
        [] if comment is None else [text.decode("utf-8", "replace") for text in comment.data.split(b"\0") if text]
    )
    return Build(
        el1 or ("jump-table" if jump_tables else None),
        el2,
        SCS_PUSH in words[False],
        bool(_BTI & words[False]),
        bool(_PAC & words[False]),
        bool(_BTI & words[True]),
        bool(_PAC & words[True]),
        bool(file.versions),
        file.section(".BTF") is not None,
        file.section(".debug_info") is not None,
        list(dict.fromkeys(printable(text) for text in compilers)),
        [name for name, prefixes in _DEBUG_IMPORTS if any(symbol.startswith(prefixes) for symbol in imported)],
        "clang LTO" if is_lto else None,
        None if file.va_bits is None else file.va_bits.bits,
        None if file.va_bits is None else file.va_bits.reason,
        None if file.inlined_shadow is None else file.inlined_shadow.offset,
    )


def read_struct_module(
    file: ModuleFile, generation: Generation | None, init_slot: int | None, instrumentation: list[str]
) -> StructModule:
    """Compare ``struct module`` with that of stock builds.

    Args:
        file: the module.
        generation: its generation, None when not known.
        init_slot: offset at which its code stores the EL2 init function, None when that was not found.
        instrumentation: debug options, which make the structure larger.
    """
    section = file.section(THIS_MODULE_SECTION)
    if section is None:
        return StructModule(None, None, None, None, None, None, "unknown")
    place = section.data.find(file.name.encode() + b"\0")
    name_offset = place if place >= 0 else None
    this = file.this_module
    arch_hyp = stock = None
    layout = "unknown"
    if generation is not None:
        stock = generation.default_hyp_offset
        if init_slot is not None and init_slot >= generation.hyp_init_to_base:
            arch_hyp = init_slot - generation.hyp_init_to_base
    is_debug = any(name in ("KASAN", "KCSAN", "lock debugging", "kmemleak", "KCOV") for name in instrumentation)
    if name_offset is not None and name_offset != _NAME_OFFSET:
        layout = "randomised"
    elif arch_hyp is not None:
        layout = "stock" if arch_hyp == stock else "debug build" if is_debug else "other"
    return StructModule(
        section.size, name_offset, this.init_offset if this else None, this.exit_offset if this else None,
        arch_hyp, stock, layout,
    )  # fmt: skip


def read_sections(program: Program) -> list[SectionInfo]:
    """The sections that take memory and are not empty, EL1 first, in file order."""
    found = []
    for section in program.file.sections:
        if section.index not in program.image.layout.placements or not section.size:
            continue
        el = 2 if program.is_el2(section) else 1
        prot = HYP_MAPPED_SECTIONS[section.name] if el == 2 else _el1_prot(program, section.index)
        found.append(SectionInfo(section.name, el, section.size, {"rx": "R-X", "rw": "RW-", "ro": "R--"}[prot]))
    return sorted(found, key=lambda row: row.el)


def _el1_prot(program: Program, index: int) -> str:
    region = program.image.layout.region_at(program.image.layout.placements[index])
    return region.prot if region is not None else "ro"
