"""Reading a device tree from a file: a blob (``.dtb``) or source (``.dts``), and writing a blob."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pkvm_emu.elf.module_file import read_input
from pkvm_emu.errors import InputError
from pkvm_emu.kernel.devicetree.source import parse_source
from pkvm_emu.kernel.devicetree.tree import TreeNode

_MAGIC = b"\xd0\x0d\xfe\xed"
_VERSION = 17
_DEPTH_LIMIT = 64


def read_device_tree(path: str | Path) -> TreeNode:
    """The tree in a ``.dtb`` or ``.dts`` file, told apart by its first bytes.

    Raises:
        InputError: the file cannot be read, or is neither.
    """
    data = read_input(path)
    name = Path(path).name
    if data[:4] == _MAGIC:
        return parse_blob(data, name)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{name}: neither a device-tree blob (magic d00dfeed) nor source") from None
    return parse_source(text, name)


def parse_blob(data: bytes, name: str = "device tree") -> TreeNode:
    """The tree in a flattened blob.

    Raises:
        InputError: it is damaged.
    """
    import fdt

    try:
        parsed = fdt.parse_dtb(data)
        if parsed.root is None:
            raise ValueError("it has no root node")
        root = TreeNode("")
        _copy(parsed.root, root, 0)
    except Exception as error:
        # The library reports damage by whatever exception comes first.
        reason = str(error).strip() or type(error).__name__
        raise InputError(f"{name}: not a sound device-tree blob ({reason})") from None
    finally:
        # The library's trees share one list of memory reservations.
        fdt.FDT().entries.clear()
    return root


def to_blob(root: TreeNode) -> bytes:
    """The tree as a flattened blob of version 17."""
    import fdt

    tree = fdt.FDT(entries=[])
    tree.root = _to_library(fdt, root)
    return bytes(tree.to_dtb(version=_VERSION))


def _copy(source: Any, target: TreeNode, depth: int) -> None:
    if depth > _DEPTH_LIMIT:
        raise ValueError(f"nodes are nested deeper than {_DEPTH_LIMIT}")
    for item in source.props:
        target.properties[item.name] = _raw(item)
    for child in source.nodes:
        _copy(child, target.add(child.name), depth + 1)


def _raw(item: Any) -> bytes:
    """The bytes of a property, which the library has read as strings, words or bytes."""
    kind = type(item).__name__
    if kind == "PropStrings":
        return b"".join(text.encode("ascii") + b"\0" for text in item)
    if kind == "PropWords":
        return b"".join(word.to_bytes(4, "big") for word in item)
    return bytes(item) if kind == "PropBytes" else b""


def _to_library(fdt: Any, node: TreeNode) -> Any:
    out = fdt.Node(node.name or "/")
    for name, value in node.properties.items():
        out.append(fdt.PropBytes(name, data=value) if value else fdt.Property(name))
    for child in node.children:
        out.append(_to_library(fdt, child))
    return out
