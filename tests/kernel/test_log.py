"""The kernel log: levels, continuation, and the text of ``dmesg``."""

from __future__ import annotations

import pytest

from pkvm_emu.kernel.log import KernelLog
from pkvm_emu.machine.state import Journal


class Clock:
    now = 0

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> KernelLog:
    return KernelLog(Journal(), clock)


@pytest.mark.parametrize(("text", "level"), [("\x010a\n", 0), ("\x016a\n", 6), ("a\n", 4), ("\x017a\n", 7)])
def test_a_record_has_the_level_of_its_prefix(log: KernelLog, text: str, level: int) -> None:
    assert log.printk(text) == 2
    assert [(record.level, record.text) for record in log] == [(level, "a")]


@pytest.mark.parametrize(
    ("nanoseconds", "stamp"),
    [
        (0, "[    0.000000] "),
        (1_999, "[    0.000001] "),
        (12_345_678_901, "[   12.345678] "),
        (10**14, "[100000.000000] "),
    ],
)
def test_the_stamp_is_seconds_and_microseconds(log: KernelLog, clock: Clock, nanoseconds: int, stamp: str) -> None:
    clock.now = nanoseconds
    log.write("text")
    assert str(log) == f"{stamp}text"


def test_a_continuation_goes_on_where_the_line_is_open(log: KernelLog) -> None:
    log.printk("\x016one")
    log.printk("\x01c two")
    log.printk("\x01c three\n")
    log.printk("\x01c four\n")
    assert [record.text for record in log] == ["one two three", " four"]


def test_a_new_record_closes_an_open_line(log: KernelLog) -> None:
    log.printk("\x016open")
    log.printk("\x016new\n")
    log.printk("\x01clate\n")
    assert [record.text for record in log] == ["open", "new", "late"]


def test_a_record_of_several_lines_has_the_stamp_on_each(log: KernelLog) -> None:
    log.printk("\x016one\ntwo\n")
    assert len(log) == 1
    assert str(log) == "[    0.000000] one\n[    0.000000] two"


def test_a_percent_sign_is_text_by_now(log: KernelLog) -> None:
    log.write("100%d")
    assert [record.text for record in log] == ["100%d"]


def test_each_record_is_reported_as_it_grows(log: KernelLog) -> None:
    seen: list[str] = []
    log.on_record = lambda record: seen.append(record.text)
    log.printk("\x016a")
    log.printk("\x01cb\n")
    assert seen == ["a", "ab"]


def test_the_log_goes_back_with_the_journal() -> None:
    journal = Journal()
    log = KernelLog(journal, lambda: 0)
    log.printk("\x016open")
    mark = journal.mark()
    log.printk("\x01c and closed\n")
    log.write("more")
    journal.undo_to(mark)
    assert [record.text for record in log] == ["open"]
    log.printk("\x01c again\n")
    assert [record.text for record in log] == ["open again"]
