"""Initramfs archives: their formats, what is laid over what, and damage."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import shutil
import subprocess
import tracemalloc
from pathlib import Path

import lz4.frame
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boot_images import DIRECTORY, bootconfig_trailer, cpio, entry, lz4_legacy, vendor_boot
from pkvm_emu.errors import InputError
from pkvm_emu.kernel.initramfs.bootconfig import split_trailer
from pkvm_emu.kernel.initramfs.cpio import read_archives
from pkvm_emu.kernel.initramfs.image import Initramfs
from pkvm_emu.kernel.initramfs.rootfs import RootFs

FILES = {"init": b"#!/bin/sh\n", "lib/modules/a.ko": bytes(range(256)) * 40, "empty": b""}
PACKERS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "lz4 legacy": lz4_legacy,
    "lz4 frame": lz4.frame.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}
EVERY_PACKER = pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)


def contents(data: bytes) -> dict[str, bytes]:
    root = RootFs()
    root.add(read_archives(data, "image"))
    return {path: bytes(file) for path, file in root.files_below("")}


# Formats


@pytest.mark.parametrize("magic", [b"070701", b"070702"])
def test_an_archive_gives_its_files(magic: bytes) -> None:
    assert contents(cpio(FILES, magic=magic)) == FILES


def test_the_cpio_program_writes_what_is_read(tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/a.ko").write_bytes(b"module")
    (tmp_path / "lib/link.ko").symlink_to("a.ko")
    names = b"lib\nlib/a.ko\nlib/link.ko\n"
    archive = subprocess.run(["cpio", "-o", "-H", "newc"], input=names, cwd=tmp_path, capture_output=True, check=True)
    assert contents(archive.stdout) == {"lib/a.ko": b"module", "lib/link.ko": b"module"}


@EVERY_PACKER
def test_every_compression_of_the_kernel_is_unpacked(pack) -> None:
    assert contents(pack(cpio(FILES))) == FILES


@EVERY_PACKER
def test_archives_follow_each_other_packed_or_not(pack) -> None:
    first, last = {"a": b"1", "b": b"1"}, {"b": b"2", "c": b"2"}
    both = {"a": b"1", "b": b"2", "c": b"2"}
    assert contents(pack(cpio(first)) + bytes(37) + pack(cpio(last))) == both
    assert contents(cpio(first) + bytes(512) + pack(cpio(last))) == both
    assert contents(pack(cpio(first)) + cpio(last)) == both
    assert contents(pack(cpio(first) + bytes(4) + cpio(last)) + bytes(3)) == both


def test_a_large_legacy_lz4_archive_has_several_blocks() -> None:
    files = {"big": bytes(20 << 20), "small": b"x"}
    assert contents(lz4_legacy(cpio(files))) == files


def test_a_missing_trailer_is_the_end() -> None:
    assert contents(entry("a", b"1") + entry("b", b"2")) == {"a": b"1", "b": b"2"}


@pytest.mark.parametrize("first", [True, False], ids=["data in the first link", "data in the last link"])
def test_hard_links_share_their_contents(first: bool) -> None:
    parts = [
        entry("a", b"shared" if first else b"", links=2, inode=7),
        entry("b", b"" if first else b"shared", links=2, inode=7),
    ]
    assert contents(b"".join(parts)) == {"a": b"shared", "b": b"shared"}


# The root file system


def test_paths_cannot_leave_the_root() -> None:
    assert contents(cpio({"../../a": b"1", "/b/./c": b"2", "d/../e": b"3"})) == {"a": b"1", "b/c": b"2", "e": b"3"}


def test_links_lead_to_files_and_directories() -> None:
    root = RootFs()
    links = {"lib": "vendor/lib", "vendor/lib/b.ko": "/vendor/lib/a.ko", "loop": "loop", "away": "../../../vendor"}
    root.add(read_archives(cpio({"vendor/lib/a.ko": b"module"}, links), "image"))
    for path in ("lib/a.ko", "/lib/b.ko", "away/lib/./b.ko"):
        assert bytes(root.file(path) or b"") == b"module"
    assert root.file("loop") is None
    assert root.file("lib") is None


def test_a_directory_with_something_in_it_stays_one() -> None:
    root = RootFs()
    root.add(
        read_archives(
            cpio({"d/f": b"1"}) + cpio({"d": b"file"}) + entry("e", mode=DIRECTORY) + cpio({"e": b"2"}), "image"
        )
    )
    assert {path: bytes(data) for path, data in root.files_below("")} == {"d/f": b"1", "e": b"2"}


# Damage


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"070707" + bytes(200), "old cpio format"),
        (b"hello", "no cpio archive .* begins there"),
        (cpio(FILES)[:60], "a header is cut off"),
        (entry("name" * 20)[:120], "a name is cut off"),
        (entry("a", b"12345678")[:-4], "a reaches beyond the end"),
        (entry("a")[:6] + b"x" * 104, "no hexadecimal numbers"),
        (entry("a", b"data", magic=b"070702").replace(b"data", b"dada"), "a has a wrong checksum"),
        (b"\x89LZO\0\r\n", "LZO compression is not supported"),
        (gzip.compress(cpio(FILES))[:-9], "damaged gzip data"),
        (lzma.compress(cpio(FILES))[:50], "damaged xz data"),
        (bz2.compress(cpio(FILES))[:50], "damaged bzip2 data"),
        (lz4.frame.compress(cpio(FILES))[:50], r"damaged lz4 \(frame\) data"),
        (lz4_legacy(cpio(FILES))[:50], r"damaged lz4 \(legacy\) data"),
        (PACKERS["zstd"](cpio(FILES))[:50], "damaged zstd data"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damage_is_one_line(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        contents(data)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("image")


@EVERY_PACKER
def test_a_bomb_stops_at_the_limit(pack, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = pack(bytes(96 << 20))
    monkeypatch.setattr("pkvm_emu.kernel.initramfs.cpio.UNPACKED_LIMIT", 8 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="unpacks to more than"):
            contents(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A Zstandard step makes up to 32 MiB at once.
    assert peak < 56 << 20


def test_the_limit_counts_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pkvm_emu.kernel.initramfs.cpio.UNPACKED_LIMIT", 3 << 20)
    part = gzip.compress(cpio({"a": bytes(1 << 20)}))
    assert list(contents(part * 2)) == ["a"]
    with pytest.raises(InputError, match="unpacks to more than"):
        contents(part * 3)


def test_the_number_of_files_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pkvm_emu.kernel.initramfs.cpio.ENTRY_LIMIT", 10)
    with pytest.raises(InputError, match="more than 10 files"):
        contents(cpio({f"f{number}": b"" for number in range(11)}))


ARCHIVE = cpio(FILES, {"link": "init"}, b"070702")
SAMPLES = [ARCHIVE, *(pack(ARCHIVE) for pack in PACKERS.values())]
SAMPLES += [ARCHIVE + bootconfig_trailer(b"a = 1\n")]
SAMPLES += [
    vendor_boot([("platform", "", ARCHIVE), ("dlkm", "dlkm", lz4_legacy(ARCHIVE))], bootconfig=b"androidboot.x = 1\n")
]


@settings(max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_images_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    image = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(1, 6))):
        kind = data.draw(st.sampled_from(["byte", "cut", "word", "insert"]))
        # Headers are where a change does most.
        limit = data.draw(st.sampled_from([64, 2200, len(image)]))
        at = data.draw(st.integers(0, max(min(limit, len(image)) - 1, 0)))
        if kind == "byte" and image:
            image[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del image[at:]
        elif kind == "word":
            image[at : at + 4] = data.draw(st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"ffff"]))
        else:
            image[at:at] = data.draw(st.binary(max_size=8))
    path = tmp_path / "image"
    path.write_bytes(image)
    # Anything but these two ends is a failure.
    with contextlib.suppress(InputError):
        assert Initramfs.load(path).modules is None or len(image)


# bootconfig behind an archive


@pytest.mark.parametrize("padding", [0, 3])
def test_the_boot_loaders_bootconfig_is_cut_off(padding: int) -> None:
    image = memoryview(cpio(FILES) + bootconfig_trailer(b"androidboot.mode = normal\n") + bytes(padding))
    archive, text = split_trailer(image, "image")
    assert contents(bytes(archive)) == FILES
    assert bytes(text).rstrip(b"\0") == b"androidboot.mode = normal\n"


def test_a_bootconfig_that_was_changed_is_refused() -> None:
    image = cpio(FILES) + bootconfig_trailer(b"androidboot.mode = normal\n").replace(b"normal", b"abnorm")
    with pytest.raises(InputError, match="bootconfig checksum failed"):
        split_trailer(memoryview(image), "image")
