"""``pkvm-emu inspect``: text for people, one JSON object for programs, one line for what is no module."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pkvm_emu.cli.main import main
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.errors import PkvmEmuError
from pkvm_emu.inspect import functions
from pkvm_emu.inspect.inspection import inspect_module
from pkvm_emu.inspect.text import TextReport

_MUTATIONS = 200
_SECONDS_EACH = 5.0


def test_the_text_names_what_the_module_is_and_does(
    pkvm_driver: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(pkvm_driver("16"))]) == 0
    text = capsys.readouterr().out
    for line in (
        "pkvm_driver: android16-6.12, EL1 and EL2",
        "  EL2: kCFI (normalised type ids)",
        "  EL2 init     pkvm_driver_hyp_init (stored to struct module+0x498 before the load",
        "  hypercall: pkvm_driver_hyp_hvc (",
    ):
        assert line in text
    assert "\x1b" not in text


def test_json_is_one_object_with_the_same_topics_for_every_module(
    pkvm_driver: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "--json", str(pkvm_driver("14")), str(pkvm_driver("14"))]) == 0
    first, second = json.loads(capsys.readouterr().out)["modules"]
    assert first == second
    topics = "build complete entry_points exports hardware has_el2 identity imports ops sections struct_module tracing"
    assert sorted(first) == topics.split()


def test_the_answer_does_not_depend_on_the_hash_seed(pkvm_driver: Callable[[str], Path]) -> None:
    command = [sys.executable, "-m", "pkvm_emu", "inspect", "--json", str(pkvm_driver("15"))]
    outputs = {subprocess.run(command, capture_output=True, env={"PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")}
    assert len(outputs) == 1
    assert outputs.pop().startswith(b"{")


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"not a module"])
def test_what_is_no_module_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    path = tmp_path / "bad.ko"
    path.write_bytes(content)
    assert main(["inspect", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_of_more_code_than_an_inspection_takes_on_el1_is_left_out(
    pkvm_driver: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = ModuleFile.load(pkvm_driver("16"))
    hyp_text = file.section(".hyp.text")
    assert hyp_text is not None
    monkeypatch.setattr(functions, "CODE_LIMIT", hyp_text.size)
    found = inspect_module(file)
    assert not found.complete
    assert found.entry_points.el2_init == ["pkvm_driver_hyp_init"]
    assert found.ops.hypercalls == []
    assert "more code than" in TextReport(found).text()


@pytest.mark.parametrize("generation", ["14", "16"])
def test_damaged_files_give_a_report_or_one_line_in_bounded_time(
    pkvm_driver: Callable[[str], Path], generation: str
) -> None:
    original = pkvm_driver(generation).read_bytes()
    draw = random.Random(int(generation))
    reports: list[str] = []
    refusals: list[str] = []
    for number in range(_MUTATIONS // 2):
        data = bytearray(original)
        if number % 4 == 0:
            del data[draw.randrange(len(data)) :]
        elif number % 4 == 1:
            for _ in range(draw.randrange(1, 9)):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        elif number % 4 == 2:
            for _ in range(draw.randrange(1, 200)):
                data[draw.randrange(64, len(data))] = draw.randrange(256)
        else:
            start, length, source = (
                draw.randrange(64, len(data)),
                draw.randrange(1, 4096),
                draw.randrange(64, len(data)),
            )
            data[start : start + length] = data[source : source + length]
        started = time.process_time()
        try:
            reports.append(TextReport(inspect_module(ModuleFile.parse(bytes(data), "damaged.ko")), verbose=True).text())
        except PkvmEmuError as error:
            refusals.append(str(error))
        assert time.process_time() - started < _SECONDS_EACH
    assert reports
    assert refusals
    assert not any("\n" in line for line in refusals)
