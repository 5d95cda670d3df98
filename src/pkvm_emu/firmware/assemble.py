"""Assembling the firmware with keystone: a developer's tool, run when ``firmware/`` changes.

``python -m pkvm_emu.firmware.assemble firmware/ src/pkvm_emu/firmware/images`` writes one JSON file an image (words and
symbols); the package ships those, so that hosts without keystone run the same words. A test assembles again and compares.
Each ``firmware/NAME.S`` is an image; one with several subjects includes its parts from ``firmware/NAME/``, in the order in
which they lie in it.

Keystone knows few system register names, no CFI and no way to ask for symbols: MRS and MSR are encoded from our own table,
and the value of each label is read from a table of ``.quad label`` appended to the source.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from pkvm_emu.arch.sysreg import SYSREGS, SysReg
from pkvm_emu.errors import EmulatorError

_MRS = re.compile(r"\bmrs\s+x(\d+)\s*,\s*([A-Za-z0-9_]+)", re.IGNORECASE)
_MSR = re.compile(r"\bmsr\s+([A-Za-z0-9_]+)\s*,\s*x(\d+)", re.IGNORECASE)
_LABEL = re.compile(r"^([A-Za-z_]\w*):", re.MULTILINE)
_COMMENT = re.compile(r"//.*$", re.MULTILINE)
_INCLUDE = re.compile(r'^\s*\.include\s+"([^"]+)"[ \t]*$', re.MULTILINE)


def read_source(path: Path) -> str:
    """The text of an image's source, with the files that it includes (by paths relative to its own) in their places.

    Raises:
        EmulatorError: an included file is not there.
    """

    def included(match: re.Match[str]) -> str:
        part = path.parent / match[1]
        if not part.is_file():
            raise EmulatorError(f"{path} includes {match[1]}, which is not there")
        return read_source(part)

    return _INCLUDE.sub(included, path.read_text())


def assemble(source: str) -> tuple[bytes, dict[str, int]]:
    """Machine code of ``source`` and the offset of each of its labels.

    Args:
        source: assembly text; ``//`` comments, labels at the start of a line, LLVM directives and macros.

    Raises:
        EmulatorError: keystone is missing, or refuses the text.
    """
    try:
        import keystone
    except ImportError as error:
        raise EmulatorError("assembling the firmware needs keystone-engine (x86-64 hosts only)") from error

    text = _COMMENT.sub("", source)
    text = _MRS.sub(lambda m: f".word {_sysreg(m[2]).mrs(int(m[1])):#x}", text)
    text = _MSR.sub(lambda m: f".word {_sysreg(m[1]).msr(int(m[2])):#x}", text)
    text = _expand_macros(text)
    labels = list(dict.fromkeys(_LABEL.findall(text)))
    text = _name_local_labels(text)
    table = "\n.balign 8\n" + "\n".join(f".quad {label}" for label in labels) + "\n"
    engine = keystone.Ks(keystone.KS_ARCH_ARM64, keystone.KS_MODE_LITTLE_ENDIAN)
    try:
        raw, _ = engine.asm(text + table, 0, as_bytes=True)
    except keystone.KsError as error:
        raise EmulatorError(f"keystone refuses the firmware: {error}") from error
    code = bytes(raw)
    start = len(code) - 8 * len(labels)
    offsets = {
        label: int.from_bytes(code[start + 8 * i : start + 8 * i + 8], "little") for i, label in enumerate(labels)
    }
    return code[: offsets["image_end"]], offsets


def _sysreg(name: str) -> SysReg:
    return SYSREGS[name.upper()]


def _expand_macros(text: str) -> str:
    """Expand ``.macro`` definitions: keystone has them, but without local labels inside."""
    macros: dict[str, tuple[list[str], list[str]]] = {}
    out: list[str] = []
    body: list[str] | None = None
    for line in text.splitlines():
        words = line.split()
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
        label, call = re.match(r"^(\w+:)?\s*(.*)$", line).groups(default="")  # type: ignore[union-attr]
        name, _, rest = call.partition(" ")
        if name in macros:
            parameters, lines = macros[name]
            values = [v.strip() for v in rest.split(",")] if rest.strip() else []
            out.append(label)
            for inner in lines:
                for parameter, value in zip(parameters, values, strict=True):
                    inner = inner.replace(f"\\{parameter}", value)
                out.append(inner)
        else:
            out.append(line)
    return "\n".join(out)


def _name_local_labels(text: str) -> str:
    """Give each numeric label (``1:`` with ``1f``, ``1b``) a name: keystone has none of them."""
    lines = text.splitlines()
    places: dict[str, list[int]] = {}
    for index, line in enumerate(lines):
        if found := re.match(r"^(\d+):", line):
            places.setdefault(found[1], []).append(index)

    def target(number: str, direction: str, at: int) -> str:
        here = places.get(number, [])
        if direction == "f":
            return f"local_{number}_{min(i for i in here if i > at)}"
        return f"local_{number}_{max(i for i in here if i <= at)}"

    for index, line in enumerate(lines):
        if used := re.search(r"\b(\d+)([fb])\s*$", line):
            line = line[: used.start()] + target(used[1], used[2], index)
        lines[index] = re.sub(r"^(\d+):", rf"local_\1_{index}:", line)
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """``assemble SOURCE_DIR IMAGE_DIR``: assemble each ``*.S`` into a JSON image."""
    sources, images = (Path(a) for a in arguments)
    for path in sorted(sources.glob("*.S")):
        code, symbols = assemble(read_source(path))
        words = [f"{int.from_bytes(code[i : i + 4], 'little'):08x}" for i in range(0, len(code), 4)]
        image = {"symbols": symbols, "size": len(code), "words": " ".join(words)}
        (images / f"{path.stem}.json").write_text(json.dumps(image, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
