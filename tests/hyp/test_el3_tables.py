"""Vendor SMCs answered from TOML tables and Python files."""

from __future__ import annotations

from pathlib import Path

import pytest

import pkvm_emu
from pkvm_emu.errors import UsageError
from pkvm_emu.hyp.el3 import LOG_LINES
from pkvm_emu.hyp.el3_table import read_table
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System

SMALL = MachineProfile(ram_size=64 << 20)
SIP, DATA = 0xC200_0834, 0x4200_0000
M1 = (1 << 64) - 1


@pytest.fixture
def boot(tmp_path: Path):
    def booted(text: str, name: str = "vendor.toml") -> System:
        (tmp_path / name).write_text(text)
        return pkvm_emu.boot("16", profile=SMALL, smc=[tmp_path / name])

    return booted


def test_the_first_entry_that_fits_answers(boot) -> None:
    system = boot(
        """
[[smc]]
id = 0xC2000834
when = { x1 = 1, x2 = [4, 5] }
result = [10, "x2", 0xffffffffffffffff]

[[smc]]
id = 0xC2000834
when = { x1 = { min = 2, max = 3 } }
result = { x1 = 77 }

[[smc]]
range = [0xC2000834, 0xC2000840]
when = { x1 = { mask = 0xf0, value = 0x50 } }
result = -2
"""
    )
    assert system.smc(SIP, 1, 4, 9) == (10, 4, M1, 9)
    assert system.smc(SIP, 3, 4, 9) == (SIP, 77, 4, 9)
    assert system.smc(SIP + 12, 0x5A, 4, 9) == (M1 - 1, 0x5A, 4, 9)
    assert system.smc(SIP, 1, 6).x0 == M1
    assert list(system.hyp.el3.unanswered) == [SIP]


def test_an_entry_logs_and_writes_memory(boot) -> None:
    system = boot(
        f"""
[[smc]]
id = {SIP}
log = "{{x0:#x}} wants {{x2}}"
write = [{{ at = "x1", offset = 8, value = "x2", size = 2 }}, {{ at = {DATA + 64}, bytes = "c0 ff ee" }}]
"""
    )
    assert system.smc(SIP, DATA, 0x1_2345)[:3] == (0, DATA, 0x1_2345)
    assert system.machine.ram.read(DATA + 8, 4) == b"\x45\x23\0\0"
    assert system.machine.ram.read(DATA + 64, 3) == b"\xc0\xff\xee"
    assert list(system.hyp.el3.log) == [f"{SIP:#x} wants {0x1_2345}"]


def test_a_write_outside_of_ram_stops_the_run_by_name(boot) -> None:
    system = boot(f'[[smc]]\nid = {SIP}\nwrite = [{{ at = "x1", value = 1 }}]\n')
    before = system.snapshot()
    with pytest.raises(UsageError, match=r"sip 0x834 at EL3: 0x8 bytes at physical address 0x10 are not in RAM"):
        system.smc(SIP, 0x10)
    system.restore(before)
    with pytest.raises(UsageError, match="not in RAM"):
        system.smc(SIP, M1)


def test_a_log_keeps_its_beginning_and_counts_the_rest(boot) -> None:
    el3 = boot(f'[[smc]]\nid = {SIP}\nlog = "{{x1}}"\n').hyp.el3
    for number in range(LOG_LINES + 3):
        el3.answer((SIP, number, *[0] * 16))
    assert (el3.log[-1], len(el3.log), el3.unlogged) == (str(LOG_LINES - 1), LOG_LINES, 3)


def test_a_call_can_be_named(boot) -> None:
    assert boot('[[smc]]\nid = "SMCCC_VERSION"\nresult = 0x10001\n').smc(0x8000_0000).x0 == 0x1_0001


