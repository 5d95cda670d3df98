"""The tables beside the modules, and which directory of an image counts."""

from __future__ import annotations

import gzip
import lzma

import pytest
import zstandard

from boot_images import cpio
from pkvm_emu.errors import InputError
from pkvm_emu.kernel.initramfs.cpio import read_archives
from pkvm_emu.kernel.initramfs.module_directory import ModuleDirectory, find_module_directory
from pkvm_emu.kernel.initramfs.rootfs import RootFs

TABLES = {
    "modules.dep": b"a-b.ko: kernel/c.ko d.ko\n/lib/modules/d.ko:\nbroken line\n",
    "modules.load": b"# first\nkernel/c.ko\n\na-b.ko\n",
    "modules.options": b"options a-b x=1 y\noptions a_b z=3\nnonsense\n",
    "modules.softdep": b"softdep a_b pre: c d post: e-e\nsoftdep a_b post: f\n",
    "modules.alias": b"alias of:N*T*Cvendor,x a-b\nalias platform:y c\nalias other:* c\n",
    "modules.blocklist": b"blocklist d\nblacklist e-e\n",
}


def root_of(files: dict[str, bytes], links: dict[str, str] | None = None) -> RootFs:
    root = RootFs()
    root.add(read_archives(cpio(files, links), "image"))
    return root


def directory() -> ModuleDirectory:
    files = {f"lib/modules/{name}": data for name, data in TABLES.items()}
    files |= {"lib/modules/a-b.ko": b"1", "lib/modules/kernel/c.ko": b"2"}
    found = find_module_directory(root_of(files))
    assert found is not None
    return found


def test_names_are_the_same_with_dashes_underscores_and_paths() -> None:
    modules = directory()
    assert list(modules) == ["a_b", "c"]
    assert "a-b" in modules
    assert "kernel/c.ko" in modules
    assert "d" not in modules
    assert modules.file_path("a-b") == "lib/modules/a-b.ko"
    assert modules.contents("c") == b"2"
    assert modules.contents("d") is None


def test_the_tables_are_read() -> None:
    modules = directory()
    assert modules.dependencies == {"a_b": ["c", "d"], "d": []}
    assert modules.load_list == ["c", "a_b"]
    assert modules.options == {"a_b": ["x=1", "y", "z=3"]}
    assert modules.soft_dependencies("a_b") == (["c", "d"], ["e_e", "f"])
    assert modules.soft_dependencies("c") is None
    assert modules.blocklist == {"d", "e_e"}
    assert modules.aliased("of:NnodeT(null)Cvendor,x") == ["a_b"]
    assert modules.aliased("other:1") == ["c"]
    assert modules.aliased("nothing") == []


@pytest.mark.parametrize(
    ("files", "path"),
    [
        ({"lib/modules/a.ko": b""}, "lib/modules"),
        ({"lib/modules/6.6.30/a.ko": b"", "lib/modules/6.6.30/modules.dep": b""}, "lib/modules/6.6.30"),
        ({"lib/modules/6.6.30/modules.load": b"", "lib/modules/6.6.9/modules.load": b""}, "lib/modules/6.6.30"),
        ({"lib/modules/6.6.30/modules.load": b"", "lib/modules/modules.load": b""}, "lib/modules"),
        ({"init": b""}, None),
    ],
)
def test_the_directory_with_the_tables_counts(files: dict[str, bytes], path: str | None) -> None:
    found = find_module_directory(root_of(files))
    assert (None if found is None else found.path) == path


def test_lib_may_be_a_link() -> None:
    found = find_module_directory(root_of({"vendor/lib/modules/a.ko": b"1"}, {"lib": "vendor/lib"}))
    assert found is not None
    assert found.contents("a") == b"1"


def test_compressed_modules_are_unpacked() -> None:
    packed = {
        "lib/modules/g.ko.gz": gzip.compress(b"gz"),
        "lib/modules/x.ko.xz": lzma.compress(b"xz"),
        "lib/modules/z.ko.zst": zstandard.ZstdCompressor().compress(b"zst"),
    }
    found = find_module_directory(root_of(packed))
    assert found is not None
    assert [found.contents(name) for name in found] == [b"gz", b"xz", b"zst"]


def test_a_file_that_is_no_module_is_refused_when_it_is_wanted() -> None:
    modules = directory()
    with pytest.raises(InputError, match=r"c\.ko"):
        modules.module("c")
