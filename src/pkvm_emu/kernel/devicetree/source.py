"""Device-tree source (DTS): a tree as text, and text as a tree.

Printing gives what ``dtc -O dts`` would, cells and strings told apart by their bytes. Reading takes that and the plain part
of the language: nodes, labels, ``&label`` in cells, strings, ``<cells>``, ``[bytes]``, ``/bits/``. Includes, expressions and
the preprocessor are ``dtc``'s job: compile such a file to a ``.dtb``.
"""

from __future__ import annotations

import re

from pkvm_emu.errors import InputError
from pkvm_emu.kernel.devicetree.tree import TreeNode, encode

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*|/\*.*?\*/)
      | (?P<directive>/[a-z0-9-]+/)
      | (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<label>[A-Za-z_][A-Za-z0-9_]*:)
      | (?P<reference>&[A-Za-z_][A-Za-z0-9_]*)
      | (?P<word>[A-Za-z0-9,._+*\#?@-]+)
      | (?P<sign>[{}=;<>,/\[\]])""",
    re.VERBOSE | re.DOTALL,
)
_DEPTH_LIMIT = 64
_FIRST_PHANDLE = 1
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}


def to_source(root: TreeNode) -> str:
    """The tree as DTS."""
    lines = ["/dts-v1/;", ""]
    _print_node(root, "/", 0, lines)
    return "\n".join(lines) + "\n"


def _print_node(node: TreeNode, name: str, depth: int, lines: list[str]) -> None:
    indent = "\t" * depth
    label = f"{node.label}: " if node.label else ""
    lines.append(f"{indent}{label}{name} {{")
    for key, value in node.properties.items():
        text = value_text(value)
        lines.append(f"{indent}\t{key} = {text};" if text else f"{indent}\t{key};")
    for child in node.children:
        if node.properties or child is not node.children[0]:
            lines.append("")
        _print_node(child, child.name, depth + 1, lines)
    lines.append(f"{indent}}};")


def value_text(value: bytes) -> str:
    """A property's value as DTS: strings where it reads as such, cells where it is whole words, else bytes."""
    if not value:
        return ""
    if value == b"\0":
        return '""'
    if value[-1] == 0:
        parts = value[:-1].split(b"\0")
        if all(part and all(0x20 <= byte < 0x7F for byte in part) for part in parts):
            return ", ".join('"' + part.decode().replace("\\", "\\\\").replace('"', '\\"') + '"' for part in parts)
    if len(value) % 4 == 0:
        cells = (int.from_bytes(value[at : at + 4], "big") for at in range(0, len(value), 4))
        return "<" + " ".join(f"{cell:#x}" if cell > 9 else f"{cell}" for cell in cells) + ">"
    return "[" + " ".join(f"{byte:02x}" for byte in value) + "]"


def parse_source(text: str, name: str = "device tree") -> TreeNode:
    """Read DTS.

    Raises:
        InputError: with the line, for what is no DTS or needs ``dtc``.
    """
    return _Parser(text, name).parse()


class _Parser:
    def __init__(self, text: str, name: str) -> None:
        self._text = text
        self._name = name
        self._tokens: list[tuple[str, str, int]] = []
        self._at = 0
        self._labels: dict[str, TreeNode] = {}
        #: Cells that hold a reference: node, property, byte offset, label, line.
        self._references: list[tuple[TreeNode, str, int, str, int]] = []

    def parse(self) -> TreeNode:
        self._tokenize()
        root: TreeNode | None = None
        while self._at < len(self._tokens):
            kind, text, _ = self._next()
            if kind == "directive" and text == "/dts-v1/":
                self._expect(";")
            elif kind == "directive" and text == "/memreserve/":
                while self._next()[1] != ";":
                    pass
            elif text == "/" and kind == "sign":
                root = root or TreeNode("")
                self._body(root, 0)
            else:
                raise self._error(f"{text!r} is not expected here (overlays and includes need dtc: give the .dtb)")
        if root is None:
            raise InputError(f"{self._name}: no root node (/ {{ ... }};) in it")
        self._resolve(root)
        return root

    def _tokenize(self) -> None:
        position, line = 0, 1
        while position < len(self._text):
            match = _TOKEN.match(self._text, position)
            if match is None:
                raise InputError(f"{self._name}:{line}: {self._text[position]!r} is no device-tree source")
            kind = match.lastgroup or ""
            if kind != "space":
                self._tokens.append((kind, match[0], line))
            line += match[0].count("\n")
            position = match.end()

    def _next(self) -> tuple[str, str, int]:
        if self._at >= len(self._tokens):
            raise InputError(f"{self._name}: the file ends inside a node or property")
        self._at += 1
        return self._tokens[self._at - 1]

    def _error(self, text: str) -> InputError:
        line = self._tokens[max(self._at - 1, 0)][2] if self._tokens else 1
        return InputError(f"{self._name}:{line}: {text}")

    def _expect(self, sign: str) -> None:
        _, text, _ = self._next()
        if text != sign:
            raise self._error(f"{sign!r} is expected, not {text!r}")

    def _body(self, node: TreeNode, depth: int) -> None:
        if depth > _DEPTH_LIMIT:
            raise self._error(f"nodes are nested deeper than {_DEPTH_LIMIT}")
        self._expect("{")
        label: str | None = None
        while True:
            kind, text, _ = self._next()
            if text == "}" and kind == "sign":
                self._expect(";")
                return
            if kind == "label":
                label = text[:-1]
                continue
            if kind != "word":
                raise self._error(f"the name of a property or node is expected, not {text!r}")
            after = self._next()[1]
            if after == "{":
                self._at -= 1
                child = node.child(text) or node.add(text)
                if label is not None:
                    child.label = label
                    self._labels[label] = child
                self._body(child, depth + 1)
            elif after == "=":
                node.properties[text] = self._value(node, text)
            elif after == ";":
                node.properties[text] = b""
            else:
                raise self._error(f"'=', ';' or '{{' is expected after {text!r}, not {after!r}")
            label = None

    def _value(self, node: TreeNode, name: str) -> bytes:
        out = b""
        bits = 32
        while True:
            kind, text, line = self._next()
            if kind == "directive" and text == "/bits/":
                bits = self._integer(self._next()[1])
                if bits not in (8, 16, 32, 64):
                    raise self._error(f"/bits/ {bits}: 8, 16, 32 and 64 are known")
                continue
            if kind == "string":
                out += encode(
                    re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), text[1:-1], flags=re.DOTALL)
                )
            elif text == "<":
                out += self._cells(node, name, len(out), bits)
            elif text == "[":
                out += self._bytes()
            elif kind == "reference":
                # Outside cells a reference is the path of the node.
                self._references.append((node, name, -1, text[1:], line))
            else:
                raise self._error(f"{text!r} is no value of {name}")
            bits = 32
            end = self._next()[1]
            if end == ";":
                return out
            if end != ",":
                raise self._error(f"',' or ';' is expected after a value of {name}, not {end!r}")

    def _cells(self, node: TreeNode, name: str, start: int, bits: int) -> bytes:
        out = b""
        while True:
            kind, text, line = self._next()
            if text == ">":
                return out
            if kind == "reference":
                self._references.append((node, name, start + len(out), text[1:], line))
                out += bytes(4)
            else:
                out += (self._integer(text) & ((1 << bits) - 1)).to_bytes(bits // 8, "big")

    def _bytes(self) -> bytes:
        digits = ""
        while (text := self._next()[1]) != "]":
            digits += text
        try:
            return bytes.fromhex(digits)
        except ValueError:
            raise self._error(f"[{digits}] are no bytes in hex") from None

    def _integer(self, text: str) -> int:
        try:
            return int(text, 0)
        except ValueError:
            raise self._error(f"{text!r} is no number (expressions need dtc: give the .dtb)") from None

    def _resolve(self, root: TreeNode) -> None:
        used = {node.phandle for node in root.walk()}
        following = _FIRST_PHANDLE
        for node, name, offset, label, line in self._references:
            target = self._labels.get(label)
            if target is None:
                raise InputError(f"{self._name}:{line}: no node has the label {label!r}")
            if offset < 0:
                node.properties[name] += encode(target.path)
                continue
            if not target.phandle:
                while following in used:
                    following += 1
                used.add(following)
                target.set("phandle", following)
            value = bytearray(node.properties[name])
            value[offset : offset + 4] = target.phandle.to_bytes(4, "big")
            node.properties[name] = bytes(value)
