"""Everything that is known of a module without running it, as one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pkvm_emu.abi.generation import Generation, generation
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.inspect.entry import EntryPoints, find_init_functions, read_entry_points
from pkvm_emu.inspect.flow import Flow
from pkvm_emu.inspect.functions import CodeMap
from pkvm_emu.inspect.hardware import HardwareFacts, read_hardware
from pkvm_emu.inspect.identity import (
    Build,
    Identity,
    SectionInfo,
    StructModule,
    read_build,
    read_identity,
    read_sections,
    read_struct_module,
)
from pkvm_emu.inspect.imports import Exported, Import, read_exports, read_imports
from pkvm_emu.inspect.ops_use import OpsFacts, read_ops
from pkvm_emu.inspect.program import Program
from pkvm_emu.inspect.tracing import TracingFacts, read_tracing


@dataclass(frozen=True, slots=True)
class Inspection:
    """The facts by topic. ``complete`` is False when the data flow stopped at its limit of work, or
    left sections out because there is too much code: calls may be missing then."""

    identity: Identity
    build: Build
    struct_module: StructModule
    has_el2: bool
    sections: list[SectionInfo]
    entry_points: EntryPoints
    ops: OpsFacts
    hardware: HardwareFacts
    imports: list[Import]
    exports: list[Exported]
    tracing: TracingFacts
    complete: bool

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists, for JSON; the keys are the attributes' names."""
        return asdict(self)


def inspect_module(
    file: ModuleFile, others: Sequence[ModuleFile] = (), android: str | int | Generation | None = None
) -> Inspection:
    """Find out what a module is and does, without running it.

    Args:
        file: the module.
        others: modules that are given together with it and may export what it needs.
        android: the generation whose numbers count; None: that of the module.

    Raises:
        InputError: the module cannot be linked.
        UsageError: no such generation.
    """
    identity = read_identity(file)
    numbers: Generation | None = None
    if android is not None or identity.generation is not None:
        numbers = generation(android if android is not None else identity.generation)
    program = Program(file, numbers)
    code = CodeMap(program)
    flow = Flow(program, code)
    flow.run(1)
    inits = find_init_functions(flow)
    flow.run(2, inits.functions)
    flow.finish()
    build = read_build(program, code)
    return Inspection(
        identity,
        build,
        read_struct_module(file, numbers, inits.slot, build.instrumentation),
        file.has_el2,
        read_sections(program),
        read_entry_points(program, flow, inits),
        read_ops(flow),
        read_hardware(program, code, flow),
        read_imports(file, others),
        read_exports(file),
        read_tracing(program),
        flow.complete and not code.left_out,
    )
