"""The commands: text tools, modules, the log, hypercalls."""

from __future__ import annotations

import re

import pytest
from shell_support import ShellRunner

from pkvm_emu.hyp.pgtable import PAGE_HYP_DEVICE
from pkvm_emu.shell.command import COMMANDS
from pkvm_emu.shell.complete import completions
from pkvm_emu.system import System

PRINTS = {
    "echo -n a; echo -e 'b\\tc'": "ab\tc\n",
    "printf '%s-%d-%x|' a 10 255 b 2 3": "a-10-ff|b-2-3|",
    "printf '%5s|%-5s|%03d\\n' a b 7": "    a|b    |007\n",
    "printf 'a\\nb\\nc\\n' > /tmp/f; head -n 2 /tmp/f; tail -1 /tmp/f; tail -n +2 /tmp/f": "a\nb\nc\nb\nc\n",
    "printf 'a\\nb\\nc\\n' | head -1": "a\n",
    "printf 'ab\\ncd\\nef\\nab\\n' > /tmp/f; grep -n a /tmp/f; grep -c a /tmp/f; grep -v a /tmp/f": "1:ab\n4:ab\n2\ncd\nef\n",
    "printf '1\\n2\\nx\\n4\\n5\\n6\\nx\\n' | grep -n -B1 -A1 x": "2-2\n3:x\n4-4\n--\n6-6\n7:x\n",
    "printf 'Lost 1\\nlost 2\\n' | grep -i -o 'LOST [0-9]'": "Lost 1\nlost 2\n",
    "printf 'a+b\\naab\\n' | grep 'a+b'; printf 'a+b\\naab\\n' | grep -E 'a+b$'": "a+b\naab\n",
    "echo ab | grep -q b && echo yes; grep x /dev/null; echo $?": "yes\n1\n",
    "printf 'a b\\nc\\n' > /tmp/f; wc /tmp/f; wc -l < /tmp/f; wc -l /tmp/f": "        2         3         6 /tmp/f\n2\n2 /tmp/f\n",
    "printf '10\\n9\\n9\\n' | sort -n | uniq -c": "      2 9\n      1 10\n",
    "seq 3; seq 2 2 6": "1\n2\n3\n2\n4\n6\n",
    "test -f /proc/cmdline && [ -d /sys ] && [ ! -e /x ] && [ -c /dev/null ] && echo ok": "ok\n",
    "[ 2 -gt 10 ] || [ a != b -a -n x ] && echo ok": "ok\n",
    "mkdir -p /tmp/a/b; echo x > /tmp/a/b/f; find /tmp/a -type f; find /tmp -name 'b*'": "/tmp/a/b/f\n/tmp/a/b\n",
    "mkdir -p /tmp/a/b; touch /tmp/a/b/f; rm /tmp/a/b/f; rm -r /tmp/a; ls /tmp": "",
    "ls -l /dev/null; ls -ld /tmp": "crw-rw-rw-    1 0        0           1,   3 Jan  1 00:00 /dev/null\n"
    "drwxrwxrwt    2 0        0                0 Jan  1 00:00 /tmp\n",
    "cat /proc/cmdline": "quiet knobs.level=3\n",
    "uname -r": "6.12.0-android16\n",
    "command -v cat; command -v nope; echo $?": "cat\n127\n",
    "hvc 0x999; echo $?": "SMCCC_RET_NOT_SUPPORTED x1=0x0 x2=0x0 x3=0x0\n1\n",
}


@pytest.mark.parametrize("script", PRINTS)
def test_command_prints(sh: ShellRunner, script: str) -> None:
    sh(script)
    assert (sh.out, sh.err) == (PRINTS[script], "")


def test_dmesg_prints_records_and_nothing_else(sh: ShellRunner, system: System) -> None:
    sh("echo '<4>from user' > /dev/kmsg; dmesg")
    lines = sh.out.splitlines()
    assert lines == system.dmesg.splitlines()
    assert all(re.match(r"\[ *\d+\.\d{6}\] ", line) for line in lines)
    assert lines[-1].endswith("] from user")


