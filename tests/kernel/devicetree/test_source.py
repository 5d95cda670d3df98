"""Device trees as text and as blobs."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkvm_emu.errors import InputError
from pkvm_emu.kernel.devicetree.blob import parse_blob, read_device_tree, to_blob
from pkvm_emu.kernel.devicetree.source import parse_source, to_source
from pkvm_emu.kernel.devicetree.tree import TreeNode

SOURCE = """/dts-v1/;
/* a board */
/ {
	#address-cells = <2>; // cells
	one: first@1000 { flag; text = "a", "b"; cells = <1 0x20>, <&two 3>; bytes = [0a 0B]; wide = /bits/ 64 <0x100000001>; };
	two: second { path = &one; };
};
"""


def same(one: TreeNode, other: TreeNode) -> bool:
    left = [(node.path, node.properties) for node in one.walk()]
    return left == [(node.path, node.properties) for node in other.walk()]


def test_source_is_read_with_labels_and_references() -> None:
    root = parse_source(SOURCE)
    first, second = root.find("/first@1000"), root.find("/second")
    assert first is not None
    assert second is not None
    assert first.cells("cells") == [1, 0x20, second.phandle, 3]
    assert first.strings("text") == ["a", "b"]
    assert first.properties["bytes"] == b"\x0a\x0b"
    assert first.properties["wide"] == (0x1_0000_0001).to_bytes(8, "big")
    assert first.properties["flag"] == b""
    assert second.string("path") == "/first@1000"


names = st.text("abcdefgh-,0123456789", min_size=1, max_size=8).map("n".__add__)
values = st.one_of(st.binary(max_size=12), st.lists(st.text('abc xyz"\\', min_size=1), min_size=1).map(tuple))


@st.composite
def trees(draw: st.DrawFn, depth: int = 2) -> TreeNode:
    def fill(node: TreeNode, left: int) -> None:
        for name, value in draw(st.dictionaries(names, values, max_size=3)).items():
            node.set(name, value if isinstance(value, bytes) else list(value))
        for name in draw(st.lists(names, unique=True, max_size=2 if left else 0)):
            fill(node.add(name), left - 1)

    root = TreeNode("")
    fill(root, depth)
    return root


@given(trees())
def test_any_tree_survives_printing_and_reading(root: TreeNode) -> None:
    assert same(parse_source(to_source(root)), root)


@given(trees())
def test_any_tree_survives_the_blob(root: TreeNode) -> None:
    assert same(parse_blob(to_blob(root)), root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/ { a = <1; };", "1: ';' is no number"),
        ("/ { a = <&gone>; };", "no node has the label 'gone'"),
        ("/ { a { };", "the file ends"),
        ("\n\n/ { a = (1 + 2); };", "3: '\\('"),
        ("", "no root node"),
        ("/ { a = 5; };", "'5' is no value of a"),
        ("&uart { };", "not expected here"),
        ("/ { a = [0]; };", "no bytes in hex"),
    ],
)
def test_bad_source_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_source(text, "board.dts")


@given(st.binary(max_size=64), st.integers(0, 200), st.integers(0, 255))
def test_a_damaged_blob_is_refused_or_read_but_never_crashes(tail: bytes, place: int, byte: int) -> None:
    blob = bytearray(to_blob(parse_source(SOURCE)))
    blob[place % len(blob)] = byte
    for data in (bytes(blob), bytes(blob[: place + 1]), b"\xd0\x0d\xfe\xed" + tail):
        # Any other exception fails the test.
        with contextlib.suppress(InputError):
            assert parse_blob(data).name == ""


def test_a_file_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.dtb").write_bytes(to_blob(parse_source(SOURCE)))
    (tmp_path / "a.dts").write_text(SOURCE)
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\x00")
    assert same(read_device_tree(tmp_path / "a.dtb"), read_device_tree(tmp_path / "a.dts"))
    with pytest.raises(InputError, match=r"a\.bin: neither a device-tree blob"):
        read_device_tree(tmp_path / "a.bin")
    with pytest.raises(InputError, match="cannot be read"):
        read_device_tree(tmp_path / "absent.dtb")
