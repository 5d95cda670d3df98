"""Red-black trees (``lib/rbtree.c``): the part that is not inlined.

``struct rb_node`` is {parent with the colour in bit 0 (1: black); right @8; left @16}; a root is one pointer. Augmented trees give
three callbacks (``propagate``, ``copy``, ``rotate``).
"""

from __future__ import annotations

from pkvm_emu.kernel.guest_access import load, load_u64, store, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import Ptr

_RIGHT, _LEFT = 8, 16
_BLACK = 1
_POINTER = ~3


class _Tree:
    """Reads and writes the nodes of one tree.

    Args:
        kernel: whose memory.
        root: address of the root pointer.
        rotate: callback of an augmented tree, or 0.
    """

    def __init__(self, kernel: Kernel, root: int, rotate: int = 0) -> None:
        self._kernel = kernel
        self._root = root
        self._rotate = rotate

    def child(self, node: int, side: int) -> int:
        """The left or right child."""
        return load_u64(self._kernel, node + side)

    def set_child(self, node: int, side: int, child: int) -> None:
        """Set it."""
        store_uint(self._kernel, node + side, child, 8)

    def parent(self, node: int) -> int:
        """The parent, 0 for the root."""
        return load_u64(self._kernel, node) & _POINTER

    def is_red(self, node: int) -> bool:
        """Whether a node is red; leaves are black."""
        return bool(node) and not load_u64(self._kernel, node) & _BLACK

    def set_parent(self, node: int, parent: int, is_black: bool | None = None) -> None:
        """Set the parent, and the colour or keep it."""
        colour = load_u64(self._kernel, node) & _BLACK if is_black is None else int(is_black)
        store_uint(self._kernel, node, parent | colour, 8)

    def paint(self, node: int, is_black: bool) -> None:
        """Set the colour."""
        self.set_parent(node, self.parent(node), is_black)

    def replace_child(self, parent: int, old: int, new: int) -> None:
        """Let ``new`` be where ``old`` was; 0 as parent is the root."""
        if not parent:
            store_uint(self._kernel, self._root, new, 8)
        elif self.child(parent, _LEFT) == old:
            self.set_child(parent, _LEFT, new)
        else:
            self.set_child(parent, _RIGHT, new)

    def rotate(self, node: int, side: int) -> int:
        """Let the child opposite to ``side`` come up, and the node go down to ``side``; that child."""
        other = _LEFT + _RIGHT - side
        up = self.child(node, other)
        inner, parent = self.child(up, side), self.parent(node)
        self.set_child(node, other, inner)
        if inner:
            self.set_parent(inner, node)
        self.replace_child(parent, node, up)
        self.set_parent(up, parent)
        self.set_child(up, side, node)
        self.set_parent(node, up)
        if self._rotate:
            self._kernel.call(self._rotate, node, up)
        return up

    def insert(self, node: int) -> None:
        """Balance after a red leaf was linked."""
        self.set_parent(node, self.parent(node), False)
        while self.is_red(parent := self.parent(node)):
            grandparent = self.parent(parent)
            side = _LEFT if self.child(grandparent, _LEFT) == parent else _RIGHT
            other = _LEFT + _RIGHT - side
            uncle = self.child(grandparent, other)
            if self.is_red(uncle):
                self.paint(parent, True)
                self.paint(uncle, True)
                self.paint(grandparent, False)
                node = grandparent
                continue
            if self.child(parent, other) == node:
                self.rotate(parent, side)
                node, parent = parent, node
            self.paint(parent, True)
            self.paint(grandparent, False)
            self.rotate(grandparent, other)
        if not self.parent(node):
            self.paint(node, True)

    def fill_gap(self, node: int, parent: int) -> None:
        """Balance where the path through ``node`` (0: a leaf) below ``parent`` has lost a black node."""
        while parent and not self.is_red(node):
            side = _LEFT if self.child(parent, _LEFT) == node else _RIGHT
            other = _LEFT + _RIGHT - side
            sibling = self.child(parent, other)
            if self.is_red(sibling):
                self.paint(sibling, True)
                self.paint(parent, False)
                self.rotate(parent, side)
                sibling = self.child(parent, other)
            far, near = self.child(sibling, other), self.child(sibling, side)
            if not self.is_red(far) and not self.is_red(near):
                self.paint(sibling, False)
                node, parent = parent, self.parent(parent)
                continue
            if not self.is_red(far):
                self.paint(near, True)
                self.paint(sibling, False)
                self.rotate(sibling, other)
                sibling = self.child(parent, other)
                far = self.child(sibling, other)
            self.paint(sibling, not self.is_red(parent))
            self.paint(parent, True)
            self.paint(far, True)
            self.rotate(parent, side)
            return
        if node:
            self.paint(node, True)

    def unlink(self, node: int, copy: int = 0, propagate: int = 0) -> int:
        """Take a node out; the parent below which a black node is missing, 0 where all is well."""
        left, right = self.child(node, _LEFT), self.child(node, _RIGHT)
        parent, was_red = self.parent(node), self.is_red(node)
        if not left or not right:
            child = left or right
            self.replace_child(parent, node, child)
            if child:
                self.set_parent(child, parent, True)
            changed, gap = parent, 0 if child or was_red else parent
        else:
            successor = right
            while self.child(successor, _LEFT):
                successor = self.child(successor, _LEFT)
            changed, gap = self._move_up(successor, node, copy, propagate)
        if propagate:
            self._kernel.call(propagate, changed, 0)
        return gap

    def _move_up(self, successor: int, node: int, copy: int, propagate: int) -> tuple[int, int]:
        """Let the successor of a node with two children take its place; the lowest node that changed, and the gap."""
        child, was_red = self.child(successor, _RIGHT), self.is_red(successor)
        below = self.parent(successor)
        if below == node:
            below = successor
        else:
            self.set_child(below, _LEFT, child)
            right = self.child(node, _RIGHT)
            self.set_child(successor, _RIGHT, right)
            self.set_parent(right, successor)
        left, parent = self.child(node, _LEFT), self.parent(node)
        self.set_child(successor, _LEFT, left)
        self.set_parent(left, successor)
        self.replace_child(parent, node, successor)
        self.set_parent(successor, parent, not self.is_red(node))
        if copy:
            self._kernel.call(copy, node, successor)
            if below != successor and propagate:
                self._kernel.call(propagate, below, successor)
        if child:
            self.set_parent(child, below, True)
        return successor, 0 if child or was_red else below


