"""Entry points: init_module and cleanup_module at EL1, and the EL2 init function with the proof of which one it is."""

from __future__ import annotations

from dataclasses import dataclass

from pkvm_emu.abi.ops import kcfi_mode_of
from pkvm_emu.elf.arch_hyp import static_evidence
from pkvm_emu.elf.elements import NVHE_PREFIX, STT_FUNC
from pkvm_emu.elf.kcfi import word_before
from pkvm_emu.inspect.flow import Flow
from pkvm_emu.inspect.program import Place, Program
from pkvm_emu.inspect.values import atoms, numbers


@dataclass(frozen=True, slots=True)
class EntryPoints:
    """Functions that the kernel and the hypervisor enter.

    Attributes:
        init, cleanup: EL1 functions, None when there is none.
        el2_init: EL2 init functions, normally one.
        how: why they are taken for that.
        init_slot: byte offset in ``struct module`` that the first is stored at; None when it was found otherwise.
    """

    init: str | None
    cleanup: str | None
    el2_init: list[str]
    how: str
    init_slot: int | None
    stored_at: Place | None


@dataclass(frozen=True, slots=True)
class InitFunctions:
    """EL2 init functions by address; see :class:`EntryPoints`."""

    functions: tuple[int, ...]
    how: str
    slot: int | None


def find_init_functions(flow: Flow) -> InitFunctions:
    """Find the EL2 init function; ``flow`` has to have run for EL1.

    In this order: what EL1 code stores to ``struct module``; the function with the init prototype's kCFI id; the function
    whose kCFI id EL1 expects to be the init prototype's; a function named ``*init`` that EL1 refers to.
    """
    program = flow.program
    if not program.file.has_el2:
        return InitFunctions((), "no EL2 code", None)
    for strategy in (_stored, _by_kcfi, _by_expected_kcfi, _by_name):
        found = strategy(flow)
        if found.functions:
            return found
    return InitFunctions((), "not found", None)


def read_entry_points(program: Program, flow: Flow, inits: InitFunctions) -> EntryPoints:
    """Entry points in words."""
    names = {symbol.name for symbol in program.file.symbols if symbol.in_section}
    stored_at = next(
        (
            program.place(event.va)
            for event in flow.events
            if event.kind == "store"
            and event.target is not None
            and inits.slot is not None
            and event.target == program.this_module[0] + inits.slot
        ),
        None,
    )
    return EntryPoints(
        "init_module" if "init_module" in names else None,
        "cleanup_module" if "cleanup_module" in names else None,
        [program.name(va) for va in inits.functions],
        inits.how,
        inits.slot,
        stored_at,
    )


def _stored(flow: Flow) -> InitFunctions:
    program = flow.program
    start, end = program.this_module
    places: dict[int, list[int]] = {}
    for va, value in sorted(flow.memory.items()):
        if start <= va < end:
            functions = [found for found in numbers(value) if program.is_hyp_text(found)]
            if functions and len(functions) == len(list(atoms(value))):
                places[va - start] = functions
    if not places:
        return InitFunctions((), "", None)
    slot = _likely_slot(flow, sorted(places))
    return InitFunctions(tuple(places[slot]), f"stored to struct module+{slot:#x} before the load", slot)


def _likely_slot(flow: Flow, slots: list[int]) -> int:
    """The slot that the stock layout has, else the first that the code is seen to store to."""
    generation = flow.program.generation
    if generation is not None and generation.default_hyp_offset + generation.hyp_init_to_base in slots:
        return generation.default_hyp_offset + generation.hyp_init_to_base
    seen = static_evidence(flow.program.file).stores
    return next((slot for slot in slots if slot in seen), slots[0])


def _by_kcfi(flow: Flow) -> InitFunctions:
    program = flow.program
    found = []
    for symbol in program.file.symbols:
        if symbol.type == STT_FUNC and symbol.in_section and symbol.name.startswith(NVHE_PREFIX):
            word = word_before(program.file.object, symbol)
            if word is not None and kcfi_mode_of(word, "el2_init"):
                found.append(program.image.layout.placements[symbol.shndx] + symbol.value)
    return InitFunctions(tuple(sorted(found)), "has the kCFI type id of an EL2 init function", None)


def _by_expected_kcfi(flow: Flow) -> InitFunctions:
    program = flow.program
    names = [name for name, value in program.file.kcfi.type_ids.items() if kcfi_mode_of(value, "el2_init")]
    return InitFunctions(_addresses(program, names), "EL1 expects of it the kCFI type id of an EL2 init function", None)


def _by_name(flow: Flow) -> InitFunctions:
    program = flow.program
    references = sorted({va for va in program.code_references() if program.is_hyp_text(va)})
    names = [va for va in references if program.name(va).endswith("init")]
    return InitFunctions(tuple(names[:1]), "by its name, for want of better", None)


def _addresses(program: Program, names: list[str]) -> tuple[int, ...]:
    values = (program.image.symbol_va(name) for name in names)
    return tuple(sorted(va for va in values if va is not None and program.is_hyp_text(va)))
