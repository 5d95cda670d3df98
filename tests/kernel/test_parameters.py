"""Module parameters: set at load and through their files, read back, and refused with the errno of their own ops."""

from __future__ import annotations

import struct

import pytest

import pkvm_emu
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.modules import ModuleLoadError
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System

SMALL = MachineProfile(ram_size=64 << 20)
SOURCE = """
static int number = 3;
module_param(number, int, 0644);
static unsigned long limit = 10;
module_param(limit, ulong, 0444);
static bool on;
module_param(on, bool, 0600);
static char *text = "default";
module_param(text, charp, 0);
static int seen;
static int only_set(const char *val, const struct kernel_param *kp)
{
	seen++;
	return val && val[0] == 'x' ? -EPERM : 0;
}
static const struct kernel_param_ops only_set_ops = { .set = only_set };
module_param_cb(only_set, &only_set_ops, NULL, 0200);
static int __init probe_init(void)
{
	pr_info("number %d limit %lu on %d text %s seen %d\\n", number, limit, on, text, seen);
	return 0;
}
module_init(probe_init);
"""


@pytest.fixture
def system() -> System:
    return pkvm_emu.boot("16", profile=SMALL)


def load(system: System, c_module, *parameters: tuple[str, str | None]) -> dict[str, object]:
    module = system.load(c_module(SOURCE, None), parameters)
    return {parameter.name: parameter for parameter in system.kernel.parameters.of(module)}


def said(system: System) -> str:
    return next(line for line in system.dmesg.splitlines() if "probe: number" in line).split("probe: ")[1]


def test_the_table_has_every_parameter_with_its_mode(system: System, c_module) -> None:
    found = load(system, c_module)
    assert {name: parameter.mode for name, parameter in found.items()} == {
        "number": 0o644,
        "limit": 0o444,
        "on": 0o600,
        "text": 0,
        "only_set": 0o200,
    }
    assert all(parameter.module == "probe" for parameter in found.values())


def test_without_values_the_defaults_hold(system: System, c_module) -> None:
    load(system, c_module)
    assert said(system) == "number 3 limit 10 on 0 text default seen 0"


def test_values_are_set_before_init_runs(system: System, c_module) -> None:
    load(system, c_module, ("number", "-5"), ("limit", "0x20"), ("on", None), ("text", "hi"), ("only_set", "a"))
    assert said(system) == "number -5 limit 32 on 1 text hi seen 1"


def test_the_last_value_of_a_repeated_parameter_holds(system: System, c_module) -> None:
    load(system, c_module, ("number", "1"), ("number", "2"))
    assert said(system).startswith("number 2 ")


@pytest.mark.parametrize(
    ("name", "value", "errno"),
    [
        ("number", "five", -22),
        ("number", "99999999999", -34),
        ("on", "maybe", -22),
        ("only_set", "x", -1),
        ("number", None, -22),
    ],
)
def test_a_refused_value_fails_the_load_with_its_errno(
    system: System, c_module, name: str, value: str | None, errno: int
) -> None:
    with pytest.raises(ModuleLoadError) as error:
        load(system, c_module, (name, value))
    assert error.value.errno == errno
    assert f"parameter {name}=" in str(error.value)
    assert "probe" not in system.modules
    assert f"probe: `{value or ''}' invalid for parameter `{name}'" in system.dmesg
    load(system, c_module)


def test_an_unknown_parameter_is_noted_and_ignored(system: System, c_module) -> None:
    load(system, c_module, ("colour", "red"))
    assert "probe: unknown parameter 'colour' ignored" in system.dmesg


def test_reading_and_writing_as_the_files_do(system: System, c_module) -> None:
    found = load(system, c_module)
    parameters = system.kernel.parameters
    assert parameters.get(found["number"]) == "3\n"
    assert parameters.set(found["number"], "12\n") == 0
    assert parameters.get(found["number"]) == "12\n"
    assert parameters.get(found["on"]) == "N\n"
    assert parameters.set(found["on"], "y") == 0
    assert parameters.get(found["on"]) == "Y\n"
    assert parameters.get(found["text"]) == "default\n"
    assert parameters.get(found["only_set"]) == -1
    assert parameters.set(found["number"], "twelve") == -22
    assert parameters.get(found["number"]) == "12\n"


PARAMETERS_OF_A_BROKEN_TABLE = """
#include <linux/moduleparam.h>
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
static unsigned long token;
static int level;
module_param(level, int, 0);
static int __init probe_init(void) { return pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token); }
module_init(probe_init);
"""


def test_a_parameter_without_a_name_in_memory_is_refused(c_module) -> None:
    """A ``__param`` table whose relocations are missing: the kernel would read its names at NULL."""
    data = c_module(PARAMETERS_OF_A_BROKEN_TABLE).read_bytes()
    headers, count, names = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 60)
    strings = struct.unpack_from("<Q", data, headers + 64 * names + 24)[0]
    broken = bytearray(data)
    for header in range(headers, headers + 64 * count, 64):
        name = strings + struct.unpack_from("<I", data, header)[0]
        if data.startswith(b".rela__param\0", name):
            struct.pack_into("<I", broken, header + 4, 1)
    with pytest.raises(ModuleError, match=r"parameter 0 of __param has its name at 0x0"):
        pkvm_emu.boot(modules=[ModuleFile.parse(bytes(broken), "broken.ko")])