@kernel_symbol("rb_insert_color", runs_guest=True)
def rb_insert_color(kernel: Kernel, node: Ptr, root: Ptr) -> None:
    """Balance a tree after a node was linked."""
    _Tree(kernel, root).insert(node)


@kernel_symbol("__rb_insert_augmented", runs_guest=True)
def rb_insert_augmented(kernel: Kernel, node: Ptr, root: Ptr, rotate: Ptr) -> None:
    """The same for an augmented tree: ``rotate(old, new)`` is called for each rotation."""
    _Tree(kernel, root, rotate).insert(node)


@kernel_symbol("rb_erase", runs_guest=True)
def rb_erase(kernel: Kernel, node: Ptr, root: Ptr) -> None:
    """Take a node out of a tree."""
    tree = _Tree(kernel, root)
    gap = tree.unlink(node)
    if gap:
        tree.fill_gap(0, gap)


@kernel_symbol("__rb_erase_color", runs_guest=True)
def rb_erase_color(kernel: Kernel, parent: Ptr, root: Ptr, rotate: Ptr) -> None:
    """Balance an augmented tree below ``parent`` after the inlined half has taken a node out."""
    _Tree(kernel, root, rotate).fill_gap(0, parent)


@kernel_symbol("rb_replace_node", "rb_replace_node_rcu", runs_guest=True)
def rb_replace_node(kernel: Kernel, victim: Ptr, new: Ptr, root: Ptr) -> None:
    """Let another node take the place of one."""
    tree = _Tree(kernel, root)
    store(kernel, new, load(kernel, victim, 24))
    for side in (_LEFT, _RIGHT):
        child = tree.child(victim, side)
        if child:
            tree.set_parent(child, new)
    tree.replace_child(tree.parent(victim), victim, new)


# Walking


def _end(kernel: Kernel, node: int, side: int) -> int:
    """The last node in a direction."""
    while node:
        child = load_u64(kernel, node + side)
        if not child:
            break
        node = child
    return node


def _beside(kernel: Kernel, node: int, side: int) -> int:
    parent, right, left = (load_u64(kernel, node + member) for member in (0, _RIGHT, _LEFT))
    # A node that is in no tree is its own parent (RB_CLEAR_NODE).
    if parent == node:
        return 0
    child = right if side == _RIGHT else left
    if child:
        return _end(kernel, child, _LEFT + _RIGHT - side)
    up = parent & _POINTER
    while up and load_u64(kernel, up + side) == node:
        node, up = up, load_u64(kernel, up) & _POINTER
    return up


@kernel_symbol("rb_first", runs_guest=True)
def rb_first(kernel: Kernel, root: Ptr) -> int:
    """The first node of a tree, NULL where it is empty."""
    return _end(kernel, load_u64(kernel, root), _LEFT)


@kernel_symbol("rb_last", runs_guest=True)
def rb_last(kernel: Kernel, root: Ptr) -> int:
    """The last node."""
    return _end(kernel, load_u64(kernel, root), _RIGHT)


@kernel_symbol("rb_next", runs_guest=True)
def rb_next(kernel: Kernel, node: Ptr) -> int:
    """The node after one, or NULL."""
    return _beside(kernel, node, _RIGHT)


@kernel_symbol("rb_prev", runs_guest=True)
def rb_prev(kernel: Kernel, node: Ptr) -> int:
    """The node before one, or NULL."""
    return _beside(kernel, node, _LEFT)


def _deepest(kernel: Kernel, node: int) -> int:
    """The leaf that a walk from the leaves up begins with."""
    while True:
        child = load_u64(kernel, node + _LEFT) or load_u64(kernel, node + _RIGHT)
        if not child:
            return node
        node = child


@kernel_symbol("rb_first_postorder", runs_guest=True)
def rb_first_postorder(kernel: Kernel, root: Ptr) -> int:
    """The first node of a walk that comes to children before their parents."""
    node = load_u64(kernel, root)
    return _deepest(kernel, node) if node else 0


@kernel_symbol("rb_next_postorder", runs_guest=True)
def rb_next_postorder(kernel: Kernel, node: Ptr) -> int:
    """The next node of such a walk, or NULL."""
    if not node:
        return 0
    parent = load_u64(kernel, node) & _POINTER
    if parent and load_u64(kernel, parent + _LEFT) == node and (right := load_u64(kernel, parent + _RIGHT)):
        return _deepest(kernel, right)
    return parent
