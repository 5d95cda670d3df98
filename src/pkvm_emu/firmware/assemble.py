"""Assembling the firmware with keystone: a developer's tool, run when ``firmware/`` changes.

``python -m pkvm_emu.firmware.assemble firmware/ src/pkvm_emu/firmware/images`` writes one JSON file an image (words and
symbols); the package ships those, so that hosts without keystone run the same words. A test assembles again and compares.
Each ``firmware/NAME.S`` is an image; one with several subjects includes its parts from ``firmware/NAME/``, in the order in
which they lie in it.

Keystone knows few system register names, no CFI and no way to ask for symbols or line numbers: MRS and MSR are encoded from our
own table, each instruction gets a label of its own, and the value of each label is read from a table of ``.quad label`` appended
to the source.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

from pkvm_emu.arch.sysreg import SYSREGS, SysReg
from pkvm_emu.errors import EmulatorError
from pkvm_emu.firmware.image import LineRow

_MRS = re.compile(r"\bmrs\s+x(\d+)\s*,\s*([A-Za-z0-9_]+)", re.IGNORECASE)
_MSR = re.compile(r"\bmsr\s+([A-Za-z0-9_]+)\s*,\s*x(\d+)", re.IGNORECASE)
_LABEL = re.compile(r"^([A-Za-z_]\w*):", re.MULTILINE)
_COMMENT = re.compile(r"//.*$", re.MULTILINE)
_LABELLED = re.compile(r"^(\w+:)?\s*(.*)$")
_INCLUDE = re.compile(r'^\s*\.include\s+"([^"]+)"[ \t]*$')
_PLACE = "place_of_"


class SourceLine(NamedTuple):
    """One line of assembly text, and where it is written.

    Attributes:
        text: the line.
        file: its file, relative to the directory of the image's source.
        number: of the line there, from 1.
    """

    text: str
    file: str = ""
    number: int = 0


class Assembly(NamedTuple):
    """What a source becomes: machine code, the offsets of its labels, and one row for each instruction."""

    code: bytes
    symbols: dict[str, int]
    rows: list[LineRow]


def read_source(path: Path) -> str:
    """The text of an image's source, with the files that it includes in their places; errors as for :func:`read_lines`."""
    return "".join(f"{line.text}\n" for line in read_lines(path))


def read_lines(path: Path, root: Path | None = None) -> list[SourceLine]:
    """The lines of an image's source, with the files that it includes (by paths relative to its own) in their places.

    Args:
        path: the file.
        root: what the names of files are relative to; the file's directory where it is None.

    Raises:
        EmulatorError: an included file is not there.
    """
    root = path.parent if root is None else root
    name = path.relative_to(root).as_posix()
    lines: list[SourceLine] = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        included = _INCLUDE.match(text)
        if included is None:
            lines.append(SourceLine(text, name, number))
            continue
        part = path.parent / included[1]
        if not part.is_file():
            raise EmulatorError(f"{path} includes {included[1]}, which is not there")
        lines += read_lines(part, root)
    return lines


def assemble(source: str) -> tuple[bytes, dict[str, int]]:
    """Machine code of ``source`` and the offset of each of its labels.

    Args:
        source: assembly text; ``//`` comments, labels at the start of a line, LLVM directives and macros.

    Raises:
        EmulatorError: keystone is missing, or refuses the text.
    """
    found = assemble_lines([SourceLine(text, "", number) for number, text in enumerate(source.splitlines(), 1)])
    return found.code, found.symbols


def assemble_lines(source: list[SourceLine]) -> Assembly:
    """The same with a row for each instruction; errors as for :func:`assemble`.

    What a macro stands for belongs to the line that names the macro, unless it is a function of its own (it has a label):
    then its lines are those of the macro.
    """
    try:
        import keystone
    except ImportError as error:
        raise EmulatorError("assembling the firmware needs keystone-engine (x86-64 hosts only)") from error

    lines = _expand_macros([line._replace(text=_COMMENT.sub("", line.text)) for line in source])
    labels = list(dict.fromkeys(name for line in lines for name in _LABEL.findall(line.text)))
    text, places = _mark_instructions(_name_local_labels(lines))
    text = _MRS.sub(lambda m: f".word {_sysreg(m[2]).mrs(int(m[1])):#x}", text)
    text = _MSR.sub(lambda m: f".word {_sysreg(m[1]).msr(int(m[2])):#x}", text)
    wanted = [*labels, *(f"{_PLACE}{index}" for index in range(len(places)))]
    table = "\n.balign 8\n" + "\n".join(f".quad {label}" for label in wanted) + "\n"
    engine = keystone.Ks(keystone.KS_ARCH_ARM64, keystone.KS_MODE_LITTLE_ENDIAN)
    try:
        raw, _ = engine.asm(text + table, 0, as_bytes=True)
    except keystone.KsError as error:
        raise EmulatorError(f"keystone refuses the firmware: {error}") from error
    code = bytes(raw)
    start = len(code) - 8 * len(wanted)
    values = [int.from_bytes(code[at : at + 8], "little") for at in range(start, len(code), 8)]
    offsets = dict(zip(labels, values[: len(labels)], strict=True))
    rows = [LineRow(at, line.file, line.number) for at, line in zip(values[len(labels) :], places, strict=True)]
    return Assembly(code[: offsets["image_end"]], offsets, rows)


