"""In what form modules are delivered: compressed, and without the names that linking does not need."""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import pkvm_emu
from pkvm_emu.cli.main import main
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.errors import InputError

from .conftest import GENERATIONS, SMALL

LOADER = """
static int __init probe_init(void)
{
	int ret = pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);
	return ret ? ret : pkvm_register_el2_mod_call(__kvm_nvhe_hyp_call, token) < 0;
}
module_init(probe_init);
"""
HANDLER = """
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs) { ((u64 *)regs)[1] = 5; ((u64 *)regs)[0] = 0; }
"""
DRIVER = """
#include <linux/of.h>
#include <linux/platform_device.h>
static noinline bool is_kind(struct device_node *node, const char *kind)
{
	const char *text;

	return !of_property_read_string(node, "compatible", &text) && !strcmp(text, kind);
}
static int probe(struct platform_device *pdev)
{
	pr_info("=probed %d\\n", is_kind(pdev->dev.of_node, "acme,second"));
	return 0;
}
static const struct of_device_id ids[] = { { .compatible = "acme,first" }, { .compatible = "acme,second" }, { } };
static struct platform_driver acme = { .probe = probe, .driver = { .name = "acme", .of_match_table = ids } };
""" + LOADER.replace("int ret =", "int ret = platform_driver_register(&acme) ?:")


def stripped(data: bytes) -> bytes:
    """``data`` with local symbols that have neither name, type nor size: what ``strip --strip-unneeded`` leaves of them."""
    image = bytearray(data)
    at, count = struct.unpack_from("<Q", image, 40)[0], struct.unpack_from("<H", image, 60)[0]
    for header in range(at, at + 64 * count, 64):
        kind, offset, size = (
            struct.unpack_from("<I", image, header + 4)[0],
            *struct.unpack_from("<QQ", image, header + 24),
        )
        for symbol in range(offset, offset + size, 24) if kind == 2 else ():
            info = image[symbol + 4]
            if info >> 4 == 0 and info & 15 != 3:
                struct.pack_into("<IB", image, symbol, 0, 0)
                struct.pack_into("<Q", image, symbol + 16, 0)
    return bytes(image)


def board_of(file: ModuleFile) -> list[str]:
    system = pkvm_emu.boot(modules=[file], profile=SMALL)
    assert [outcome.status for outcome in system.boot_report.outcomes] == ["loaded"]
    lines = [record.text.partition("=")[2] for record in system.kernel.log if ": =" in record.text]
    return [node.string("compatible") or "" for node in system.device_tree.children] + lines


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_stripped_driver_gets_the_same_board(build: Callable[..., Path], generation: str) -> None:
    path = build(DRIVER, HANDLER, generation, name="stripme")
    whole = board_of(ModuleFile.load(path))
    assert whole[-2:] == ["probed 0", "probed 1"]
    assert {"acme,first", "acme,second"} <= set(whole)
    assert board_of(ModuleFile.parse(stripped(path.read_bytes()), "stripme.ko")) == whole


def test_code_without_a_name_is_named_by_its_section(build: Callable[..., Path]) -> None:
    el1 = "noinline static int fail(void) { return *(volatile int *)8; }\n" + LOADER.replace(
        "int ret =", "int ret = fail() ?:"
    )
    path = build(el1, HANDLER, "16", name="nameless", el1_flags="-fno-inline -fno-optimize-sibling-calls")
    with pytest.raises(pkvm_emu.ModuleError, match=r"at fail\+0x"):
        pkvm_emu.boot(modules=[path], profile=SMALL)
    file = ModuleFile.parse(stripped(path.read_bytes()), "nameless.ko")
    with pytest.raises(pkvm_emu.ModuleError, match=r"at \.text\+0x\w+/0x\w+ \[nameless\]"):
        pkvm_emu.boot(modules=[file], profile=SMALL)


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", None), (".lz4", None)]
)
def test_compressed_modules_are_run_as_they_are(
    build: Callable[..., Path], tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes] | None
) -> None:
    data = build(LOADER, HANDLER).read_bytes()
    if pack is None:
        module = pytest.importorskip({".zst": "zstandard", ".lz4": "lz4.frame"}[suffix])
        pack = module.ZstdCompressor().compress if suffix == ".zst" else module.compress
    packed = tmp_path / f"probe.ko{suffix}"
    packed.write_bytes(pack(data))
    file = ModuleFile.load(packed)
    assert file.file_name == "probe.ko"
    assert pkvm_emu.boot(modules=[packed], profile=SMALL).call("hyp_call").x1 == 5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b"no module"), "probe.ko: not an ELF file"),
        (gzip.compress(bytes(1 << 16))[:-20], "damaged|ends early|incomplete|truncated"),
        (b"\x89LZO" + bytes(64), "LZO compression is not supported"),
    ],
    ids=["nothing in it", "cut off", "unknown"],
)
def test_what_does_not_unpack_to_a_module_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "probe.ko.gz"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        ModuleFile.load(path)
    assert main(["run", str(path)]) == 2