def test_dmesg_c_clears_for_later(sh: ShellRunner) -> None:
    sh("dmesg -c > /dev/null; dmesg; echo new > /dev/kmsg; dmesg -t")
    assert sh.out == "new\n"


def test_parameters_run_their_ops_with_what_was_written(sh: ShellRunner) -> None:
    sh(
        "cd /sys/module/knobs/parameters; echo 42 > level; cat level fixed; dmesg -C; echo -n a > say; echo b > say; dmesg -t"
    )
    assert sh.out == "42\n7\nknobs: got [a]\nknobs: got [b\n]\n"
    assert sh.err == ""


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo x > {p}/level", "sh: write error: Invalid argument\n"),
        ("echo ! > {p}/say", "sh: write error: Device or resource busy\n"),
        ("cat {p}/say", "cat: can't open '{p}/say': Permission denied\n"),
        ("echo 1 > {p}/fixed", "sh: can't create {p}/fixed: Permission denied\n"),
        ("cat {p}/hidden", "cat: can't open '{p}/hidden': No such file or directory\n"),
        ("echo 1 > {p}/new", "sh: can't create {p}/new: Permission denied\n"),
    ],
)
def test_parameter_files_refuse_as_sysfs_does(sh: ShellRunner, script: str, message: str) -> None:
    place = "/sys/module/knobs/parameters"
    assert sh(script.format(p=place)) == 1
    assert sh.err == message.format(p=place)


def test_lsmod_and_proc_modules_show_the_module(sh: ShellRunner, system: System) -> None:
    sh("lsmod; cat /proc/modules")
    header, row, line = sh.out.splitlines()
    size = row.split()[1]
    assert header == "Module                  Size  Used by"
    assert row == f"knobs               {size:>8}  0"
    assert line == f"knobs {size} 0 - Live {system.modules['knobs'].layout.base:#018x} (O)"


def test_rmmod_runs_the_exit_function_and_insmod_brings_it_back(sh: ShellRunner) -> None:
    assert (
        sh("dmesg -C; rmmod knobs; ls /sys/module; insmod knobs.ko level=5; cat /sys/module/knobs/parameters/level")
        == 0
    )
    assert sh.out == "5\n"
    sh("rmmod knobs; modprobe knobs; modprobe knobs; dmesg -t")
    assert sh.out == "knobs: bye\nknobs: level 5\nknobs: bye\nknobs: level 3\n"
    assert sh.err == ""


def test_rmmod_gives_the_memory_back(sh: ShellRunner, system: System) -> None:
    sh("rmmod knobs; insmod knobs.ko")
    first = system.kernel.memory.to_pa(system.modules["knobs"].layout.base)
    sh("rmmod knobs; insmod knobs.ko")
    assert system.kernel.memory.to_pa(system.modules["knobs"].layout.base) == first


def test_a_module_with_a_loaded_el2_half_stays(sh: ShellRunner, system: System) -> None:
    system.modules["knobs"].references = 1
    assert sh("rmmod knobs") == 1
    assert sh.err == "rmmod: ERROR: Module knobs is in use: Device or resource busy\n"


def test_module_commands_say_what_failed(sh: ShellRunner) -> None:
    assert sh("insmod /lib/modules/knobs.ko") == 1
    assert sh.err.startswith("insmod: can't insert '/lib/modules/knobs.ko': File exists")
    assert sh("rmmod knobs; modprobe knobs level=-22") == 1
    assert sh.err.startswith("modprobe: can't load module knobs (knobs.ko): Invalid argument")
    assert sh("modprobe nope") == 1
    assert sh.err == "modprobe: FATAL: Module nope not found in directory /lib/modules/6.12.0-android16\n"
    assert sh("rmmod nope") == 1
    assert sh.err == "rmmod: ERROR: Module nope is not currently loaded\n"
    assert sh("insmod /none.ko") == 1
    assert sh.err.startswith("insmod: /none.ko: cannot be read")
    sh("echo junk > /tmp/junk.ko")
    assert sh("insmod /tmp/junk.ko") == 1
    assert sh.err.startswith("insmod: junk.ko: ")


