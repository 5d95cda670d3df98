"""Device-tree nodes as the kernel has them: ``struct device_node`` and ``struct property`` in guest memory.

The tree on the Python side stays what it was read from; the guest sees the structures and their values. A pointer that
comes back from the guest is looked up here, so a stray one is an error with a name and not a read of garbage.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pkvm_emu.kernel.devicetree.layouts import NODE, PROPERTY
from pkvm_emu.kernel.devicetree.memory import Arena
from pkvm_emu.kernel.devicetree.tree import TreeNode, encode
from pkvm_emu.kernel.guest_access import misuse
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel


class OfNode(State):
    """One node.

    Attributes:
        address: kernel VA of its ``struct device_node``.
        name: ``full_name``: with the unit address, ``/`` for the root.
        values: kernel VA of each property's value, by name.
        structures: kernel VA of each property's ``struct property``, by name.
        children: addresses of its children, in order.
    """

    def __init__(self, kernel: Kernel, address: int, tree: TreeNode, parent: OfNode | None) -> None:
        journal = kernel.machine.journal
        super().__init__(journal)
        self._tree = tree
        self._parent = parent
        self.address = address
        self.name = tree.name or "/"
        self.values: StateDict[str, int] = StateDict(journal)
        self.structures: StateDict[str, int] = StateDict(journal)
        self.children: tuple[int, ...] = ()

    @property
    def tree(self) -> TreeNode:
        """What it was made from."""
        return self._tree

    def follow(self, tree: TreeNode) -> None:
        """Belong to an equal node of another tree from now on."""
        self._tree = tree

    @property
    def parent(self) -> OfNode | None:
        """The node above; None for the root."""
        return self._parent

    @property
    def path(self) -> str:
        """The full path."""
        return self._tree.path

    def value(self, name: str | None) -> bytes | None:
        """The bytes of a property; None without it."""
        if name == "name" and "name" not in self._tree.properties:
            return encode(self._tree.base_name)
        return None if name is None else self._tree.properties.get(name)


@kernel_part
class DeviceTree(State):
    """The live tree of a kernel: empty until one is installed.

    Args:
        kernel: whose memory holds the nodes.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.devicetree")
        self._kernel = kernel
        self._arena = Arena(kernel, "kernel.devicetree.memory")
        self._strings: StateDict[str, int] = StateDict(kernel.machine.journal, "kernel.devicetree.strings")
        self._tree: TreeNode | None = None
        self.nodes: StateDict[int, OfNode] = StateDict(kernel.machine.journal, "kernel.devicetree.nodes")
        self.by_path: StateDict[str, int] = StateDict(kernel.machine.journal, "kernel.devicetree.paths")
        self.root = 0

    # Making

    def install(self, tree: TreeNode) -> None:
        """Make ``tree`` the kernel's device tree."""
        self._tree = tree
        self.root = self._add(tree, None).address

    def grow(self, tree: TreeNode) -> None:
        """Take over a tree that has the nodes of the present one, and new ones."""
        self._tree = tree
        for one in tree.walk():
            node = self.live(one)
            if node is not None:
                node.follow(one)
            elif one.parent is not None:
                above = self.live(one.parent)
                # Below a new node everything is new, and was added with it.
                if above is not None:
                    self._attach(self._add(one, above))

    def _add(self, tree: TreeNode, parent: OfNode | None) -> OfNode:
        node = OfNode(self._kernel, self._arena.allocate(NODE.size), tree, parent)
        self.nodes[node.address] = node
        self.by_path[tree.path] = node.address
        self._write_structure(node)
        self._write_properties(node)
        for child in tree.children:
            self._attach(self._add(child, node))
        return node

    def _attach(self, node: OfNode) -> None:
        parent, memory = node.parent, self._kernel.memory
        assert parent is not None
        last = parent.children[-1] + NODE.sibling if parent.children else parent.address + NODE.child
        memory.write_u64(last, node.address)
        parent.children = (*parent.children, node.address)

    def _write_structure(self, node: OfNode) -> None:
        raw, at = bytearray(NODE.size), node.address
        parent = node.parent.address if node.parent is not None else 0
        named = node.tree.string("name") or node.tree.base_name
        for offset, value in (
            (NODE.name, self._string(named)),
            (NODE.full_name, self._string(node.name)),
            (NODE.parent, parent),
        ):
            struct.pack_into("<Q", raw, offset, value)
        struct.pack_into("<I", raw, NODE.phandle, node.tree.phandle)
        for offset in NODE.lists:
            struct.pack_into("<QQ", raw, offset, at + offset, at + offset)
        self._kernel.memory.write(at, raw)

    def _write_properties(self, node: OfNode) -> None:
        # The kernel gives every node a "name" property, last in the list.
        properties = {**node.tree.properties, "name": node.value("name") or b"\0"}
        memory, link = self._kernel.memory, node.address + NODE.properties
        for name, value in properties.items():
            address = self._arena.allocate(PROPERTY.size)
            data = self._arena.place(value)
            raw = bytearray(PROPERTY.size)
            struct.pack_into("<Q", raw, PROPERTY.name, self._string(name))
            struct.pack_into("<I", raw, PROPERTY.length, len(value))
            struct.pack_into("<Q", raw, PROPERTY.value, data)
            memory.write(address, raw)
            memory.write_u64(link, address)
            link = address + PROPERTY.next
            node.values[name] = data
            node.structures[name] = address

    def _string(self, text: str) -> int:
        address = self._strings.get(text)
        if address is None:
            address = self._strings[text] = self._arena.string(text)
        return address

    # Looking up

    @property
    def tree(self) -> TreeNode | None:
        """The installed tree."""
        return self._tree if self.root else None

    def node(self, address: int) -> OfNode | None:
        """The node at a guest pointer; None for NULL.

        Raises:
            ModuleError: the pointer is no node.
        """
        if not address:
            return None
        node = self.nodes.get(address)
        if node is None:
            raise misuse(self._kernel, f"{address:#x} is no device-tree node")
        return node

    def of_fwnode(self, address: int) -> OfNode | None:
        """The node that a ``struct fwnode_handle *`` belongs to; None for NULL and error pointers."""
        return self.nodes.get(address - NODE.fwnode) if address else None

    def live(self, tree: TreeNode | None) -> OfNode | None:
        """The node in guest memory of a node of the tree."""
        address = None if tree is None else self.by_path.get(tree.path)
        return None if address is None else self.nodes[address]

    def all_nodes(self, start: int = 0) -> Iterator[OfNode]:
        """All nodes depth first; those after the one at ``start``."""
        after = self.node(start)
        if after is None:
            stack = [self.root] if self.root else []
        else:
            stack = self._rest(after)
        while stack:
            node = self.nodes[stack.pop()]
            yield node
            stack.extend(reversed(node.children))

    @staticmethod
    def _rest(node: OfNode) -> list[int]:
        """What is still to be visited after a node: its children on top, then its younger siblings, then its parent's."""
        levels = [list(node.children)]
        while node.parent is not None:
            siblings = node.parent.children
            levels.append(list(siblings[siblings.index(node.address) + 1 :]))
            node = node.parent
        return [address for level in reversed(levels) for address in reversed(level)]

    def find(self, path: str) -> OfNode | None:
        """The node at an absolute path, or at one that begins with an alias."""
        if not path.startswith("/"):
            alias, slash, rest = path.partition("/")
            aliases = self.find("/aliases")
            target = aliases.tree.string(alias) if aliases is not None else None
            if target is None:
                return None
            path = f"{target}/{rest}" if slash else target
        address = self.by_path.get(path)
        return None if address is None else self.nodes[address]
