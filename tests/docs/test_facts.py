"""Numbers and names that pages state are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from pkvm_emu.abi.generation import GENERATIONS
from pkvm_emu.cli.main import COMMANDS
from pkvm_emu.hyp import layout as hyp_layout
from pkvm_emu.kernel import layout as kernel_layout
from pkvm_emu.machine.profile import MachineProfile

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
RUNNING = (ROOT / "docs" / "running.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_machine_features_and_their_defaults() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (on|off) \|", RUNNING, re.MULTILINE))
    defaults = MachineProfile()
    features = {name for name in defaults.__slots__ if isinstance(getattr(defaults, name), bool)}
    assert rows == {name: "on" if getattr(defaults, name) else "off" for name in features}


def test_the_generations_and_what_their_handlers_get() -> None:
    rows = re.findall(r"^\| (android\d+-[\d.]+) \|.*\| `struct (\w+) \*` \|$", README, re.MULTILINE)
    assert rows == [(gen.name, gen.handler_context) for gen in GENERATIONS]


def test_some_page_speaks_of_every_command() -> None:
    assert not [name for name, _, _ in COMMANDS if f"pkvm-emu {name}" not in README + _all_guides()]


def test_the_address_map() -> None:
    rows = kernel_layout.LAYOUTS[kernel_layout.DEFAULT_VA_BITS]
    for value in (
        rows.kimage_vaddr,
        rows.modules_vaddr,
        rows.page_offset,
        rows.vmalloc_start,
        rows.stacks_vaddr,
        hyp_layout.TAG,
        hyp_layout.PRIVATE_BASE,
        hyp_layout.VMEMMAP_BASE,
        MachineProfile().ram_base,
    ):
        assert f"{value:#x}" in ARCHITECTURE, f"{value:#x}"


def _all_guides() -> str:
    return "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
