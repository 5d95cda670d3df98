"""The rules of the Trace Event Format, as far as our files use it: what each event needs, and how events belong together."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

_COMMON = {"ph": str, "pid": int, "tid": int, "ts": (int, float)}
_NEEDS = {
    "B": {"name": str, "cat": str, "args": dict},
    "E": {},
    "i": {"name": str, "cat": str, "s": str},
    "M": {"name": str, "args": dict},
    "C": {"name": str, "args": dict},
    "s": {"name": str, "cat": str, "id": int},
    "f": {"name": str, "cat": str, "id": int, "bp": str},
}
_OPTIONAL = {"args"}
_METADATA = {"process_name", "process_sort_index", "thread_name", "thread_sort_index"}


def violations(events: list[dict[str, Any]]) -> list[str]:
    """What is wrong with a list of events; each complaint names the place in the list."""
    return [*_shapes(events), *_nesting(events), *_order(events), *_flows(events), *_names(events)]


def _shapes(events: list[dict[str, Any]]) -> list[str]:
    found = []
    for at, event in enumerate(events):
        needs = {**_COMMON, **_NEEDS.get(event.get("ph", ""), {"ph": type(None)})}
        for key, kind in needs.items():
            if not isinstance(event.get(key), kind):
                found.append(f"{at}: {key} is {event.get(key)!r}")
        unknown = event.keys() - needs.keys() - _OPTIONAL
        if unknown:
            found.append(f"{at}: {unknown} have no meaning in {event.get('ph')!r}")
        if event.get("ph") == "i" and event.get("s") not in ("g", "p", "t"):
            found.append(f"{at}: scope {event.get('s')!r}")
        if event.get("ph") == "C" and not all(isinstance(v, (int, float)) for v in event.get("args", {}).values()):
            found.append(f"{at}: a counter has numbers")
        for value in event.get("args", {}).values():
            if isinstance(value, int) and abs(value) >= 1 << 53:
                found.append(f"{at}: {value} is no exact number in JSON")
    return found


def _nesting(events: list[dict[str, Any]]) -> list[str]:
    found, depth = [], defaultdict(int)
    for at, event in enumerate(events):
        row = event["pid"], event["tid"]
        depth[row] += {"B": 1, "E": -1}.get(event["ph"], 0)
        if depth[row] < 0:
            found.append(f"{at}: nothing is open in {row}")
            depth[row] = 0
    return found + [f"{left} open in {row} at the end" for row, left in depth.items() if left]


def _order(events: list[dict[str, Any]]) -> list[str]:
    found, last = [], defaultdict(lambda: -1.0)
    for at, event in enumerate(events):
        # Counters have rows of their own.
        row = event["pid"], event["tid"], event["ph"] == "C"
        if event["ph"] == "M":
            continue
        if event["ts"] < last[row]:
            found.append(f"{at}: {event['ts']} after {last[row]} in {row}")
        last[row] = event["ts"]
    return found


def _flows(events: list[dict[str, Any]]) -> list[str]:
    found: list[str] = []
    begins: dict[int, dict[str, Any]] = {}
    for at, event in enumerate(events):
        if event["ph"] not in "sf":
            continue
        if events[at - 1]["ph"] != "B" or events[at - 1]["ts"] != event["ts"]:
            found.append(f"{at}: an arrow is not bound to a slice")
        if event["ph"] == "s":
            if event["id"] in begins:
                found.append(f"{at}: arrow {event['id']} begins twice")
            begins[event["id"]] = event
            continue
        begin = begins.pop(event["id"], None)
        if begin is None or begin["cat"] != event["cat"] or begin["name"] != event["name"]:
            found.append(f"{at}: arrow {event['id']} ends without a beginning like it")
        elif begin["ts"] > event["ts"] or begin["tid"] == event["tid"]:
            found.append(f"{at}: arrow {event['id']} goes back, or nowhere")
    return found + [f"arrow {number} does not end" for number in begins]


def _names(events: list[dict[str, Any]]) -> list[str]:
    meta = [event for event in events if event["ph"] == "M"]
    found = [f"metadata {event['name']!r}" for event in meta if event["name"] not in _METADATA]
    named = {(event["pid"], event["tid"]) for event in meta if event["name"] == "thread_name"}
    used = {(event["pid"], event["tid"]) for event in events if event["ph"] not in "MC"}
    return found + [f"thread {row} has no name" for row in used - named]
