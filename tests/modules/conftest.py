"""The compiler as a fixture."""

from __future__ import annotations

from pathlib import Path

import pytest
from header_snippets import Compile


@pytest.fixture
def compile_c(tmp_path: Path) -> Compile:
    return Compile(tmp_path)
