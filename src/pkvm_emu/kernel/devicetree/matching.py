"""``of_device_id`` tables against nodes (``__of_match_node`` in ``drivers/of/base.c``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.devicetree.layouts import MATCH_COMPATIBLE, MATCH_DATA, MATCH_SIZE, MATCH_TYPE
from pkvm_emu.kernel.devicetree.nodes import OfNode

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

_BEST = 0x7FFF_FFFF // 2
_ROWS_LIMIT = 4096


def compatible_score(node: OfNode, compatible: str = "", kind: str = "", name: str = "") -> int:
    """How well a node fits, 0 for not at all: an early compatible string beats a late one, then type, then name."""
    score = 0
    if compatible:
        wanted = compatible.lower()
        for index, text in enumerate(node.tree.strings("compatible")):
            if text.lower() == wanted:
                score = _BEST - (index << 2)
                break
        if not score:
            return 0
    if kind:
        if node.tree.string("device_type") != kind:
            return 0
        score += 2
    if name:
        if node.tree.base_name != name:
            return 0
        score += 1
    return score


def match_table(kernel: Kernel, table: int, node: OfNode) -> int | None:
    """Address of the row of an ``of_device_id`` table that fits a node best, or None.

    Raises:
        ModuleError: the table has no end.
    """
    if not table:
        return None
    best, best_score = None, 0
    for row in range(_ROWS_LIMIT):
        address = table + row * MATCH_SIZE
        raw = kernel.memory.read(address, MATCH_SIZE)
        name, kind = _text(raw[:MATCH_TYPE]), _text(raw[MATCH_TYPE:MATCH_COMPATIBLE])
        compatible = _text(raw[MATCH_COMPATIBLE:MATCH_DATA])
        if not (name or kind or compatible):
            return best
        score = compatible_score(node, compatible, kind, name)
        if score > best_score:
            best, best_score = address, score
    raise ModuleError(f"{kernel.describe(table)}: a table of of_device_id without an empty last row")


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("latin-1")
