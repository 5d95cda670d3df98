"""``--timeline`` and ``--html`` of ``run`` and ``shell``."""

from __future__ import annotations

import json

import pytest

from pkvm_emu.cli.main import main

PANICS = """
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs) { ((void (*)(void))0x1234)(); }
"""


def events(path) -> list:
    return json.loads(path.read_text())["traceEvents"]


def test_a_run_writes_both(pkvm_driver, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, page = tmp_path / "out.json", tmp_path / "out.html"
    module = str(pkvm_driver("16"))
    arguments = ["run", module, "--call", "pkvm_driver_hyp_hvc:1,2", "--timeline", str(trace), "--html", str(page)]
    assert main(arguments) == 0
    assert "pkvm_driver_hyp_hvc(0x1, 0x2)" in capsys.readouterr().out
    assert any(event.get("name") == "pkvm_driver_hyp_hvc" and event["cat"] == "hvc" for event in events(trace))
    assert "SMCCC_RET_SUCCESS" in page.read_text()


def test_the_report_is_the_same_with_and_without(pkvm_driver, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", str(pkvm_driver("16")), "--call", "pkvm_driver_hyp_hvc:1,2"]
    main(arguments)
    plain = capsys.readouterr().out
    main([*arguments, "--timeline", str(tmp_path / "out.json")])
    assert capsys.readouterr().out == plain


def test_a_panic_is_written_with_its_reason(c_module, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, page = tmp_path / "out.json", tmp_path / "out.html"
    module = str(c_module(el2=PANICS, name="panics"))
    status = main(["run", module, "--call", "hyp_call", "--timeline", str(trace), "--html", str(page)])
    assert status == 1
    reason = capsys.readouterr().err.strip().splitlines()[-1].removeprefix("pkvm-emu: ")
    assert json.loads(trace.read_text())["otherData"]["failures"] == [reason]
    assert json.dumps(reason)[1:40] in page.read_text()


def test_a_file_that_cannot_be_written_is_told_before_anything_runs(pkvm_driver, tmp_path, capsys) -> None:
    for option in ("--timeline", "--html"):
        assert main(["run", str(pkvm_driver("16")), option, str(tmp_path / "none" / "file")]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert f"{option} {tmp_path}/none/file: No such file or directory" in captured.err


def test_a_session_of_the_shell_is_written_too(pkvm_driver, tmp_path) -> None:
    script, trace = tmp_path / "script", tmp_path / "out.json"
    script.write_text("hvc pkvm_driver_hyp_hvc 1 2\nexit 3\n")
    arguments = ["shell", str(pkvm_driver("16")), "--script", str(script), "--timeline", str(trace)]
    assert main(arguments) == 3
    assert sum(event.get("name") == "pkvm_driver_hyp_hvc" and event["ph"] == "B" for event in events(trace)) >= 2