def test_pages_prints_the_owner(sh: ShellRunner) -> None:
    assert sh("pages 0x48000000") == 0
    assert sh.out.startswith("page 0x48000000 (RAM): owner HOST")


def test_pages_draws_a_map_of_ram(sh: ShellRunner, system: System) -> None:
    assert system.hyp.ownership.host_donate_hyp(0x48000, 600, origin="a test") == 0
    assert system.hyp.ownership.host_share_hyp(0x4A000, origin="a test") == 0
    assert sh("pages") == 0
    lines = sh.out.splitlines()
    assert lines[0] == "0x40000000-0x80000000, 1 GiB; a letter is 2 MiB"
    rows = {int(line.split()[0], 16): line.split()[1] for line in lines[1:9]}
    assert rows[0x4800_0000] == "Hh" + "." * 14 + "s" + "." * 47
    assert "  S         4 KiB  the host's, shared with the hypervisor" in lines
    assert "  0x48000000-0x48258000  2.344 MiB  the hypervisor's (host_donate_hyp by a test)" in lines
    counted = sum(_bytes(line.split()[1:3]) for line in lines if line[:3] in ("  .", "  H", "  S"))
    assert abs(counted - (1 << 30)) < 4096


def _bytes(size: list[str]) -> float:
    return float(size[0]) * {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[size[1]]


def test_pages_maps_a_range_page_by_page(sh: ShellRunner, system: System) -> None:
    system.hyp.ownership.host_donate_hyp(0x48001, 2, origin="a test")
    for script in ("pages 0x48000000+16k", "pages 0x48000000-0x48004000"):
        assert sh(script) == 0
        assert sh.out.splitlines()[:2] == ["0x48000000-0x48004000, 16 KiB; a letter is 4 KiB", "  0x48000000  .HH."]


def test_pages_lists_what_lies_outside_of_ram(sh: ShellRunner, system: System) -> None:
    assert system.hyp.ownership.host_donate_hyp(0xA0000, 1, True, PAGE_HYP_DEVICE, origin="a test") == 0
    assert sh("pages") == 0
    assert "outside RAM\n  0xa0000000-0xa0001000      4 KiB  the hypervisor's" in sh.out


@pytest.mark.parametrize("script", ["pages 1-x", "pages 5-3", "pages 1+0", "pages 0x1ffffffffffffffff", "pages 1z"])
def test_pages_refuses_what_is_no_range(sh: ShellRunner, script: str) -> None:
    assert sh(script) == 2
    assert sh.err.startswith("pages: ")


@pytest.mark.parametrize("script", ["hvc", "hvc nope", "hvc 1 x", "hvc 1 2 3 4 5 6 7 8 9", "smc", "pages x"])
def test_hypercall_commands_refuse_bad_arguments(sh: ShellRunner, script: str) -> None:
    assert sh(script) == 2
    assert sh.err.startswith(f"{script.split()[0]}: ")


def test_help_knows_every_command(sh: ShellRunner) -> None:
    sh("help")
    assert {line.split()[0] for line in sh.out.splitlines()} == set(COMMANDS)


def test_completion_offers_commands_modules_and_paths(sh: ShellRunner) -> None:
    shell = sh.session.shell
    assert completions(shell, "dme") == ["dmesg "]
    assert completions(shell, "echo a; modprobe k") == ["knobs "]
    assert completions(shell, "cat /sys/module/kn") == ["/sys/module/knobs/"]
    assert completions(shell, "echo 1 > /sys/module/knobs/parameters/l") == ["/sys/module/knobs/parameters/level "]
