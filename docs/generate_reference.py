"""Write docs/reference/ from the code: docstrings, registries and the ABI tables.

    python docs/generate_reference.py            # write
    python docs/generate_reference.py --check    # exit status 1 and the names if a file is not what would be written

Needs nothing but the standard library and an installed ``pkvm_emu``; the result depends on the code alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pkvm_emu
from pkvm_emu.abi.generation import GENERATIONS
from pkvm_emu.cli.main import COMMANDS, build_parser
from pkvm_emu.hyp import hypervisor, registry
from pkvm_emu.hyp.op_table import FIRMWARE_OPS
from pkvm_emu.kernel import exports
from pkvm_emu.kernel import registry as kernel_registry

TARGET = Path(__file__).resolve().parent / "reference"
#: Classes whose methods are described where they are inherited.
MIXINS = ("HostActions", "Observations")
#: Classes on the Python page, in this order; what they return is described where it is documented.
PYTHON = (
    ("pkvm_emu", "boot", "System", "Modules", "HvcResult", "MachineProfile", "ModuleFile"),
    ("pkvm_emu.pages", "Pages"),
    ("pkvm_emu.host", "Host", "HostAccess", "HostFault"),
    ("pkvm_emu.explain", "Explanations", "Explanation"),
    ("pkvm_emu.vm", "VirtualMachine", "GuestAccess", "GuestCallResult"),
    ("pkvm_emu.hyp.ownership_log", "PageInfo", "PageEvent", "Refusal"),
    ("pkvm_emu.kernel.modules", "LoadedModule", "ModuleLoadError"),
    ("pkvm_emu.kernel.boot", "BootReport", "ModuleOutcome"),
    ("pkvm_emu.kernel.registry", "kernel_symbol", "kernel_variable", "kernel_part"),
    ("pkvm_emu.hyp.registry", "op", "hypercall"),
    ("pkvm_emu.hyp.el3", "El3Firmware"),
    ("pkvm_emu.machine.machine", "Machine"),
    ("pkvm_emu.build.builder", "build_module", "BuildResult"),
    ("pkvm_emu.errors", "PkvmEmuError", "UsageError", "InputError", "ModuleError", "BuildError", "EmulatorError"),
)
_NOTE = "<!-- Written by docs/generate_reference.py: change the code, not this file. -->\n"
_ROLE = re.compile(r":(?:class|func|meth|data|mod|attr):`~?(?:[\w.]+\.)?(\w+)`")
_LISTS = frozenset({"Args", "Raises", "Attributes"})
_ITEM = re.compile(r"    [\w*]+(, [\w*]+)*: ")
_SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Yields|Note):$")


# Text


def cell(text: str) -> str:
    """Text inside a table: no line breaks, bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """Inline code inside a table."""
    return f"`{cell(text)}`" if text else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table of Markdown."""
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def prose(docstring: str | None) -> str:
    """A docstring in Markdown: double backticks become single ones, roles their names, argument sections lists."""
    lines = _ROLE.sub(r"`\1`", inspect.cleandoc(docstring or "")).replace("``", "`").split("\n")
    out: list[str] = []
    section, in_example = "", False
    for line in lines:
        heading = _SECTION.match(line)
        if in_example:
            in_example = bool(line.strip())
            out += [line] if in_example else ["```", ""]
        elif heading:
            section = heading[1]
            if out and out[-1]:
                out.append("")
            out.append(f"*{section}*\n")
        elif line.lstrip().startswith(">>>"):
            in_example = True
            out += ["```pycon", line.strip()]
        elif section and line.startswith("    "):
            out.append(f"- {line.strip()}" if _ITEM.match(line) and section in _LISTS else line.strip())
        else:
            section = section if not line else ""
            out.append(line)
    if in_example:
        out.append("```")
    return "\n".join(out).strip()


def first_line(docstring: str | None) -> str:
    """The whole docstring as one line of Markdown, for tables."""
    return cell(prose(docstring))


def page(title: str, body: Iterable[str]) -> str:
    """One file."""
    return f"{_NOTE}\n# {title}\n\n" + "\n".join(body).rstrip("\n") + "\n"


def ours(function: Any) -> bool:
    """Registered by the package, not by somebody who extends it."""
    return str(function.__module__).startswith("pkvm_emu.")


# Pages


def ops_page() -> Iterator[str]:
    """Every generation's table of ops, and what each op does here."""
    yield "The members of `struct pkvm_module_ops`, by generation, with the prototypes and type ids that modules are"
    yield "compiled against. *Served* says whether there is an implementation here; calling an op that is not served stops"
    yield "the run with its name, caller and arguments. android14-5.15 and android14-6.1 have the same table.\n"
    done: set[str] = set()
    for gen in GENERATIONS:
        if gen.layout in done:
            continue
        done.add(gen.layout)
        names = ", ".join(other.name for other in GENERATIONS if other.layout == gen.layout)
        kcfi = gen.el2_kcfi if gen.el2_kcfi in ("plain", "normalised") else ""
        yield f"## {names}\n"
        yield f"{len(gen.ops.served)} ops, {gen.ops_size} bytes; kCFI at EL2: {gen.el2_kcfi}.\n"
        rows = []
        for slot in gen.ops.served:
            ident = slot.kcfi(kcfi) if kcfi else None
            later = " (a reserve slot that a later release uses)" if slot.lts else ""
            guess = "" if slot.verified else " (prototype inferred)"
            served = "yes" if slot.name in registry.OPS or slot.name in FIRMWARE_OPS else "no"
            rows.append(
                (
                    f"{slot.offset:#05x}",
                    f"[`{slot.name}`](#op-{slot.name})" if served == "yes" else f"`{slot.name}`",
                    served,
                    code(slot.prototype),
                    f"`{ident:#010x}`" if ident is not None else "",
                    cell(slot.semantics) + later + guess,
                )
            )
        yield from table(("offset", "op", "served", "prototype", "type id", "what it does on a device"), rows)
        yield ""
    yield "## Served ops\n"
    for name in sorted({*registry.OPS, *FIRMWARE_OPS}):
        served_op = registry.OPS.get(name)
        if served_op is not None and not ours(served_op.function):
            continue
        yield f'<a name="op-{name}"></a>\n### {name}\n'
        if name in FIRMWARE_OPS:
            yield "Guest code in the EL2 firmware, so that a bad pointer faults as on a device.\n"
        if served_op is not None:
            yield prose(served_op.function.__doc__) + "\n"


