"""Jobs run beside each other on the emulated clock; nothing waits for ever and no host time is spent."""

from __future__ import annotations

import time

import pytest
from shell_support import ShellRunner

from pkvm_emu.system import System


def test_sleep_moves_the_systems_clock_only(sh: ShellRunner, system: System) -> None:
    before, started = system.kernel.uptime_ns(), time.monotonic()
    assert sh("sleep 100; sleep 0.5") == 0
    assert system.kernel.uptime_ns() - before >= 100_500_000_000
    assert time.monotonic() - started < 5


def test_background_jobs_run_while_the_script_sleeps(sh: ShellRunner) -> None:
    sh("(sleep 1; echo b) & (sleep 3; echo d) & echo a; sleep 2; echo c; wait; echo e")
    assert sh.out.split() == ["a", "b", "c", "d", "e"]


def test_a_blocking_reader_sees_what_comes_later(sh: ShellRunner) -> None:
    sh("(timeout 3 cat /dev/kmsg | grep -c later > /tmp/n) & sleep 1; echo later > /dev/kmsg; sleep 3; cat /tmp/n")
    assert (sh.out, sh.err) == ("1\n", "")


def test_timeout_ends_a_reader_as_sigterm_does(sh: ShellRunner) -> None:
    assert sh("(timeout 1 cat /dev/kmsg > /tmp/k); echo rc=$?; wc -l < /tmp/k") == 0
    first, count = sh.out.split()
    assert first == "rc=143"
    assert int(count) > 0
    assert sh.err == "Terminated\n"


def test_timeout_passes_the_status_of_what_ends_in_time(sh: ShellRunner) -> None:
    assert sh("timeout 5 false") == 1
    assert sh("timeout 5 nope") == 127


def test_a_read_that_nothing_can_end_is_interrupted(sh: ShellRunner) -> None:
    assert sh("cat /dev/kmsg > /dev/null; echo rc=$?") == 0
    assert sh.out == "rc=130\n"
    assert "interrupted" in sh.err


def test_head_ends_a_writer_that_never_stops(sh: ShellRunner) -> None:
    assert sh("cat /dev/zero | head -c 2>/dev/null; while true; do echo y; done | head -n 2") == 0
    assert sh.out == "y\ny\n"


@pytest.mark.parametrize("script", ["cat /dev/kmsg & sleep 9 &", "(timeout 9 cat /dev/kmsg) > /tmp/x & true"])
def test_jobs_left_at_the_end_close_their_files(sh: ShellRunner, system: System, script: str) -> None:
    sh(script)
    sh.session.close()
    assert len(system.fs.open_files) == 0


def test_scripts_close_what_they_opened(sh: ShellRunner, system: System) -> None:
    sh(
        "echo a > /tmp/a; (cat < /tmp/a | cat) >> /tmp/b; { cat /tmp/a; } 2>&1 > /tmp/c; x=$(cat /tmp/a); exec 3</tmp/a 3>&-"
    )
    assert len(system.fs.open_files) == 0


def test_two_runs_print_the_same(sh: ShellRunner, system: System) -> None:
    snapshot = system.snapshot()
    script = "(sleep 1; cat /proc/uptime) & (sleep 1; echo x) & sleep 1; echo y; wait; dmesg"
    sh(script)
    first = sh.out
    system.restore(snapshot)
    sh(script)
    assert sh.out == first


def test_wait_knows_only_the_jobs_of_its_own_shell(sh: ShellRunner) -> None:
    sh("(sleep 2; echo late) & (sleep 1 & wait; echo inner) & wait; echo $!")
    assert sh.out.split()[:2] == ["inner", "late"]


def test_wait_for_a_job_that_blocks_for_ever_is_interrupted(sh: ShellRunner) -> None:
    assert sh("cat /dev/kmsg | cat > /tmp/all & wait; echo $?; wc -l < /tmp/all") == 0
    assert sh.out.splitlines()[0] == "130"
    assert int(sh.out.splitlines()[1]) > 0


def test_a_blocked_reader_in_the_foreground_does_not_end_the_one_in_the_background(sh: ShellRunner) -> None:
    sh("cat /dev/kmsg | grep -c mark > /tmp/n & cat /dev/kmsg > /dev/null; echo mark > /dev/kmsg; sleep 1")
    assert sh.err.count("interrupted") == 1


def test_a_full_pipe_stops_its_writer(sh: ShellRunner) -> None:
    assert sh("cat /dev/zero | sleep 5; while true; do echo y; done | sleep 1") == 0


def test_time_passes_beside_a_job_that_never_waits(sh: ShellRunner) -> None:
    assert sh("while true; do :; done & sleep 0.2; echo on; kill $!") == 0
    assert sh.out == "on\n"


@pytest.mark.parametrize("script", ["sort /dev/zero", "tail -1 /dev/zero", "wc /dev/zero", "read x < /dev/zero"])
def test_endless_input_ends_with_an_error(sh: ShellRunner, script: str) -> None:
    assert sh(script) == 1
    assert sh.err.count("\n") == 1


def test_jobs_are_named_by_number(sh: ShellRunner) -> None:
    sh("cat /dev/kmsg > /tmp/a & cat /dev/kmsg > /tmp/b & jobs; kill %1; jobs; kill %%; jobs; jobs")
    first, second = (int(line.split()[1]) for line in sh.out.splitlines()[:2])
    assert sh.out.splitlines() == [
        f"[1]  {first} Running",
        f"[2]+ {second} Running",
        f"[1]  {first} Terminated",
        f"[2]+ {second} Running",
        f"[2]+ {second} Terminated",
    ]


def test_wait_takes_jobs_and_gives_their_status(sh: ShellRunner) -> None:
    assert sh("(sleep 1; exit 3) & sleep 5 & wait %1") == 3
    assert sh("(exit 4) & wait $!") == 4
    assert sh("wait %7") == 127
    assert sh("wait %x") == 2
    assert sh("kill %7") == 1
    assert "can't kill pid %7: No such process" in sh.err
