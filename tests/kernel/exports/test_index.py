"""The index of served symbols: it says where each symbol is, so that a run imports what it needs and no more."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files

from pkvm_emu.kernel.exports.make_index import index


def test_the_index_is_up_to_date() -> None:
    stored = json.loads(files("pkvm_emu.kernel.exports").joinpath("index.json").read_text())
    assert stored == index(), "run: python -m pkvm_emu.kernel.exports.make_index"


def test_a_symbol_imports_its_own_file_only() -> None:
    program = (
        "import sys; from pkvm_emu.kernel import registry; found = registry.find_function('strlen'); "
        "print(found.name, *sorted(m.rpartition('.')[2] for m in sys.modules if m.startswith('pkvm_emu.kernel.exports.')))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert out[0] == "strlen"
    assert "strings" in out
    assert "slab" not in out


def test_a_name_that_nobody_serves_is_not_found() -> None:
    program = "from pkvm_emu.kernel import registry; print(registry.find_function('no_such_symbol'))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out == "None\n"
