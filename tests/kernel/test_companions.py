"""Modules that another one needs and that are not given: Python in their place, -ENOENT, or stubs on request."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import pkvm_emu
from pkvm_emu.cli.main import main
from pkvm_emu.errors import UsageError
from pkvm_emu.kernel import registry
from pkvm_emu.kernel.bus_masters import BusMasters
from pkvm_emu.kernel.modules import ModuleLoadError
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.symbols import UnservedSymbol
from pkvm_emu.machine.calling import S32
from pkvm_emu.machine.profile import MachineProfile

SMALL = MachineProfile(ram_size=64 << 20)
GIVER = """
int companion_double(int a);
int companion_double(int a) { return 100 + a; }
EXPORT_SYMBOL_GPL(companion_double);
int companion_other(void);
int companion_other(void) { return 5; }
EXPORT_SYMBOL_GPL(companion_other);
static int __init giver_init(void) { return 0; }
module_init(giver_init);
"""
TAKER = """
int companion_double(int a);
static int __init taker_init(void) { pr_info("=%d\\n", companion_double(4)); return 0; }
module_init(taker_init);
"""
WITH_EL2 = "static unsigned long token; int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);" + TAKER.replace(
    "return 0", "return pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token)"
)
#: Needs what Python serves and what it does not.
HUNGRY = """
int companion_double(int a);
int companion_other(void);
static int __init hungry_init(void) { return companion_double(1) + companion_other(); }
module_init(hungry_init);
"""


@pytest.fixture
def giver(c_module):
    return c_module(GIVER, None, name="giver")


@pytest.fixture
def taker(c_module, giver):
    return c_module(TAKER, None, name="taker", symbols=(giver,))


@pytest.fixture
def served() -> Iterator[None]:
    """``companion_double`` in Python, in place of the module that exports it."""

    @kernel_symbol("companion_double", companion=("someone", "giver"))
    def companion_double(kernel: object, value: S32) -> int:
        return 2 * value

    yield
    del registry.FUNCTIONS["companion_double"]


def said(system: pkvm_emu.System) -> list[str]:
    return [record.text.partition("=")[2] for record in system.kernel.log if record.text.startswith("taker: =")]


def test_without_the_module_that_it_needs_a_load_says_what_to_do(taker) -> None:
    system = pkvm_emu.boot("16", profile=SMALL)
    with pytest.raises(ModuleLoadError) as caught:
        system.load(taker)
    assert caught.value.errno == -2
    assert str(caught.value).endswith(
        "(-ENOENT); give giver before it, serve its symbols from Python (--kernel FILE), or try --stub-missing"
    )


@pytest.mark.usefixtures("served")
def test_python_stands_in_for_a_module_that_is_not_there(taker) -> None:
    system = pkvm_emu.boot("16", profile=SMALL)
    system.load(taker)
    assert said(system) == ["8"]
    assert dict(system.kernel.symbols.companions) == {"companion_double": "giver"}


@pytest.mark.usefixtures("served")
def test_the_module_itself_comes_first(giver, taker) -> None:
    system = pkvm_emu.boot("16", profile=SMALL)
    system.load(giver)
    system.load(taker)
    assert said(system) == ["104"]
    assert not system.kernel.symbols.companions


@pytest.mark.usefixtures("served")
def test_what_else_a_replaced_module_exports_is_a_stub_that_stops(c_module, giver) -> None:
    hungry = c_module(HUNGRY, None, name="hungry", symbols=(giver,))
    system = pkvm_emu.boot("16", profile=SMALL)
    with pytest.raises(UnservedSymbol, match=r"calls companion_other\(\), which this kernel does not serve"):
        system.load(hungry)


def test_stubs_can_be_asked_for(taker) -> None:
    system = pkvm_emu.boot("16", profile=SMALL, stub_missing=True)
    with pytest.raises(UnservedSymbol, match=r"^init_module\+0x\w+/.* calls companion_double\(\)"):
        system.load(taker)


def test_the_command_line_asks_for_stubs(c_module, giver, capsys: pytest.CaptureFixture[str]) -> None:
    both = c_module(WITH_EL2, name="both", symbols=(giver,))
    assert main(["run", str(both)]) == 1
    assert "--stub-missing" in capsys.readouterr().err
    assert main(["run", str(both), "--stub-missing"]) == 1
    assert "calls companion_double(), which this kernel does not serve" in capsys.readouterr().err


@pytest.mark.usefixtures("served")
def test_the_report_names_the_module_that_python_stands_for(
    c_module, giver, capsys: pytest.CaptureFixture[str]
) -> None:
    both = c_module(WITH_EL2, name="both", symbols=(giver,))
    assert main(["run", str(both)]) == 0
    assert "  companion_double: served in place of giver\n" in capsys.readouterr().out
    assert main(["run", str(both), "--json"]) == 0
    assert '"served_in_place_of": {\n    "companion_double": "giver"\n  }' in capsys.readouterr().out


def test_the_usb_phys_callback_is_called_when_power_comes_and_goes(c_module) -> None:
    text = """
    int exynos_usbdrd_set_s2mpu_pm_ops(int (*cb)(struct device *dev, bool on));
    static int power(struct device *dev, bool on) { pr_info("=%px %d\\n", dev, on); return on ? 0 : -5; }
    static int __init usb_init(void) { return exynos_usbdrd_set_s2mpu_pm_ops(power); }
    module_init(usb_init);
    """
    path = c_module("struct device;\n" + text, None, name="usb")
    system = pkvm_emu.boot("14", profile=SMALL)
    system.load(path)
    masters = system.kernel.part(BusMasters)
    assert list(masters.callbacks) == ["phy-exynos-usbdrd-super"]
    with pytest.raises(UsageError, match=r"^no device 'nothing'; there are: none$"):
        masters.resume("nothing")
