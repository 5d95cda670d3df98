"""Red-black trees: what compiled code builds with the exported functions stays a balanced search tree."""

from __future__ import annotations

from exports_host import Host
from hypothesis import given, settings
from hypothesis import strategies as st

_NODE = 32


class Tree:
    """Nodes with a key behind them, linked as a module's inlined code does."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.memory = host.kernel.memory
        self.root = host.buffer(8)
        self.memory.write_u64(self.root, 0)
        self.nodes: dict[int, int] = {}

    def insert(self, key: int) -> None:
        parent, link = 0, self.root
        while child := self.memory.read_u64(link):
            parent = child
            link = child + (16 if key < self.key(child) else 8)
        node = self.host.buffer(_NODE)
        self.memory.write(node, parent.to_bytes(8, "little") + bytes(16) + key.to_bytes(8, "little"))
        self.memory.write_u64(link, node)
        self.host.call("rb_insert_color", node, self.root)
        self.nodes[key] = node

    def key(self, node: int) -> int:
        return self.memory.read_u64(node + 24)

    def erase(self, key: int) -> None:
        self.host.call("rb_erase", self.nodes.pop(key), self.root)

    def walk(self, first: str, following: str) -> list[int]:
        found = []
        node = self.host.call(first, self.root)
        while node:
            found.append(self.key(node))
            node = self.host.call(following, node)
        return found

    def check(self, node: int | None = None, parent: int = 0) -> int:
        """The black height; fails where a rule is broken."""
        node = self.memory.read_u64(self.root) if node is None else node
        if not node:
            return 1
        word = self.memory.read_u64(node)
        assert word & ~3 == parent
        is_black = word & 1
        assert is_black or parent, "the root is red"
        if not is_black:
            assert self.memory.read_u64(parent) & 1, "a red node has a red child"
        left = self.check(self.memory.read_u64(node + 16), node)
        right = self.check(self.memory.read_u64(node + 8), node)
        assert left == right, "black heights differ"
        return left + is_black


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 1000), unique=True, min_size=1, max_size=24), st.randoms(use_true_random=False))
def test_any_inserts_and_erasures_keep_the_rules_and_the_order(booted, keys, random) -> None:  # type: ignore[no-untyped-def]
    host, snapshot = booted
    first = host._next
    tree = Tree(host)
    for key in keys:
        tree.insert(key)
        tree.check()
    assert tree.walk("rb_first", "rb_next") == sorted(keys)
    assert tree.walk("rb_last", "rb_prev") == sorted(keys, reverse=True)
    assert sorted(tree.walk("rb_first_postorder", "rb_next_postorder")) == sorted(keys)
    shuffled = list(keys)
    random.shuffle(shuffled)
    for position, key in enumerate(shuffled):
        tree.erase(key)
        tree.check()
        assert tree.walk("rb_first", "rb_next") == sorted(shuffled[position + 1 :])
    host.system.restore(snapshot)
    host._next = first


def test_an_empty_tree_and_a_node_in_no_tree_have_no_neighbours(host: Host) -> None:
    tree = Tree(host)
    assert tree.walk("rb_first", "rb_next") == []
    assert host.call("rb_last", tree.root) == 0
    alone = host.buffer(32)
    host.kernel.memory.write_u64(alone, alone)
    assert host.call("rb_next", alone) == 0
    assert host.call("rb_prev", alone) == 0


def test_a_node_takes_the_place_of_another(host: Host) -> None:
    tree = Tree(host)
    for key in range(8):
        tree.insert(key)
    new = host.buffer(32)
    host.kernel.memory.write_u64(new + 24, 3)
    host.call("rb_replace_node", tree.nodes[3], new, tree.root)
    tree.check()
    assert tree.walk("rb_first", "rb_next") == list(range(8))
    assert host.call("rb_next", host.call("rb_prev", new)) == new
