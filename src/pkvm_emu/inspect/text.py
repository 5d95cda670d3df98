"""An inspection as text: one group a topic, readable without colour."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from pkvm_emu.inspect.hardware import FirmwareCall, HardwareFacts
from pkvm_emu.inspect.imports import Import
from pkvm_emu.inspect.inspection import Inspection
from pkvm_emu.inspect.ops_use import OpsFacts, OpUse
from pkvm_emu.inspect.program import Place

_SITES_SHOWN = 3
_WIDTH = 118
_STATUS_TEXT = {
    "served": "served",
    "variable": "served, variables",
    "module": "given by another module",
    "companion": "served in place of a module that is not given",
    "stub": "not served: a call stops the run",
    "module needed": "EL2 code of another module: give that module too",
    "weak": "weak, 0 when nobody defines them",
}


class TextReport:
    """Writes the report.

    Args:
        inspection: the facts.
        verbose: every call site with its arguments instead of the first few places.
        heading: how a group's title is printed.
    """

    def __init__(
        self, inspection: Inspection, verbose: bool = False, heading: Callable[[str], str] = lambda text: text
    ) -> None:
        self._facts = inspection
        self._shown = 1 << 30 if verbose else _SITES_SHOWN
        self._verbose = verbose
        self._heading = heading

    def text(self) -> str:
        """The whole report."""
        groups = (
            ("", self._identity()),
            ("Build", self._build()),
            ("Sections", self._sections()),
            ("Entry points", self._entry_points()),
            ("Ops used", self._ops(self._facts.ops)),
            ("Registered at EL2", self._registered(self._facts.ops)),
            ("SMC and HVC", self._calls(self._facts.hardware.calls)),
            ("System registers at EL2", self._system(self._facts.hardware)),
            ("Device tree and MMIO", self._tree(self._facts.hardware)),
            ("Symbols needed", self._imports(self._facts.imports)),
            ("Symbols exported", (f"{row.name} (EL{row.el})" for row in self._facts.exports)),
            ("Tracing", self._tracing()),
            ("Not found out", self._limits()),
        )
        lines: list[str] = []
        for title, rows in groups:
            body = list(rows)
            if not body:
                continue
            if title:
                lines += ["", self._heading(title)]
            lines += [f"  {row}" if title else row for row in body]
        return "\n".join(lines) + "\n"

    def _identity(self) -> Iterator[str]:
        who = self._facts.identity
        generation = who.generation or "generation not known"
        half = "EL1 and EL2" if self._facts.has_el2 else "no EL2 code (its .hyp.text is empty)"
        yield self._heading(f"{who.name}: {generation}, {half}")
        yield f"  file         {who.file}"
        yield f"  built for    {who.generation or '?'}: {who.generation_reason}"
        pairs = (
            ("vermagic", who.vermagic),
            ("licence", who.license),
            ("author", ", ".join(who.author)),
            ("description", who.description),
            ("version", who.version),
            ("srcversion", who.srcversion),
            ("scmversion", who.scmversion),
            ("depends", ", ".join(who.depends)),
            ("parameters", ", ".join(who.parameters)),
        )
        yield from (f"  {key:<12} {value}" for key, value in pairs if value)
        signed = who.signature
        if signed is None:
            yield "  signature    none"
        else:
            by = f", signer {signed.signer}" if signed.signer else ""
            yield f"  signature    {signed.id_type}, {signed.hash or 'unknown hash'}{by}, {signed.length} bytes, not verified"

    def _build(self) -> Iterator[str]:
        build, layout = self._facts.build, self._facts.struct_module
        yield f"EL1: {_options(build.kcfi_el1, SCS=build.scs_el1, BTI=build.bti_el1, PAC=build.pac_el1)}"
        if self._facts.has_el2:
            yield f"EL2: {_options(build.kcfi_el2, BTI=build.bti_el2, PAC=build.pac_el2)}"
        present = [name for name in ("modversions", "btf", "dwarf") if getattr(build, name)]
        present += [*build.instrumentation, *([build.lto] if build.lto else [])]
        yield f"with {', '.join(present)}" if present else "without modversions, BTF, DWARF and sanitizers"
        if build.va_bits is not None:
            yield f"for a kernel with {build.va_bits}-bit addresses: {build.va_bits_reason}"
        if build.kasan_shadow is not None:
            yield f"KASAN checks are inlined: they read a shadow at offset {build.kasan_shadow:#x}"
        yield from (f"compiler: {compiler}" for compiler in build.compilers)
        if layout.size is not None:
            found = "arch.hyp not found"
            if layout.arch_hyp_offset is not None:
                stock = f"stock {layout.arch_hyp_stock:#x}" if layout.arch_hyp_stock is not None else "stock unknown"
                found = f"arch.hyp at {layout.arch_hyp_offset:#x} ({stock})"
            yield f"struct module: {layout.size} bytes, {found}, layout {layout.layout}" + {
                "randomised": " (RANDSTRUCT: its name is not where every other build has it)",
                "other": " (another configuration, or RANDSTRUCT)",
            }.get(layout.layout, "")

    def _sections(self) -> Iterator[str]:
        for el in (1, 2):
            rows = [row for row in self._facts.sections if row.el == el]
            if rows:
                total = sum(row.size for row in rows)
                yield f"EL{el}, {total:#x} bytes"
                yield from (f"  {row.name:<32} {row.size:>#9x}  {row.prot}" for row in rows)

    def _entry_points(self) -> Iterator[str]:
        points = self._facts.entry_points
        yield f"EL1 init     {points.init or 'none'}"
        yield f"EL1 cleanup  {points.cleanup or 'none'}"
        if self._facts.has_el2:
            where = f", at {points.stored_at}" if points.stored_at else ""
            yield f"EL2 init     {', '.join(points.el2_init) or '?'} ({points.how}{where})"

    def _ops(self, ops: OpsFacts) -> Iterator[str]:
        for use in ops.ops:
            yield from self._op(use)
        if ops.kept_in:
            yield f"ops pointer kept in: {', '.join(ops.kept_in)}"
        yield from (f"op copied to {text}" for text in ops.copied_to)

    def _op(self, use: OpUse) -> Iterator[str]:
        at = "" if use.offset is None else f" [{use.offset:#05x}]"
        reserve = f" (reserve slot {use.reserve})" if use.reserve else ""
        if not use.calls:
            yield f"{use.name}{at}{reserve}: read, never called: {self._places(use.loads)}"
            return
        yield f"{use.name}{at}{reserve}: {_count(len(use.calls), 'call')}"
        for call in use.calls[: self._shown]:
            notes = ["by offset and type id"] if call.how == "type id" else []
            notes += [call.kcfi_mismatch] if call.kcfi_mismatch else []
            yield f"  {call.place}  ({', '.join(call.arguments)})" + "".join(f" -- {note}" for note in notes)
        if len(use.calls) > self._shown:
            yield f"  and {len(use.calls) - self._shown} more"

    def _registered(self, ops: OpsFacts) -> Iterator[str]:
        for handler in ops.handlers:
            yield f"{handler.by}: {handler.function or 'a function that is not known'} ({handler.place})"
        for call in ops.hypercalls:
            yield f"hypercall: {call.function or 'a function that is not known'} ({call.place})"
        for row in ops.handed_over:
            functions = f": {', '.join(row.functions)}" if row.functions and row.functions != [row.object] else ""
            yield from _wrapped(f"{row.to} gets {row.object} ({row.place}){functions}")

    def _calls(self, calls: list[FirmwareCall]) -> Iterator[str]:
        groups: dict[str, list[Place]] = {}
        for call in calls:
            numbers = " | ".join(f"{value:#x}" for value in call.ids)
            what = f"{numbers} ({call.name})" if numbers else "function id not constant"
            via = "" if call.by.startswith(call.conduit) else f" by {call.by}"
            groups.setdefault(f"EL{call.el} {call.conduit}{via}: {what}", []).append(call.place)
        for text, places in groups.items():
            yield f"{text}: {self._places(places)}"

    def _system(self, hardware: HardwareFacts) -> Iterator[str]:
        for register in hardware.registers:
            uses = [("read", register.reads), ("written", register.writes)]
            parts = [f"{verb} at {self._places(places)}" for verb, places in uses if places]
            yield f"{register.name}: {'; '.join(parts)}"
        for row in hardware.maintenance:
            yield f"{row.operation}: {self._places(row.places)}"

    def _tree(self, hardware: HardwareFacts) -> Iterator[str]:
        for kind in dict.fromkeys(use.kind for use in hardware.tree):
            names = dict.fromkeys(use.name for use in hardware.tree if use.kind == kind)
            yield from _wrapped(f"{kind}: {', '.join(names)}")
        for row in hardware.mappings:
            size = f", {row.size:#x} bytes" if row.size is not None else ""
            yield f"{row.by} of {row.address:#x}{size} ({row.place})"

    def _imports(self, imports: list[Import]) -> Iterator[str]:
        for status, text in _STATUS_TEXT.items():
            names = [
                row.name + (f" ({row.given_by})" if row.given_by else "") for row in imports if row.status == status
            ]
            if names:
                yield f"{text}: {len(names)}"
                yield from (f"  {line}" for line in _wrapped(", ".join(names)))

    def _tracing(self) -> Iterator[str]:
        for event in self._facts.tracing.events:
            fields = ", ".join(f"{field.type} {field.name}" for field in event.fields)
            yield f"event {event.name}({fields}): {event.print_fmt or 'no format'}"
        yield from (f"printk: {text.rstrip()}" for text in self._facts.tracing.printk_formats)

    def _limits(self) -> Iterator[str]:
        if not self._facts.complete:
            yield "there is more code than an inspection goes through: more may be called than is shown"
        if self._facts.ops.unresolved:
            yield f"EL2 calls through pointers of unknown origin: {self._places(self._facts.ops.unresolved)}"

    def _places(self, places: list[Place]) -> str:
        shown = ", ".join(str(place) for place in places[: self._shown])
        more = len(places) - self._shown
        return f"{shown} and {more} more" if more > 0 else shown


def _options(kcfi: str | None, **present: bool) -> str:
    kcfi_text = (
        f"kCFI ({kcfi} type ids)" if kcfi in ("plain", "normalised") else "CFI jump tables" if kcfi else "no kCFI"
    )
    words = [kcfi_text]
    words += [name if is_there else f"no {name}" for name, is_there in present.items()]
    return ", ".join(words)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _wrapped(text: str) -> Iterable[str]:
    line = ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > _WIDTH - 4:
            yield line
            line = "  " + word
        else:
            line = f"{line} {word}" if line else word
    yield line