def hypercalls_page() -> Iterator[str]:
    """Host hypercalls: numbers by generation, and those that are answered."""
    yield "A host hypercall is `hvc #0` with `0xC6000000 + number` in x0. Numbers by generation; a dash where the generation"
    yield "does not have it. Dynamic hypercalls, which modules register, begin at 128. A call that is not served comes back"
    yield "with x0 = -1 (SMCCC_RET_NOT_SUPPORTED).\n"
    tables: dict[str, Any] = {}
    for gen in GENERATIONS:
        tables.setdefault(gen.layout, gen)
    heads = []
    for layout, gen in tables.items():
        names = ", ".join(other.name for other in GENERATIONS if other.layout == layout)
        heads.append(names + ("" if gen.hypercalls.verified else " (inferred)"))
    numbers: dict[str, dict[str, int]] = {}
    for layout, gen in tables.items():
        for number, function in enumerate(gen.hypercalls.functions):
            numbers.setdefault(function, {})[layout] = number
    rows = []
    for function, by_layout in sorted(
        numbers.items(), key=lambda item: [item[1].get(n, 999) for n in reversed(tables)]
    ):
        layout = next(iter(by_layout))
        short = tables[layout].hypercalls.name(by_layout[layout])
        served = registry.HYPERCALLS.get(short)
        text = first_line(served.function.__doc__) if served is not None else ""
        rows.append(
            (
                f"`{function}`",
                *(str(by_layout[name]) if name in by_layout else "-" for name in tables),
                "yes" if served is not None else "no",
                text,
            )
        )
    yield from table(("hypercall", *heads, "served", "answer"), rows)