def test_conditions_of_smc32_calls_look_at_the_low_halves(boot) -> None:
    system = boot("[[smc]]\nid = 0x82000001\nwhen = { x1 = 3 }\nresult = 9\n")
    assert system.smc(0x8200_0001, 5 << 32 | 3).x0 == 9


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[smc]]\nid = = 3\n", "line 2"),
        ("x = 1\n", "x: an SMC table has"),
        ("", "no .*smc.* entry"),
        ("[smc]\nid = 1\n", "no .*smc.* entry"),
        ("[[smc]]\nresult = 0\n", r":1: smc\[0\]: give either id or range"),
        ("[[smc]]\nid = 1\n\n# more\n[[smc]]\nid = -1\n", r":5: smc\[1\]\.id: -1 is no 32-bit"),
        ('[[smc]]\nid = "FOO"\n', r"smc\[0\]\.id: no call is named 'FOO'"),
        ("[[smc]]\nid = true\n", r"smc\[0\]\.id: True"),
        ("[[smc]]\nid = 1.5\n", r"smc\[0\]\.id: 1.5"),
        ("[[smc]]\nrange = [2, 1]\n", r"smc\[0\]\.range: 0x2 is behind 0x1"),
        ("[[smc]]\nrange = [2]\n", r"smc\[0\]\.range: wanted \[first id, last id\]"),
        ("[[smc]]\nid = 1\nwhen = { x18 = 1 }\n", r"smc\[0\]\.when\.x18: 'x18' is no register"),
        ("[[smc]]\nid = 1\nwhen = { x1 = 'a' }\n", r"smc\[0\]\.when\.x1: wanted a number, a list"),
        ("[[smc]]\nid = 1\nwhen = { x1 = { lo = 1 } }\n", r"smc\[0\]\.when\.x1: wanted"),
        ("[[smc]]\nid = 1\nwhen = 3\n", r"smc\[0\]\.when: wanted a table"),
        ("[[smc]]\nid = 1\nresult = [1, 1.5]\n", r"smc\[0\]\.result\[1\]: 1.5 is neither"),
        ("[[smc]]\nid = 1\nresult = 0x1ffffffffffffffff\n", r"smc\[0\]\.result\[0\]"),
        ("[[smc]]\nid = 1\nlog = '{x1:q}'\n", r"smc\[0\]\.log: .*registers are written"),
        ("[[smc]]\nid = 1\nlog = '{y}'\n", r"smc\[0\]\.log: 'y' is no register"),
        ("[[smc]]\nid = 1\nlog = '{x1.real}'\n", r"smc\[0\]\.log: 'x1.real' is no register"),
        ("[[smc]]\nid = 1\nlog = 3\n", r"smc\[0\]\.log: wanted a string"),
        ("[[smc]]\nid = 1\nreslut = 3\n", r"smc\[0\]\.reslut: no such key; there are: id, log"),
        ("[[smc]]\nid = 1\nwrite = 3\n", r"smc\[0\]\.write: wanted a list"),
        ("[[smc]]\nid = 1\nwrite = [{ at = 1 }]\n", r"smc\[0\]\.write\[0\]: give at, and either"),
        ("[[smc]]\nid = 1\nwrite = [{ at = 1, value = 1, size = 3 }]\n", r"smc\[0\]\.write\[0\]\.size: wanted"),
        ("[[smc]]\nid = 1\nwrite = [{ at = 1, bytes = 'xyz' }]\n", r"smc\[0\]\.write\[0\]\.bytes: wanted"),
    ],
)
def test_a_wrong_table_is_refused_with_its_place(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "vendor.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=reason) as caught:
        read_table(path)
    assert "vendor.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


# Python files


def test_functions_of_a_python_file_answer_their_ids(boot) -> None:
    system = boot(
        """
from pkvm_emu.hyp.el3_calls import smc

@smc(0xC2000834, range(0xC3000000, 0xC3000010))
def both(call):
    call.log(f"{call.name} from {call.caller}")
    if call.x[1] == 9:
        return None
    call.write_u64(call.x[1], call.read_u64(call.x[1]) + 1)
    return 0, call.function & 0xff

@smc(0xC2000835)
def one(call):
    return -1

def setup(el3):
    el3.log.append(el3.profile)
""",
        "vendor.py",
    )
    system.machine.ram.write_u64(DATA, 41)
    assert system.smc(SIP, DATA)[:2] == (0, 0x34)
    assert system.machine.ram.read_u64(DATA) == 42
    assert system.smc(0xC300_000F, DATA)[:2] == (0, 0x0F)
    assert system.smc(SIP + 1).x0 == M1
    assert system.smc(SIP, 9).x0 == M1
    assert list(system.hyp.el3.unanswered) == [SIP]
    assert list(system.hyp.el3.log)[:2] == ["bare", "sip 0x834 from Python"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def broken(:\n", "SyntaxError"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("x = 1\n", r"neither a function with @smc\(ID\) nor setup"),
    ],
)
def test_a_python_file_that_does_not_load_is_refused_in_one_line(boot, text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        boot(text, "vendor.py")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("1 / 0", r"f\(\) for 0xc2000834 raised ZeroDivisionError"),
        ("'text'", "returned 'text'"),
        ("(1, 'a')", "returned"),
    ],
)
def test_a_function_that_fails_stops_the_run_by_its_name(boot, body: str, reason: str) -> None:
    system = boot(
        f"from pkvm_emu.hyp.el3_calls import smc\n@smc({SIP})\ndef f(call):\n    return {body}\n", "vendor.py"
    )
    with pytest.raises(UsageError, match=reason):
        system.smc(SIP)


@pytest.mark.parametrize("name", ["vendor.txt", "missing.toml", "missing.py"])
def test_only_tables_and_python_files_that_exist_are_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / "vendor.txt").write_text("")
    with pytest.raises(UsageError, match=r"wanted a table|no such file"):
        pkvm_emu.boot("16", profile=SMALL, smc=[tmp_path / name])
