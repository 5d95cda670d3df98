"""What breaks when a binary meets the hypervisor of another generation: by member, and by the place that uses it.

``struct pkvm_module_ops`` has no version: a module calls what is at an offset, whatever it is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pkvm_emu.abi.generation import Generation, generation
from pkvm_emu.abi.ops import OpSlot
from pkvm_emu.elf.detect import detect_generation_name
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.errors import UsageError
from pkvm_emu.inspect.inspection import Inspection, inspect_module
from pkvm_emu.inspect.ops_use import OpUse

_SHOWN_PLACES = 4


@dataclass(frozen=True, slots=True)
class AbiBreak:
    """One thing that is different.

    Attributes:
        kind: ``moved`` or ``missing`` (an op), ``signature`` (an op with another prototype), ``handler`` (what handlers get),
            ``struct`` (another size or offset), ``kcfi`` (other type ids).
        member: the member, handler or struct.
        text: what is different, in one line.
        places: where the module relies on it.
    """

    kind: str
    member: str
    text: str
    places: tuple[str, ...]

    def __str__(self) -> str:
        more = len(self.places) - _SHOWN_PLACES
        shown = ", ".join(self.places[:_SHOWN_PLACES]) + (f" and {more} more" if more > 0 else "")
        return f"{self.kind:<9} {self.member}: {self.text}{f' (at {shown})' if shown else ''}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def abi_breaks(
    file: ModuleFile, target: str | int | Generation, inspection: Inspection | None = None
) -> list[AbiBreak]:
    """What breaks when ``file`` runs on ``target``; nothing where it was built for it, or for one with the same ABI.

    Args:
        file: the module.
        target: the generation to run on.
        inspection: what is known of the module for its own generation, where that was found out already.

    Raises:
        UsageError: nothing tells which generation the module was built for.
        InputError: the module cannot be linked.
    """
    found = detect_generation_name(file)
    if found.name is None:
        raise UsageError(f"{file.file_name}: {found.reason}, so there is nothing to compare with")
    own, other = generation(found.name), generation(target)
    if own.name == other.name or not file.has_el2:
        return []
    known = inspection or inspect_module(file)
    breaks = list(_ops(known.ops.ops, own, other))
    breaks += _handlers(known, own, other)
    breaks += _structs(known, own, other)
    breaks += _kcfi(file, other)
    return breaks


def _ops(uses: Iterable[OpUse], own: Generation, other: Generation) -> Iterator[AbiBreak]:
    for use in uses:
        if use.offset is None:
            continue
        slot = own.ops.by_offset.get(use.offset)
        if slot is None or not slot.prototype:
            continue
        places = tuple(str(call.place) for call in use.calls) or tuple(str(place) for place in use.loads)
        there = other.ops.by_offset.get(use.offset)
        same = other.ops.by_name.get(slot.name)
        if same is None or not same.prototype:
            yield AbiBreak("missing", slot.name, f"{other.name} has none; {_at(use.offset, there, other)}", places)
        elif same.offset != use.offset:
            text = f"is at {same.offset:#x} in {other.name} and not at {use.offset:#x}; {_at(use.offset, there, other)}"
            yield AbiBreak("moved", slot.name, text, places)
        elif _plain(same.prototype, other) != _plain(slot.prototype, own):
            text = f"is {same.prototype} in {other.name}, the module calls {slot.prototype}"
            yield AbiBreak("signature", slot.name, text, places)


def _at(offset: int, slot: OpSlot | None, other: Generation) -> str:
    if slot is None:
        return f"its struct ends before {offset:#x}"
    if not slot.prototype:
        return f"slot {offset:#x} is empty there: the call is one of NULL"
    return f"the call reaches {slot.name}"


def _plain(prototype: str, gen: Generation) -> str:
    # What handlers get is said once, and not for each op that takes one.
    return prototype.replace(gen.handler_context, "regs")


def _handlers(known: Inspection, own: Generation, other: Generation) -> Iterator[AbiBreak]:
    places = tuple(f"{entry.function or '?'} by {entry.by}" for entry in (*known.ops.hypercalls, *known.ops.handlers))
    if own.handler_context != other.handler_context and places:
        text = f"handlers get struct {other.handler_context} * from {other.name}, these expect struct {own.handler_context} *"
        yield AbiBreak("handler", own.handler_context, text, places)
    if own.dyn_hcall_presets_x0 and not other.dyn_hcall_presets_x0 and known.ops.hypercalls:
        names = tuple(entry.function or "?" for entry in known.ops.hypercalls)
        yield AbiBreak(
            "handler",
            "x0 of hypercalls",
            f"{other.name} does not store SMCCC_RET_SUCCESS into x0 before a handler runs, {own.name} does",
            names,
        )


def _structs(known: Inspection, own: Generation, other: Generation) -> Iterator[AbiBreak]:
    where = (str(known.entry_points.stored_at),) if known.entry_points.stored_at else ()
    for name, ours, theirs in (
        ("struct pkvm_module_ops", own.ops.size, other.ops.size),
        ("struct pkvm_el2_module", own.el2_module.size, other.el2_module.size),
    ):
        if ours != theirs:
            yield AbiBreak("struct", name, f"has {theirs} bytes in {other.name}, {ours} in {own.name}", where)


def _kcfi(file: ModuleFile, other: Generation) -> Iterator[AbiBreak]:
    flavour = file.kcfi.el2 or "none"
    if flavour != other.el2_kcfi and flavour != "none":
        text = f"EL2 code checks {flavour} type ids, those of {other.name} are {other.el2_kcfi}"
        yield AbiBreak("kcfi", "type ids", text, ())
    elif flavour == "none" and other.el2_kcfi != "none":
        text = f"EL2 code has no type ids, and {other.name} checks {other.el2_kcfi} ones in front of what it calls"
        yield AbiBreak("kcfi", "type ids", text, ())
