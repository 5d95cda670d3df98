"""Android boot images: every header version, the ramdisks that a boot takes, their device trees, and damage."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from boot_images import boot, cpio, lz4_legacy, vendor_boot
from pkvm_emu.errors import InputError, UsageError
from pkvm_emu.kernel.devicetree.blob import parse_blob, to_blob
from pkvm_emu.kernel.devicetree.tree import TreeNode
from pkvm_emu.kernel.initramfs.bootimg import read_boot_image
from pkvm_emu.kernel.initramfs.image import Initramfs

RAMDISK = lz4_legacy(cpio({"file": b"contents"}))


def blob(model: str) -> bytes:
    root = TreeNode("")
    root.set("model", model)
    return to_blob(root)


def load(tmp_path: Path, *images: bytes, ramdisks: tuple[str, ...] = ()) -> Initramfs:
    paths = []
    for number, image in enumerate(images):
        paths.append(tmp_path / f"image{number}.img")
        paths[-1].write_bytes(image)
    return Initramfs.load(paths, ramdisks)


def files(image: Initramfs) -> dict[str, bytes]:
    return {path: bytes(data) for path, data in image.root.files_below("")}


@pytest.mark.parametrize("version", range(5))
def test_a_boot_image_of_every_version_gives_its_ramdisk_and_command_line(tmp_path: Path, version: int) -> None:
    line = "console=ttyS0 " + "x" * (600 if version < 3 else 0)
    image = load(tmp_path, boot(version, RAMDISK, cmdline=line, kernel=bytes(5000)))
    assert files(image) == {"file": b"contents"}
    assert image.command_line == line.strip()
    assert image.sources == [f"image0.img: boot v{version}"]


def test_a_version_2_boot_image_has_a_device_tree(tmp_path: Path) -> None:
    image = load(tmp_path, boot(2, RAMDISK, dtb=blob("two")))
    assert [parse_blob(data).string("model") for _, data in image.device_trees] == ["two"]


@pytest.mark.parametrize("page", [2048, 4096, 16384])
@pytest.mark.parametrize("version", [3, 4])
def test_a_vendor_boot_image_gives_all_of_its_parts(tmp_path: Path, version: int, page: int) -> None:
    trees = blob("first") + bytes(8) + blob("second")
    parts = vendor_boot(
        [("platform", "", RAMDISK)],
        version=version,
        cmdline="a=1 ",
        dtb=trees,
        bootconfig=b"androidboot.x = y\n",
        page=page,
    )
    image = load(tmp_path, parts)
    assert files(image) == {"file": b"contents"}
    assert image.command_line == "a=1"
    assert [parse_blob(data).string("model") for _, data in image.device_trees] == ["first", "second"]
    keys = None if image.bootconfig is None else image.bootconfig.values
    assert keys == ({"androidboot.x": ["y"]} if version == 4 else None)


def test_a_table_of_device_trees_is_read(tmp_path: Path) -> None:
    one, two = blob("one"), blob("two")
    head = struct.pack(">4s7I", b"\xd7\xb7\xab\x1e", 0, 32, 32, 2, 32, 2048, 0)
    entries = struct.pack(">2I24x", len(one), 96) + struct.pack(">2I24x", len(two), 96 + len(one))
    image = load(tmp_path, vendor_boot([], dtb=head + entries + one + two))
    assert [parse_blob(data).string("model") for _, data in image.device_trees] == ["one", "two"]


# Ramdisks

VENDOR = vendor_boot(
    [
        ("platform", "", cpio({"who": b"platform", "platform": b""})),
        ("recovery", "recovery", cpio({"who": b"recovery", "recovery": b""})),
        ("dlkm", "dlkm", cpio({"who": b"dlkm", "lib/modules/a.ko": b""})),
        ("dlkm", "16k", cpio({"who": b"16k", "lib/modules/b.ko": b""})),
    ]
)


def test_a_normal_boot_takes_every_ramdisk_but_recovery_in_order(tmp_path: Path) -> None:
    assert files(load(tmp_path, VENDOR)) == {
        "who": b"16k",
        "platform": b"",
        "lib/modules/a.ko": b"",
        "lib/modules/b.ko": b"",
    }


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        (("recovery",), {"who", "recovery"}),
        (("dlkm",), {"who", "lib/modules/a.ko", "lib/modules/b.ko"}),
        (("platform", "16k"), {"who", "platform", "lib/modules/b.ko"}),
    ],
)
def test_ramdisks_are_chosen_by_name_or_type(tmp_path: Path, chosen: tuple[str, ...], found: set[str]) -> None:
    assert set(files(load(tmp_path, VENDOR, ramdisks=chosen))) == found


def test_an_image_without_names_is_taken_whole(tmp_path: Path) -> None:
    image = load(tmp_path, VENDOR, boot(4, RAMDISK), ramdisks=("platform",))
    assert set(files(image)) == {"who", "platform", "file"}


def test_a_ramdisk_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"--ramdisk tools: no image has such a ramdisk \(there are: platform, recovery"
    ):
        load(tmp_path, VENDOR, ramdisks=("tools",))


def test_later_images_lie_over_earlier_ones(tmp_path: Path) -> None:
    image = load(tmp_path, VENDOR, boot(4, cpio({"who": b"init_boot"}), cmdline="two"), cpio({"platform": b"mine"}))
    assert files(image)["who"] == b"init_boot"
    assert files(image)["platform"] == b"mine"
    assert image.command_line == "two"


# Damage


def changed(image: bytes, offset: int, value: int) -> bytes:
    return image[:offset] + struct.pack("<I", value) + image[offset + 4 :]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (boot(4, RAMDISK)[:30], "its header is cut off"),
        (changed(boot(4, RAMDISK), 8, 1 << 31), r"its kernel \(2147483648 bytes at 0x1000\) reaches beyond the end"),
        (changed(boot(4, RAMDISK), 12, 1 << 20), "its ramdisk .* reaches beyond the end"),
        (changed(boot(0, RAMDISK), 36, 100), "a page size of 100 bytes"),
        (changed(VENDOR, 8, 9), "vendor_boot header version 9; known are 3 and 4"),
        (changed(VENDOR, 24, 1 << 30), "its vendor ramdisk .* reaches beyond the end"),
        (changed(VENDOR, 2100, 1 << 30), "its device tree .* reaches beyond the end"),
        (changed(VENDOR, 2116, 1 << 30), "a vendor ramdisk table of 1073741824 entries of 108 bytes"),
        (changed(VENDOR, 2120, 4), "entries of 4 bytes"),
        (changed(VENDOR, 2124, 1 << 30), "its bootconfig .* reaches beyond the end"),
        (VENDOR[:20], "its header is cut off"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damage_is_one_line(image: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_boot_image(image, "a.img")
    assert str(error.value).startswith("a.img: bad Android boot image: ")


@pytest.mark.parametrize(
    ("dtb", "message"),
    [
        (b"\xd0\x0d\xfe\xed\0\0\xff\xff" + bytes(40), "device tree 0 .* reaches beyond the end"),
        (b"\xd0\x0d\xfe\xed\0\0\0\x01" + bytes(40), "device tree 0 .* reaches beyond the end"),
        (blob("x") + b"junk", "no device tree .* at offset"),
        (b"\xd7\xb7\xab\x1e" + b"\xff" * 40, "a bad table of device trees"),
        (struct.pack(">4s7I", b"\xd7\xb7\xab\x1e", 0, 32, 32, 1, 32, 0, 0) + bytes(64), "entry 0 .* is no device tree"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_section_of_device_trees_is_refused(tmp_path: Path, dtb: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, vendor_boot([], dtb=dtb))


@pytest.mark.parametrize("outside", [{"offset": 1 << 24}, {"size": 1 << 24}], ids=["offset", "size"])
def test_a_ramdisk_outside_of_the_image_is_refused(outside: dict[str, int]) -> None:
    # The entry in the table: size, offset, type, name.
    at = VENDOR.index(struct.pack("<I4s", 3, b"dlkm")) - 8
    place, value = (at + 4, outside["offset"]) if "offset" in outside else (at, outside["size"])
    with pytest.raises(InputError, match=r"vendor ramdisk dlkm .* lies outside of them all"):
        read_boot_image(changed(VENDOR, place, value), "a.img")
