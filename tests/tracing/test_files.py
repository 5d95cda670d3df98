"""The files below tracing/, in the words of each generation."""

from __future__ import annotations

import pytest
from trace_support import Traced

from pkvm_emu.kernel.fs import WOULD_BLOCK, FsError
from pkvm_emu.system import boot

OTHER = {"14": "hypervisor", "15": "hypervisor", "16": "hyp"}


@pytest.mark.parametrize("generation", ["14", "15", "16"])
def test_the_directory_is_found_by_both_names_and_listed_by_its_own(plain, generation: str) -> None:
    fs = plain(generation).system.fs
    own = {"16": "hypervisor"}.get(generation, "hyp")
    assert fs.list("/sys/kernel/tracing") == [own]
    other = f"/sys/kernel/tracing/{OTHER[generation]}"
    assert fs.list(other) == fs.list(f"/sys/kernel/tracing/{own}")
    assert fs.list(f"{other}/events") == ["header_page", own]
    assert fs.read(f"{other}/events/{OTHER[generation]}/hyp_enter/id") == fs.read(f"{other}/events/hyp_enter/id")


def test_without_protected_mode_there_is_nothing() -> None:
    system = boot("16", cmdline="kvm-arm.mode=nvhe")
    assert system.fs.list("/sys/kernel/tracing") == []
    with pytest.raises(Exception, match="not in protected mode"):
        system.trace_pipe.read()


@pytest.mark.parametrize(
    ("generation", "files"),
    [
        ("14", ["buffer_size_kb", "events", "per_cpu", "trace", "trace_pipe", "tracing_on"]),
        ("15", ["buffer_size_kb", "events", "per_cpu", "trace", "trace_clock", "trace_pipe", "tracing_on"]),
        (
            "16",
            [
                *("buffer_size_kb", "events", "per_cpu", "selftest_event", "trace", "trace_clock", "trace_pipe"),
                "tracing_on",
            ],
        ),
    ],
)
def test_which_files_there_are(plain, generation: str, files: list[str]) -> None:
    traced = plain(generation)
    assert traced.system.fs.list(traced.root) == files


@pytest.mark.parametrize(("generation", "text"), [("14", "7\n"), ("15", "7\n"), ("16", "7 (unloaded)\n")])
def test_the_buffer_size_is_shown(plain, generation: str, text: str) -> None:
    traced = plain(generation)
    assert traced.read("buffer_size_kb") == text
    for refused in ("0\n", "x\n", "-1\n", "\n", f"{1 << 64}\n"):
        with pytest.raises(FsError):
            traced.write("buffer_size_kb", refused)
    traced.write("buffer_size_kb", "12")
    assert traced.read("buffer_size_kb").split()[0] == "12"


@pytest.mark.parametrize("generation", ["14", "15"])
def test_before_android16_tracing_on_takes_one_digit(plain, generation: str) -> None:
    traced = plain(generation)
    for refused in ("2\n", "01\n", "x"):
        with pytest.raises(FsError, match="EINVAL"):
            traced.write("tracing_on", refused)
    traced.write("tracing_on", "1")
    assert traced.read("tracing_on") == "1\n"
    traced.write("tracing_on", "0\n")
    assert traced.read("tracing_on") == "0\n"


def test_on_android16_tracing_on_takes_any_number(plain) -> None:
    traced = plain("16")
    for text, state in (("7\n", "1\n"), ("00\n", "0\n"), ("010", "1\n")):
        traced.write("tracing_on", text)
        assert traced.read("tracing_on") == state
    with pytest.raises(FsError, match="EINVAL"):
        traced.write("tracing_on", "0x1\n")


@pytest.mark.parametrize("generation", ["14", "15"])
def test_reading_trace_says_that_it_is_not_supported(plain, generation: str) -> None:
    assert plain(generation).read("trace") == "** Reading trace not yet supported **\n"


def test_reading_trace_is_refused_on_android16(plain) -> None:
    with pytest.raises(FsError, match="EPERM"):
        plain("16").read("trace")


def test_a_reader_waits_where_there_is_nothing_and_keeps_what_did_not_fit(start) -> None:
    traced = start()
    handle = traced.system.fs.open(traced.path("trace_pipe"))
    assert handle.read() == WOULD_BLOCK
    assert traced.read("buffer_size_kb") == "7 (loaded)\n"
    traced.enable("vault_open")
    traced.on()
    traced.open()
    chunks = []
    while isinstance(chunk := handle.read(9), bytes):
        chunks.append(chunk)
    assert all(len(chunk) <= 9 for chunk in chunks)
    assert b"".join(chunks).decode().endswith(": vault_open slot=0 key=0x5\n")
    traced.off()
    handle.close()
    assert traced.read("buffer_size_kb") == "7 (unloaded)\n"


def test_on_android14_a_read_has_4096_bytes(plain) -> None:
    traced = plain("14")
    traced.enable("host_hcall")
    traced.on()
    handle = traced.system.fs.open(traced.path("trace_pipe"))
    assert handle.read(4095) == -22
    assert isinstance(handle.read(4096), bytes)
    handle.close()


def test_raw_pages_are_given_before_android16(start) -> None:
    traced = start(generation="15")
    traced.enable("vault_open", "vault_close")
    traced.on()
    for _ in range(3):
        traced.open()
    handle = traced.system.fs.open(traced.path("per_cpu/cpu0/trace_pipe_raw"))
    page = handle.read()
    handle.close()
    assert len(page) == 4096
    committed = int.from_bytes(page[8:16], "little")
    assert committed == 3 * (8 + 14 + 8 + 10)
    assert int.from_bytes(page[24:26], "little") == 8
    assert traced.texts() == []


def test_raw_is_text_on_android16(start) -> None:
    traced = start()
    traced.enable("vault_open")
    traced.on()
    traced.open()
    assert traced.read("per_cpu/cpu0/trace_pipe_raw").endswith(": vault_open slot=0 key=0x5\n")


def test_python_reads_text_lines_and_events(start) -> None:
    traced: Traced = start()
    pipe = traced.system.trace_pipe
    assert pipe.read() == ""
    traced.enable("vault_open")
    traced.on()
    traced.open(7)
    assert pipe.read().startswith("[000]\t    0.000")
    traced.open(8)
    (event,) = pipe.events()
    assert (event.name, event.cpu, dict(event.fields), event.lost) == ("vault_open", 0, {"slot": 1, "key": 8}, 0)
    with pytest.raises(Exception, match="there is no CPU 4"):
        pipe.read(cpu=4)
