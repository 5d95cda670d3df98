"""A device tree as it stands in a file: named nodes with raw properties. Nothing here knows of a kernel.

>>> root = TreeNode("")
>>> smmu = root.add("smmu@10000000", compatible="vendor,smmu", reg=(0, 0x1000_0000, 0, 0x1000))
>>> smmu.path
'/smmu@10000000'
>>> smmu.strings("compatible")
['vendor,smmu']
"""

from __future__ import annotations

from collections.abc import Iterator

#: A property as it is written in Python: nothing (a flag), text, several texts, 32-bit cells, or the bytes themselves.
PropertyValue = None | str | list[str] | int | tuple[int, ...] | bytes

_DEFAULT_ADDRESS_CELLS = 1
_DEFAULT_SIZE_CELLS = 1


def encode(value: PropertyValue) -> bytes:
    """The bytes of a property: text NUL-terminated, cells big-endian."""
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape") + b"\0"
    if isinstance(value, list):
        return b"".join(encode(text) for text in value)
    cells = (value,) if isinstance(value, int) else value
    return b"".join((cell & 0xFFFF_FFFF).to_bytes(4, "big") for cell in cells)


class TreeNode:
    """One node.

    Attributes:
        name: with its unit address; empty for the root.
        label: what a source file calls it; None without one.
        properties: raw values by name, in file order.
        children: in file order.
        parent: None for the root.
    """

    def __init__(self, name: str, parent: TreeNode | None = None) -> None:
        self.name = name
        self.label: str | None = None
        self.properties: dict[str, bytes] = {}
        self.children: list[TreeNode] = []
        self.parent = parent

    def add(self, name: str, /, **properties: PropertyValue) -> TreeNode:
        """Add a child. In keyword names ``__`` stands for ``-`` and a leading ``n_`` for ``#``."""
        child = TreeNode(name, self)
        self.children.append(child)
        for key, value in properties.items():
            text = key.replace("__", "-")
            child.set("#" + text[2:] if text.startswith("n_") else text, value)
        return child

    def set(self, name: str, value: PropertyValue) -> None:
        """Set a property."""
        self.properties[name] = encode(value)

    @property
    def path(self) -> str:
        """The full path; ``/`` for the root."""
        if self.parent is None:
            return "/"
        return f"{'' if self.parent.parent is None else self.parent.path}/{self.name}"

    @property
    def base_name(self) -> str:
        """The name without its unit address."""
        return self.name.partition("@")[0]

    def child(self, name: str) -> TreeNode | None:
        """The child of that name (unit address included)."""
        return next((child for child in self.children if child.name == name), None)

    def find(self, path: str) -> TreeNode | None:
        """The node at an absolute path below this one."""
        node: TreeNode | None = self
        for part in path.strip("/").split("/"):
            if node is None or not part:
                break
            node = node.child(part)
        return node

    def walk(self) -> Iterator[TreeNode]:
        """This node and all below it, depth first, as ``for_each_of_allnodes`` goes."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))

    # Values

    def cells(self, name: str) -> list[int]:
        """A property as 32-bit cells; empty without it."""
        data = self.properties.get(name, b"")
        return [int.from_bytes(data[at : at + 4], "big") for at in range(0, len(data) & ~3, 4)]

    def cell(self, name: str, default: int) -> int:
        """The first cell of a property."""
        cells = self.cells(name)
        return cells[0] if cells else default

    def strings(self, name: str) -> list[str]:
        """A property as a list of texts."""
        data = self.properties.get(name, b"")
        return [text.decode("utf-8", "surrogateescape") for text in data.split(b"\0")[:-1]] if data else []

    def string(self, name: str) -> str | None:
        """The first text of a property."""
        return next(iter(self.strings(name)), None)

    @property
    def phandle(self) -> int:
        """The number others refer to it by; 0 without one."""
        return self.cell("phandle", self.cell("linux,phandle", 0))

    @property
    def is_available(self) -> bool:
        """``of_device_is_available``: no ``status``, or "okay" or "ok"."""
        return "status" not in self.properties or self.string("status") in ("okay", "ok")

    def inherited_cells(self, name: str) -> int:
        """``#address-cells`` or ``#size-cells`` that hold for this node: of the nearest ancestor that has it."""
        node = self.parent or self
        while name not in node.properties and node.parent is not None:
            node = node.parent
        return node.cell(name, _DEFAULT_ADDRESS_CELLS if name == "#address-cells" else _DEFAULT_SIZE_CELLS)


def by_phandle(root: TreeNode, phandle: int) -> TreeNode | None:
    """The node with that number."""
    if phandle in (0, 0xFFFF_FFFF):
        return None
    return next((node for node in root.walk() if node.phandle == phandle), None)
