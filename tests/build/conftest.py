"""Module trees and a tiny set of headers, so that the tests of the pipeline do not depend on the real headers."""

from __future__ import annotations

from pathlib import Path

import pytest
from module_trees import HEADERS, WriteTree, kbuild_files


@pytest.fixture
def write_tree(tmp_path: Path) -> WriteTree:
    """Writes files (path below the tree: text) to ``tmp_path/sample``; the directory."""

    def write(files: dict[str, str]) -> Path:
        top = tmp_path / "sample"
        for name, text in files.items():
            path = top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return top

    return write


@pytest.fixture
def headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A headers root with only what the sample sources include; the build uses it."""
    root = tmp_path / "headers"
    for name, text in HEADERS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("PKVM_EMU_HEADERS", str(root))
    return root


@pytest.fixture
def sample(write_tree: WriteTree, headers: Path) -> Path:
    """The documented Kbuild tree with the tiny headers in place."""
    return write_tree(kbuild_files())
