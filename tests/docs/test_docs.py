"""The documentation is true: its examples print what it shows, its reference is that of the code, its links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


examples = _load("run_examples")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "modules" / "README.md", *sorted(DOCS.rglob("*.md"))]
WITH_EXAMPLES = [path for path in examples.documents() if examples.has_examples(path.read_text())]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


# Examples


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=_name)
def test_examples_print_what_the_page_shows(path: Path) -> None:
    pytest.importorskip("ziglang")
    found = examples.difference(path)
    assert not found, f"run docs/run_examples.py --write, and read the difference:\n{found}"


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_commands_of_ours_are_in_blocks_that_are_run(path: Path) -> None:
    for block in examples.blocks(path.read_text()):
        assert block.info == "console" or not any(line.startswith("$ pkvm-emu") for line in block.lines), block.lines
        if block.is_console:
            assert block.lines, f"line {block.start + 1}: an empty block"
            assert block.lines[0].startswith("$ "), f"line {block.start + 1}: no command"


def test_the_runner_notices_output_that_differs(tmp_path: Path) -> None:
    right = "```console\n$ echo one; echo two >&2\none\ntwo\n```\n"
    assert examples.refreshed(right) == right
    assert examples.refreshed(right.replace("two\n```", "three\n```")) == right


def test_the_runner_types_into_a_command() -> None:
    typed = "```console\n$ sh\n/ # echo one\none\n/ # false\n/ # echo $((1 + 1)) >&2\n2\n$ echo\n$ echo end\nend\n```\n"
    assert examples.refreshed(typed) == typed
    assert examples.refreshed(typed.replace("\none\n", "\nfour\n")) == typed


def test_the_runner_refuses_a_script_that_fails() -> None:
    with pytest.raises(examples.ExampleError):
        examples.refreshed("```python example\nraise SystemExit(3)\n```\n")


def test_the_runner_compares_what_a_script_prints() -> None:
    script = "```python example\nimport pkvm_emu\nprint(pkvm_emu.__version__ != '')\n```\n\n```text\n{}\n```\n"
    assert examples.refreshed(script.format("False")) == script.format("True")


# Reference


def test_the_reference_is_that_of_the_code() -> None:
    # In a process of its own: other tests register ops and symbols in this one.
    command = [sys.executable, str(DOCS / "generate_reference.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# Links

_LINK = re.compile(r"\]\(([^)\s]+)\)")


def _anchors(text: str) -> set[str]:
    found = set(re.findall(r'<a name="([^"]+)">', text))
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
        found.add(plain.strip().replace(" ", "-"))
    return found


def _without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_links_lead_to_files_and_headings_that_exist(path: Path) -> None:
    for target in _LINK.findall(_without_code(path.read_text())):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        if anchor:
            assert anchor in _anchors(file.read_text()), target


def test_every_page_is_reachable_from_the_readme() -> None:
    seen: set[Path] = set()
    open_pages = [ROOT / "README.md"]
    while open_pages:
        path = open_pages.pop()
        if path in seen:
            continue
        seen.add(path)
        for target in _LINK.findall(_without_code(path.read_text())):
            file = (path.parent / target.partition("#")[0]).resolve()
            if file.suffix == ".md" and file.exists():
                open_pages.append(file)
    missing = [_name(path) for path in DOCS.rglob("*.md") if path not in seen]
    assert not missing