def _split_label(text: str) -> tuple[str, str]:
    """The label in front of a statement with its colon, or nothing, and the statement."""
    match = _LABELLED.match(text)
    return (match[1] or "", match[2]) if match else ("", text)


def _mark_instructions(lines: list[SourceLine]) -> tuple[str, list[SourceLine]]:
    """The text with a label in front of each instruction, and the line of each of these labels."""
    out: list[str] = []
    places: list[SourceLine] = []
    for line in lines:
        label, rest = _split_label(line.text)
        out.append(label)
        if rest and not rest.startswith("."):
            out.append(f"{_PLACE}{len(places)}:")
            places.append(line)
        out.append(rest)
    return "\n".join(out), places


def _sysreg(name: str) -> SysReg:
    return SYSREGS[name.upper()]


def _expand_macros(source: list[SourceLine]) -> list[SourceLine]:
    """Expand ``.macro`` definitions: keystone has them, but without local labels inside."""
    macros: dict[str, tuple[list[str], list[SourceLine]]] = {}
    out: list[SourceLine] = []
    body: list[SourceLine] | None = None
    for line in source:
        words = line.text.split()
        if body is not None:
            if words[:1] == [".endm"]:
                body = None
            else:
                body.append(line)
            continue
        if words[:1] == [".macro"]:
            body = []
            macros[words[1]] = ([w.rstrip(",") for w in words[2:]], body)
            continue
        label, call = _split_label(line.text)
        name, _, rest = call.partition(" ")
        if name not in macros:
            out.append(line)
            continue
        parameters, inside = macros[name]
        values = [v.strip() for v in rest.split(",")] if rest.strip() else []
        is_function = any(inner.text.startswith("\\") for inner in inside)
        out.append(line._replace(text=label))
        for inner in inside:
            text = inner.text
            for parameter, value in zip(parameters, values, strict=True):
                text = text.replace(f"\\{parameter}", value)
            out.append((inner if is_function else line)._replace(text=text))
    return out


def _name_local_labels(source: list[SourceLine]) -> list[SourceLine]:
    """Give each numeric label (``1:`` with ``1f``, ``1b``) a name: keystone has none of them."""
    places: dict[str, list[int]] = {}
    for index, line in enumerate(source):
        if found := re.match(r"^(\d+):", line.text):
            places.setdefault(found[1], []).append(index)

    def target(number: str, direction: str, at: int) -> str:
        here = places.get(number, [])
        if direction == "f":
            return f"local_{number}_{min(i for i in here if i > at)}"
        return f"local_{number}_{max(i for i in here if i <= at)}"

    out = []
    for index, line in enumerate(source):
        text = line.text
        if used := re.search(r"\b(\d+)([fb])\s*$", text):
            text = text[: used.start()] + target(used[1], used[2], index)
        out.append(line._replace(text=re.sub(r"^(\d+):", rf"local_\1_{index}:", text)))
    return out


def write_rows(rows: list[LineRow], files: list[str]) -> str:
    """Rows as text: ``offset:file:line`` in hexadecimal and decimal, files by their index in ``files``."""
    return " ".join(f"{row.offset:x}:{files.index(row.file)}:{row.line}" for row in rows)


def main(arguments: list[str]) -> None:
    """``assemble SOURCE_DIR IMAGE_DIR``: assemble each ``*.S`` into a JSON image."""
    sources, images = (Path(a) for a in arguments)
    for path in sorted(sources.glob("*.S")):
        code, symbols, rows = assemble_lines(read_lines(path))
        words = [f"{int.from_bytes(code[i : i + 4], 'little'):08x}" for i in range(0, len(code), 4)]
        files = list(dict.fromkeys(row.file for row in rows))
        image = {
            "symbols": symbols,
            "size": len(code),
            "files": files,
            "lines": write_rows(rows, files),
            "words": " ".join(words),
        }
        (images / f"{path.stem}.json").write_text(json.dumps(image, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
