"""The kernel's file tree: paths, opens, modes, and that everything goes back with a snapshot."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pkvm_emu.kernel.fs import WOULD_BLOCK, File, FsError, MemoryFile, OpenFile, TextFile
from pkvm_emu.kernel.fs.node import O_APPEND, O_CREAT, O_EXCL, O_RDWR, O_TRUNC, O_WRONLY
from pkvm_emu.machine.snapshot import Snapshot
from pkvm_emu.system import System, boot


@pytest.fixture(scope="module")
def booted() -> tuple[System, Snapshot]:
    system = boot(android=16, cmdline="console=ttyAMA0")
    return system, system.snapshot()


@pytest.fixture
def system(booted: tuple[System, Snapshot]) -> Iterator[System]:
    booted[0].restore(booted[1])
    yield booted[0]
    booted[0].restore(booted[1])


def errno_of(action: object) -> int:
    with pytest.raises(FsError) as caught:
        action()  # type: ignore[operator]
    return caught.value.errno


def test_error_reads_like_an_oserror(system: System) -> None:
    with pytest.raises(FsError) as caught:
        system.fs.read("/nope")
    assert (caught.value.errno, caught.value.strerror, caught.value.filename) == (
        2,
        "No such file or directory",
        "/nope",
    )
    assert str(caught.value) == "/nope: No such file or directory (ENOENT)"


def test_procfs_tells_about_the_kernel(system: System) -> None:
    assert system.fs.read("/proc/cmdline") == "console=ttyAMA0\n"
    assert system.fs.read("/proc/version").startswith("Linux version 6.12.")
    assert system.fs.read("/proc/modules") == ""
    assert system.fs.read("/proc/sys/kernel/tainted") == "0\n"


def test_the_mount_points_are_there(system: System) -> None:
    assert system.fs.list("/") == ["dev", "lib", "proc", "sys", "tmp"]
    assert {"null", "zero", "full", "kmsg"} <= set(system.fs.list("/dev"))


@pytest.mark.parametrize(
    ("path", "errno"),
    [("/proc/x", 2), ("/sys/x", 13), ("/sys/module/x", 13), ("/x/y", 2), ("/proc/cmdline/x", 20), ("/tmp/" + "a" * 256, 36),
     ("/tmp", 21), ("/tmp/x/", 2), ("", 2)],
)  # fmt: skip
def test_creating_is_refused_by_the_file_system_there(system: System, path: str, errno: int) -> None:
    assert errno_of(lambda: system.fs.write(path, "a")) == errno


def test_dots_and_slashes_in_paths(system: System) -> None:
    assert system.fs.read("//proc/./../proc//cmdline") == system.fs.read("/proc/cmdline")
    assert system.fs.list("/..") == system.fs.list("/")


def test_open_flags(system: System) -> None:
    fs = system.fs
    fs.write("/tmp/f", "hello")
    assert errno_of(lambda: fs.open("/tmp/f", O_WRONLY | O_CREAT | O_EXCL)) == 17
    appended = fs.open("/tmp/f", O_WRONLY | O_APPEND)
    assert appended.write(b"!") == 1
    assert appended.read() == -9
    both = fs.open("/tmp/f", O_RDWR)
    assert both.read(2) == b"he"
    assert both.write(b"LL") == 2
    assert fs.read("/tmp/f") == "heLLo!"
    fs.open("/tmp/f", O_WRONLY | O_TRUNC)
    assert fs.read("/tmp/f") == ""


def test_procfs_without_a_write_op_takes_the_open_and_fails_the_write(system: System) -> None:
    handle = system.fs.open("/proc/version", O_WRONLY)
    assert handle.write(b"x") == -5


def test_directories_come_and_go(system: System) -> None:
    fs = system.fs
    fs.mkdir("/tmp/d")
    fs.write("/tmp/d/f", "x")
    assert errno_of(lambda: fs.mkdir("/tmp/d")) == 17
    assert errno_of(lambda: fs.remove("/tmp/d")) == 39
    fs.remove("/tmp/d/f")
    fs.remove("/tmp/d")
    assert fs.find("/tmp/d") is None
    assert errno_of(lambda: fs.remove("/proc/version")) == 1


def test_devices(system: System) -> None:
    assert system.fs.read("/dev/null") == ""
    assert system.fs.write("/dev/null", "abc") == 3
    assert system.fs.open("/dev/zero").read(4) == bytes(4)
    assert errno_of(lambda: system.fs.write("/dev/full", "a")) == 28


def test_kmsg_gives_a_record_a_read_and_then_blocks(system: System) -> None:
    count = len(system.kernel.log)
    system.fs.write("/dev/kmsg", "<3>bad\n")
    handle = system.fs.open("/dev/kmsg")
    records = [handle.read() for _ in range(count + 1)]
    assert handle.read() == WOULD_BLOCK
    last = records[-1]
    assert isinstance(last, bytes)
    assert last.startswith(f"3,{count},".encode())
    assert last.endswith(b",-;bad\n")
    system.kernel.log.write("later")
    fresh = handle.read()
    assert isinstance(fresh, bytes)
    assert b";later\n" in fresh
    assert system.fs.open("/dev/kmsg").read(4) == -22


def test_text_file_is_made_when_a_reader_begins(system: System) -> None:
    calls: list[int] = []

    def show() -> str:
        calls.append(1)
        return f"{len(calls)}" * 3

    system.fs.add("/sys/kernel/debug/made/count", TextFile(show))
    handle = system.fs.open("/sys/kernel/debug/made/count")
    assert [handle.read(2), handle.read(2), handle.read(2)] == [b"11", b"1", b""]
    assert system.fs.read("/sys/kernel/debug/made/count") == "222"
    system.fs.discard("/sys/kernel/debug/made")
    assert system.fs.find("/sys/kernel/debug/made") is None


def test_store_gets_one_call_a_write_and_its_errno_comes_back(system: System) -> None:
    seen: list[bytes] = []
    system.fs.add(
        "/sys/kernel/debug/s", TextFile(None, lambda data: seen.append(data) or (-22 if data == b"x" else 0), 0o200)
    )
    assert system.fs.write("/sys/kernel/debug/s", "12\n") == 3
    assert errno_of(lambda: system.fs.write("/sys/kernel/debug/s", "x")) == 22
    assert errno_of(lambda: system.fs.read("/sys/kernel/debug/s")) == 5
    assert seen == [b"12\n", b"x"]


def test_a_node_keeps_what_belongs_to_one_open(system: System) -> None:
    class Counter(File):
        def read(self, handle: OpenFile, offset: int, size: int) -> bytes | int:
            handle.data["n"] = handle.data.get("n", 0) + 1
            return str(handle.data["n"]).encode()

        def release(self, handle: OpenFile) -> None:
            released.append(handle.data["n"])

    released: list[int] = []
    system.fs.add("/dev/counter", Counter())
    one, two = system.fs.open("/dev/counter"), system.fs.open("/dev/counter")
    snapshot = system.snapshot()
    assert [one.read(), one.read(), two.read()] == [b"1", b"2", b"1"]
    system.restore(snapshot)
    assert [one.read(), two.read()] == [b"1", b"1"]
    one.close()
    one.close()
    assert released == [1]
    assert one.read() == -9


def test_everything_goes_back_with_a_snapshot(system: System) -> None:
    fs = system.fs
    fs.write("/tmp/kept", "before")
    kept = fs.open("/tmp/kept")
    assert kept.read(3) == b"bef"
    snapshot, digest = system.snapshot(), system.machine.journal.digest()
    fs.write("/tmp/kept", "after")
    fs.write("/tmp/new", "x")
    fs.mkdir("/tmp/dir")
    fs.add("/proc/extra", TextFile(lambda: "x"))
    kept.close()
    opened = fs.open("/tmp/new", O_RDWR)
    fs.write("/dev/kmsg", "noise")
    assert system.machine.journal.digest() != digest
    system.restore(snapshot)
    assert system.machine.journal.digest() == digest
    assert fs.list("/tmp") == ["kept"]
    assert fs.find("/proc/extra") is None
    assert not opened.is_open
    assert opened.write(b"lost") == -9
    assert kept.read() == b"ore"


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=st.lists(st.tuples(st.integers(0, 40), st.binary(min_size=1, max_size=20)), max_size=8))
def test_a_memory_file_is_an_array_of_bytes(system: System, writes: list[tuple[int, bytes]]) -> None:
    file, model = MemoryFile(system.fs.journal), bytearray()
    system.fs.add("/tmp/array", file)
    handle = system.fs.open("/tmp/array", O_RDWR)
    for offset, data in writes:
        handle.offset = offset
        assert handle.write(data) == len(data)
        model.extend(bytes(max(offset - len(model), 0)))
        model[offset : offset + len(data)] = data
    assert file.content == bytes(model)
    assert file.size == len(model)


def test_going_back_to_before_the_first_look_leaves_no_open_file(booted: tuple[System, Snapshot]) -> None:
    system, snapshot = booted
    system.restore(snapshot)
    handle = system.fs.open("/proc/version")
    system.restore(snapshot)
    assert handle.read() == -9
    handle.close()
    assert system.fs.read("/proc/version").startswith("Linux")
