"""Addresses through buses and interrupts through controllers."""

from __future__ import annotations

import pytest

from pkvm_emu.kernel.devicetree.addresses import Interrupt, Window, interrupts, window
from pkvm_emu.kernel.devicetree.source import parse_source
from pkvm_emu.kernel.devicetree.tree import TreeNode

TREE = """
/ {
	#address-cells = <2>; #size-cells = <1>; interrupt-parent = <&gic>;
	gic: gic { #interrupt-cells = <3>; };
	pins: pins { #interrupt-cells = <2>; };
	outer { #address-cells = <1>; #size-cells = <1>; ranges = <0x1000 0x8 0x00002000 0x1000>, <0x4000 0x9 0 0x1000>;
		inner { #address-cells = <1>; #size-cells = <0>; ranges;
			leaf { reg = <0x4010>; interrupts = <0 7 4>, <1 9 8>; };
		};
		far { reg = <0x9000 4>; };
		near { reg = <0x1004 4>, <0x4000 8>; interrupts-extended = <&pins 3 1>, <&gic 0 2 4>; };
	};
	plain { #address-cells = <1>; #size-cells = <1>; lost { reg = <0 4>; }; };
};
"""


@pytest.fixture
def root() -> TreeNode:
    return parse_source(TREE)


@pytest.mark.parametrize(
    ("path", "index", "expected"),
    [
        ("/outer/near", 0, Window(0x8_0000_2004, 4)),
        ("/outer/near", 1, Window(0x9_0000_0000, 8)),
        ("/outer/near", 2, None),
        ("/outer/near", -1, None),
        ("/outer/inner/leaf", 0, Window(0x9_0000_0010, 0)),
        ("/outer/far", 0, None),
        ("/plain/lost", 0, None),
    ],
)
def test_an_address_goes_through_every_bus_or_nowhere(
    root: TreeNode, path: str, index: int, expected: Window | None
) -> None:
    node = root.find(path)
    assert node is not None
    assert window(node, index) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/outer/inner/leaf", [Interrupt(39, 4), Interrupt(25, 8)]),
        ("/outer/near", [Interrupt(3, 1), Interrupt(34, 4)]),
        ("/outer/far", []),
    ],
)
def test_interrupts_are_numbered_as_their_controller_does(root: TreeNode, path: str, expected: list[Interrupt]) -> None:
    node = root.find(path)
    assert node is not None
    assert interrupts(root, node) == expected
