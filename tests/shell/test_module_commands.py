"""``modprobe``, ``insmod``, ``lsmod``, ``depmod`` and ``rmmod`` on the modules of an initramfs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shell_support import ShellRunner

import pkvm_emu
from boot_images import cpio

PLAIN = """
static int value;
module_param(value, int, 0644);
static int __init plain_init(void) { return value < 0 ? value : 0; }
static void __exit plain_exit(void) { }
module_init(plain_init);
module_exit(plain_exit);
"""
GIVER = PLAIN + "int given(void);\nint given(void) { return 7; }\nEXPORT_SYMBOL(given);\n"
CRC = 'static const u32 crcs[] __attribute__((used, section("__kcrctab"))) = { 5 };\n'
TAKER = "int given(void);\n" + PLAIN.replace("return value < 0", "return given() != 7 ? -5 : value < 0")
TABLES = {
    "modules.options": b"options taker value=4\n",
    "modules.softdep": b"softdep taker post: last\n",
    "modules.alias": b"alias nick last\n",
    "modules.blocklist": b"blocklist last\n",
}


@pytest.fixture(scope="module")
def modules(c_module: Callable[..., Path]) -> dict[str, bytes]:
    giver = c_module(GIVER, None, name="giver")
    strict = c_module(GIVER.replace("given", "strictly_given") + CRC, None, name="strict")
    loose = TAKER.replace("given", "strictly_given")
    paths = [giver, strict, c_module(TAKER, None, name="taker", symbols=(giver,)), c_module(PLAIN, None, name="last")]
    paths.append(c_module(loose, None, name="loose", symbols=(strict,)))
    return {path.stem: path.read_bytes() for path in paths}


def test_a_damaged_module_is_told(modules: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "initrd"
    path.write_bytes(cpio({"lib/modules/giver.ko": modules["giver"][:800]}))
    sh = ShellRunner(pkvm_emu.boot("16", initramfs=path))
    for command in ("modprobe giver", "modprobe -D giver", "depmod -n"):
        assert sh(command) == 1
        assert "giver.ko: " in sh.err
        assert sh.err.count("\n") == 1
    sh.session.close()


@pytest.fixture
def sh(modules: dict[str, bytes], tmp_path: Path) -> Iterator[ShellRunner]:
    files = {f"lib/modules/{name}.ko": data for name, data in modules.items()}
    files |= {f"lib/modules/{name}": data for name, data in TABLES.items()}
    path = tmp_path / "initrd"
    path.write_bytes(cpio(files))
    runner = ShellRunner(pkvm_emu.boot("16", initramfs=path))
    yield runner
    runner.session.close()


def loaded(sh: ShellRunner) -> list[str]:
    assert sh("lsmod") == 0
    return [line.split()[0] for line in sh.out.splitlines()[1:]]


def test_modprobe_brings_dependencies_options_and_soft_dependencies(sh: ShellRunner) -> None:
    assert sh("modprobe taker; cat /sys/module/taker/parameters/value; ls /sys/module/giver/holders") == 0
    assert sh.out == "4\ntaker\n"
    assert loaded(sh) == ["last", "taker", "giver"]
    assert sh("modprobe taker") == 0


def test_modprobe_takes_the_users_parameter_last(sh: ShellRunner) -> None:
    assert sh("modprobe taker value=9; cat /sys/module/taker/parameters/value") == 0
    assert sh.out == "9\n"


def test_modprobe_knows_aliases_lists_and_the_blocklist(sh: ShellRunner) -> None:
    assert sh("modprobe nick") == 0
    assert loaded(sh) == ["last"]
    assert sh("rmmod last; modprobe -b last") == 1
    assert sh.err == "modprobe: last: modules.blocklist names it\n"
    assert sh("modprobe -q -b last") == 1
    assert sh.err == ""
    assert sh("modprobe -a giver last") == 0
    assert loaded(sh) == ["last", "giver"]
    assert sh("modprobe -r last giver") == 0
    assert loaded(sh) == []


def test_modprobe_says_what_it_would_do(sh: ShellRunner) -> None:
    assert sh("modprobe --show-depends taker") == 0
    assert sh.out == (
        "insmod /lib/modules/giver.ko\ninsmod /lib/modules/taker.ko value=4\ninsmod /lib/modules/last.ko\n"
    )
    assert loaded(sh) == []


def test_modprobe_fails_with_the_module_that_failed(sh: ShellRunner) -> None:
    assert sh("modprobe nothing") == 1
    assert sh.err.startswith("modprobe: FATAL: Module nothing not found in directory /lib/modules/")
    assert sh("modprobe -q nothing") == 1
    assert sh.err == ""
    assert sh("modprobe giver value=-5") == 1
    assert sh.err.startswith("modprobe: can't load module giver (giver.ko): ")


def test_versions_are_checked_unless_forced(sh: ShellRunner) -> None:
    assert sh("modprobe loose") == 1
    assert sh.err.startswith("modprobe: can't load module loose (loose.ko): Invalid argument")
    assert sh("modprobe -f loose") == 0
    assert sh("rmmod loose; modprobe loose") == 1
    assert sh("modprobe --force-modversion loose") == 0


def test_insmod_loads_one_file_only(sh: ShellRunner) -> None:
    assert sh("insmod /lib/modules/taker.ko") == 1
    assert "No such file or directory" in sh.err
    assert sh("insmod /lib/modules/giver.ko value=2; insmod /lib/modules/taker.ko") == 0
    assert loaded(sh) == ["taker", "giver"]
    assert sh("rmmod giver") == 1
    assert "in use by: taker" in sh.err
    assert sh("rmmod taker giver") == 0


def test_depmod_prints_the_table_from_the_files(sh: ShellRunner) -> None:
    assert sh("depmod -n") == 0
    assert sh.out.splitlines() == [
        "/lib/modules/giver.ko:",
        "/lib/modules/last.ko:",
        "/lib/modules/loose.ko: /lib/modules/strict.ko",
        "/lib/modules/strict.ko:",
        "/lib/modules/taker.ko: /lib/modules/giver.ko",
    ]
    assert sh("depmod") == 1