def kernel_symbols_page() -> Iterator[str]:
    """Exported symbols that the kernel model serves, by subsystem."""
    functions = {n: f for n, f in kernel_registry.FUNCTIONS.items() if ours(f.function)}
    variables = {n: v for n, v in kernel_registry.VARIABLES.items() if ours(v.initial)}
    yield f"{len(functions)} functions and {len(variables)} variables. A function that is not here is linked too, to a stub"
    yield "that stops the run when it is called; [serve it from Python](../running.md#kernel-symbols-that-are-not-served).\n"
    by_module: dict[str, list[tuple[str, str, str]]] = {}
    for name, function in functions.items():
        rows = by_module.setdefault(function.function.__module__, [])
        rows.append((f"`{name}`", "function", first_line(function.function.__doc__)))
    for name, variable in variables.items():
        rows = by_module.setdefault(variable.initial.__module__, [])
        rows.append((f"`{name}`", f"{variable.section}, {variable.size} bytes", first_line(variable.initial.__doc__)))
    for module in sorted(by_module):
        yield f"## {module.rpartition('.')[2]}\n"
        yield prose(inspect.getdoc(sys.modules[module])) + "\n"
        yield from table(("symbol", "kind", "what it does here"), sorted(by_module[module]))
        yield ""


def command_line_page() -> Iterator[str]:
    """Every command with its options."""
    parser = build_parser()
    sub = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    yield "```text\npkvm-emu [--version] COMMAND ...\n```\n"
    yield from table(("command", "what it does"), [(f"[`{n}`](#pkvm-emu-{n})", cell(text)) for n, _, text in COMMANDS])
    yield f"\n{parser.epilog}\n"
    for name, _, text in COMMANDS:
        command = sub.choices[name]
        yield f"## pkvm-emu {name}\n"
        yield f"{command.description or text}\n"
        rows = []
        for action in command._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            metavar = action.metavar if isinstance(action.metavar, str) else action.dest
            takes_value = action.nargs != 0
            if action.choices is not None:
                metavar = "{" + ",".join(map(str, action.choices)) + "}"
            spelled = ", ".join(f"{o} {metavar}" if takes_value else o for o in action.option_strings) or metavar
            if not action.option_strings and action.nargs == "+":
                spelled += " ..."
            rows.append((code(spelled), cell(action.help or "")))
        if rows:
            yield from table(("argument", "meaning"), rows)
            yield ""


