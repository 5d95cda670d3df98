"""What one module may take from another: versions (CRCs), namespaces, licences, and names exported twice."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import pkvm_emu
from pkvm_emu.kernel.modules import ModuleLoadError
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System

SMALL = MachineProfile(ram_size=64 << 20)
Make = Callable[..., Path]
HEAD = "int shared(void);\n"
GIVER = (
    HEAD + "int shared(void) {{ return 7; }}\n{export};\nstatic int __init f(void) {{ return 0; }}\nmodule_init(f);\n"
)
TAKER = HEAD + 'static int __init f(void) { pr_info("took %d\\n", shared()); return 0; }\nmodule_init(f);\n'
CRC = '\nstatic const u32 crcs[] __attribute__((used, section("__kcrctab"))) = { 0x12345678 };\n'
VERSIONS = """
static const struct {{ u64 crc; char name[56]; }} versions[] __attribute__((used, section("__versions"))) = {{
	{{ 0xaaaaaaaa, "_printk" }}, {{ {crc:#x}, "{name}" }},
}};
"""
EXTENDED = """
static const u32 ext_crcs[] __attribute__((used, section("__version_ext_crcs"))) = {{ 0xaaaaaaaa, {crc:#x} }};
static const char ext_names[] __attribute__((used, section("__version_ext_names"))) = "_printk\\0{name}";
"""
OTHER_LICENCE = (
    'static const char other[] __attribute__((used, section(".modinfo"), aligned(1))) = "license=Proprietary";\n'
)


def lines(system: System) -> list[str]:
    return [re.sub(r"^\[[ 0-9.]*\] ", "", line) for line in system.dmesg.splitlines()]


@pytest.fixture
def load(c_module: Make) -> Callable[..., System]:
    """Loads an exporter and then an importer, on one generation."""

    def run(
        giver: str = "",
        taker: str = "",
        export: str = "EXPORT_SYMBOL(shared)",
        android: str = "16",
        ignore: bool = False,
    ) -> System:
        first = c_module(GIVER.format(export=export) + giver, None, name="giver", generation=android)
        second = c_module(TAKER + taker, None, name="taker", generation=android, symbols=(first,))
        system = pkvm_emu.boot(android, profile=SMALL, ignore_versions=ignore)
        system.load(first)
        run.system = system  # type: ignore[attr-defined]  # for a look at a system whose load failed
        system.load(proprietary(second) if taker == OTHER_LICENCE else second)
        return system

    return run


def proprietary(path: Path):
    """The module with the licence that was put in last."""
    from pkvm_emu.elf.module_file import ModuleFile

    file = ModuleFile.load(path)
    file.modinfo["license"] = ["Proprietary"]
    return file


# Versions


@pytest.mark.parametrize("table", [VERSIONS, EXTENDED], ids=["__versions", "__version_ext_crcs"])
def test_equal_versions_link(load, table: str) -> None:
    assert "taker: took 7" in lines(load(CRC, table.format(crc=0x12345678, name="shared")))


@pytest.mark.parametrize("table", [VERSIONS, EXTENDED], ids=["__versions", "__version_ext_crcs"])
@pytest.mark.parametrize("android", ["14", "15", "16"])
def test_another_version_is_refused(load, table: str, android: str) -> None:
    taker = table.format(crc=0x12345679, name="shared")
    with pytest.raises(ModuleLoadError) as error:
        load(CRC, taker, android=android)
    assert error.value.errno == -22
    assert error.value.step == "link"
    assert str(error.value) == (
        "taker: symbol shared is refused (-EINVAL): built against another giver: version 0x12345679, exported is "
        "0x12345678 (--ignore-versions links it all the same)"
    )
    texts = lines(load.system)
    at = texts.index("taker: disagrees about version of symbol shared")
    assert texts[at + 1] == "taker: Unknown symbol shared (err -22)"
    assert "taker" not in load.system.modules
    assert load.system.modules["giver"].references == 0
    assert "taker: took 7" in lines(load(CRC, taker, android=android, ignore=True))


def test_the_extended_table_counts_where_both_are(load) -> None:
    both = VERSIONS.format(crc=1, name="shared") + EXTENDED.format(crc=0x12345678, name="shared")
    assert "taker: took 7" in lines(load(CRC, both))


@pytest.mark.parametrize(
    ("table", "word"), [(VERSIONS, "symbol version"), (EXTENDED, "extended symbol version")], ids=["basic", "extended"]
)
def test_a_symbol_that_is_not_in_the_table_is_warned_of(load, table: str, word: str) -> None:
    texts = lines(load(CRC, table.format(crc=1, name="another")))
    assert f"taker: no {word} for shared" in texts
    assert "taker: took 7" in texts


def test_a_module_without_versions_is_refused_by_one_with(load) -> None:
    with pytest.raises(ModuleLoadError, match="this module was built without") as error:
        load(CRC)
    assert error.value.errno == -22
    assert "taker: Unknown symbol shared (err -22)" in lines(load.system)


def test_an_exporter_without_versions_takes_everybody(load) -> None:
    assert "taker: took 7" in lines(load("", VERSIONS.format(crc=5, name="shared")))


# Namespaces


@pytest.mark.parametrize("android", ["14", "16"])
def test_a_symbol_of_a_namespace_has_to_be_imported(load, android: str) -> None:
    export = "EXPORT_SYMBOL_NS(shared, SPACE)"
    with pytest.raises(ModuleLoadError, match=r"in the namespace SPACE of giver: MODULE_IMPORT_NS is missing") as error:
        load(export=export, taker="MODULE_IMPORT_NS(OTHER);\n", android=android)
    assert error.value.errno == -22
    texts = lines(load.system)
    text = "taker: module uses symbol (shared) from namespace SPACE, but does not import it."
    assert texts[texts.index(text) + 1] == "taker: Unknown symbol shared (err -22)"
    assert "taker: took 7" in lines(load(export=export, taker="MODULE_IMPORT_NS(SPACE);\n", android=android))


# Licences


def test_a_gpl_symbol_is_not_there_for_other_licences(load) -> None:
    with pytest.raises(
        ModuleLoadError, match="exports it to GPL modules only, and the licence is 'Proprietary'"
    ) as error:
        load(export="EXPORT_SYMBOL_GPL(shared)", taker=OTHER_LICENCE)
    assert error.value.errno == -2
    texts = lines(load.system)
    assert "taker: module license 'Proprietary' taints kernel." in texts
    assert "Disabling lock debugging due to kernel taint" in texts
    assert "taker: Unknown symbol shared (err -2)" in texts


def test_another_licence_may_use_other_symbols_and_taints(load) -> None:
    system = load(taker=OTHER_LICENCE)
    assert "taker: took 7" in lines(system)
    assert "P" in system.kernel.tainted
    assert system.fs.read("/sys/module/taker/taint") == "PO\n"
    assert int(system.fs.read("/proc/sys/kernel/tainted")) & 1


@pytest.mark.parametrize(("android", "named"), [("14", "symbols"), ("15", "symbols shared"), ("16", "symbols shared")])
def test_symbols_of_a_proprietary_module_taint_their_user(c_module: Make, android: str, named: str) -> None:
    first = c_module(GIVER.format(export="EXPORT_SYMBOL(shared)"), None, name="giver", generation=android)
    second = c_module(TAKER, None, name="taker", generation=android, symbols=(first,))
    system = pkvm_emu.boot(android, profile=SMALL)
    system.load(proprietary(first))
    system.load(second)
    assert f"taker: module uses {named} from proprietary module giver, inheriting taint." in lines(system)
    assert system.modules["taker"].proprietary


def test_gpl_symbols_and_a_proprietary_modules_symbols_do_not_go_together(c_module: Make) -> None:
    source = "int a_gpl(void);\nint a_gpl(void) { return 1; }\nEXPORT_SYMBOL_GPL(a_gpl);\n"
    gpl = c_module(source + "static int __init f(void) { return 0; }\nmodule_init(f);\n", None, name="gpl")
    closed = c_module(GIVER.format(export="EXPORT_SYMBOL(shared)"), None, name="giver")
    source = "int a_gpl(void);\nint shared(void);\nstatic int __init f(void) { return a_gpl() + shared(); }\nmodule_init(f);\n"
    both = c_module(source, None, name="both", symbols=(gpl, closed))
    system = pkvm_emu.boot("16", profile=SMALL)
    system.load(gpl)
    system.load(proprietary(closed))
    with pytest.raises(ModuleLoadError, match="it uses GPL-only symbols too, and giver is proprietary"):
        system.load(both)
    text = "both: module using GPL-only symbols uses symbols shared from proprietary module giver."
    assert text in lines(system)


# Names


def test_a_name_is_exported_once(c_module: Make) -> None:
    system = pkvm_emu.boot("16", profile=SMALL)
    source = GIVER.format(export="EXPORT_SYMBOL(shared)")
    system.load(c_module(source, None, name="giver"))
    with pytest.raises(
        ModuleLoadError, match=r"second: exports shared, which giver exports already \(-ENOEXEC\)"
    ) as error:
        system.load(c_module(source, None, name="second"))
    assert error.value.errno == -8
    assert "second: exports duplicate symbol shared (owned by giver)" in lines(system)
