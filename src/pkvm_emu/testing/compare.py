"""What ``assert`` says about SMCCC results and page states, beyond two numbers that differ."""

from __future__ import annotations

from typing import Any

from pkvm_emu.hyp.ownership_log import PageInfo
from pkvm_emu.hyp.page_state import state_name
from pkvm_emu.results import HvcResult, describe_value

_PAGE_FIELDS = ("is_memory", "owner", "host_state", "hyp_state", "refcount", "host_entry", "host_level", "hyp_entry")


def explain_comparison(operator: str, left: Any, right: Any) -> list[str] | None:
    """The lines under a failed ``assert left == right``; None where nothing is to be said."""
    if operator != "==":
        return None
    for one, other in ((left, right), (right, left)):
        if isinstance(one, HvcResult) and isinstance(other, tuple):
            return _results(left, right)
    if isinstance(left, PageInfo) and isinstance(right, PageInfo):
        return _pages(left, right)
    if _is_register(left) and _is_register(right) and (_is_errno(left) or _is_errno(right)):
        return [f"{describe_value(left & _MASK)} == {describe_value(right & _MASK)}", "(as registers of 64 bits)"]
    return None


_MASK = (1 << 64) - 1


def _results(left: tuple[Any, ...], right: tuple[Any, ...]) -> list[str]:
    lines = [f"{_short(left)} == {_short(right)}"]
    for index in range(max(len(left), len(right))):
        one = left[index] if index < len(left) else None
        other = right[index] if index < len(right) else None
        if one != other:
            lines.append(f"x{index}: {_register(index, one)} != {_register(index, other)}")
    return lines


def _short(values: tuple[Any, ...]) -> str:
    return str(values) if isinstance(values, HvcResult) else f"({', '.join(_register(9, value) for value in values)})"


def _register(index: int, value: Any) -> str:
    if not _is_register(value):
        return repr(value)
    if index == 0:
        return f"{value & _MASK:#x} ({HvcResult(value & _MASK, 0, 0, 0).status})"
    return describe_value(value & _MASK)


def _pages(left: PageInfo, right: PageInfo) -> list[str]:
    lines = [f"page {left.pa:#x} == page {right.pa:#x}"]
    for name in _PAGE_FIELDS:
        one, other = getattr(left, name), getattr(right, name)
        if one != other:
            lines.append(f"{name}: {_page_value(name, one)} != {_page_value(name, other)}")
    lines += [f"history: {event}" for event in left.history[-4:]]
    return lines


def _page_value(name: str, value: Any) -> str:
    if name.endswith("_state"):
        return state_name(value)
    if name == "owner":
        return str(value.name)
    return f"{value:#x}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _is_register(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_errno(value: int) -> bool:
    return _MASK - 4095 < value <= _MASK or -4096 < value < 0