class _Written:
    """An annotation that is printed as it is written in the source."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _as_written(annotation: Any) -> Any:
    return _Written(annotation) if isinstance(annotation, str) else annotation


def signature(name: str, function: Callable[..., Any]) -> str:
    """``name(arguments) -> result`` as it is written in the source, without ``self``."""
    found = inspect.signature(function)
    parameters = [p.replace(annotation=_as_written(p.annotation)) for p in found.parameters.values()]
    if parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    return name + str(found.replace(parameters=parameters, return_annotation=_as_written(found.return_annotation)))


def members(cls: type[Any]) -> Iterator[tuple[str, str, str | None]]:
    """Public methods and properties of a class, then of what it is put together from: kind, signature, docstring."""
    parts = [cls, *(base for base in cls.__bases__ if base.__name__ in MIXINS)]
    for name, member in [entry for part in parts for entry in vars(part).items()]:
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            hint = inspect.signature(member.fget).return_annotation if member.fget else ""
            yield "property", f"{name}: {hint}".replace("'", ""), member.__doc__
        elif isinstance(member, functools.cached_property):
            hint = inspect.signature(member.func).return_annotation
            yield "property", f"{name}: {hint}".replace("'", ""), member.func.__doc__
        elif isinstance(member, (classmethod, staticmethod)):
            yield type(member).__name__, signature(name, member.__func__), member.__func__.__doc__
        elif isinstance(member, types.FunctionType):
            yield "method", signature(name, member), member.__doc__


def python_page() -> Iterator[str]:
    """The public surface."""
    yield "What is exported by `pkvm_emu`, and the classes that it hands out. [The guide](../python.md) has examples.\n"
    for module_name, *names in PYTHON:
        yield f"## {module_name}\n"
        module = __import__(module_name, fromlist=["_"])
        for name in names:
            thing = getattr(pkvm_emu.system, name) if name == "Modules" else getattr(module, name)
            yield f"### {name}\n"
            if inspect.isclass(thing):
                base = ", ".join(b.__name__ for b in thing.__bases__ if b is not object and b.__name__ not in MIXINS)
                if issubclass(thing, Exception):
                    yield f"`class {name}({base})`, exit code {getattr(thing, 'exit_code', '')}\n"
                else:
                    yield f"`class {name}({base})`\n" if base else f"`class {name}`\n"
                yield prose(thing.__doc__) + "\n"
                fields = getattr(thing, "_fields", None) or (
                    [f.name for f in dataclasses.fields(thing)] if dataclasses.is_dataclass(thing) else ()
                )
                if fields:
                    yield "*Fields*: " + ", ".join(f"`{f}`" for f in fields if not f.startswith("_")) + "\n"
                for kind, text, doc in members(thing):
                    yield f"#### `{text}`\n"
                    yield ("" if kind == "method" else f"*{kind}*. ") + prose(doc) + "\n"
            else:
                yield f"```python\n{signature(name, thing)}\n```\n"
                yield prose(thing.__doc__) + "\n"


def index_page() -> Iterator[str]:
    """The list of pages and the facts of each generation."""
    yield from table(
        ("page", "what it lists"),
        (
            (
                "[ops](ops.md)",
                "`struct pkvm_module_ops` of each generation: offsets, prototypes, type ids, what is served",
            ),
            ("[hypercalls](hypercalls.md)", "host hypercalls: numbers, what is served"),
            ("[kernel symbols](kernel-symbols.md)", "exported kernel functions and variables that are served"),
            ("[command line](command-line.md)", "commands and options"),
            ("[Python](python.md)", "the public surface"),
        ),
    )
    yield "\n## Generations\n"
    facts: tuple[tuple[str, Callable[[Any], object]], ...] = (
        ("ops", lambda g: f"{len(g.ops.served)} in {g.ops_size} bytes"),
        ("handlers get", lambda g: f"`struct {g.handler_context} *`"),
        ("x0 preset to 0 for dynamic hypercalls", lambda g: "yes" if g.dyn_hcall_presets_x0 else "no"),
        ("kCFI at EL1, EL2", lambda g: f"{g.el1_kcfi}, {g.el2_kcfi}"),
        ("EL2 sections", lambda g: ", ".join(f"`{s.elf_name}`" for s in g.sections)),
        ("`arch.hyp` in `struct module` (stock builds)", lambda g: f"{g.default_hyp_offset:#x}"),
        ("host SMC handlers", lambda g: g.smc_handler_slots),
        ("permission-fault handlers", lambda g: g.perm_fault_handler_slots),
        ("EL2 calls between modules", lambda g: "yes" if g.inter_module_imports else "no"),
        ("EL2 stack", lambda g: f"{g.boot.hyp_stack_bytes} bytes"),
        (
            "an EL2 init function that fails",
            lambda g: "hypervisor BUG" if g.boot.init_error_is_fatal else "fails the load",
        ),
        ("tracefs directory", lambda g: f"`tracing/{g.tracefs_dir}`"),
        ("hypercall that deprivileges the host", lambda g: g.prot_finalize),
        ("unverified (inferred, not read from sources)", lambda g: ", ".join(f"`{n}`" for n in sorted(g.unverified))),
    )
    rows = [(name, *(cell(str(get(gen))) for gen in GENERATIONS)) for name, get in facts]
    yield from table(("", *(gen.name for gen in GENERATIONS)), rows)


def pages() -> dict[str, str]:
    """File name and contents of every page."""
    hypervisor.register_all()
    exports.register_all()
    return {
        "index.md": page("Reference", index_page()),
        "ops.md": page("Module ops", ops_page()),
        "hypercalls.md": page("Host hypercalls", hypercalls_page()),
        "kernel-symbols.md": page("Kernel symbols", kernel_symbols_page()),
        "command-line.md": page("Command line", command_line_page()),
        "python.md": page("Python", python_page()),
    }


def main(arguments: Sequence[str]) -> int:
    """Write or check; the exit status."""
    wanted = pages()
    present = {path.name: path.read_text() for path in TARGET.glob("*.md")} if TARGET.is_dir() else {}
    stale = sorted(name for name in {*wanted, *present} if wanted.get(name) != present.get(name))
    if "--check" in arguments:
        for name in stale:
            print(f"docs/reference/{name} is out of date: run docs/generate_reference.py")
        return 1 if stale else 0
    TARGET.mkdir(exist_ok=True)
    for name in stale:
        if name in wanted:
            (TARGET / name).write_text(wanted[name])
        else:
            (TARGET / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
