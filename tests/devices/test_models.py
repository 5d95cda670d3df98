"""Models of devices in Python: registers, hooks, memory, state, errors, and where they are put."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from model_file import Copier, Timer

import pkvm_emu
from pkvm_emu.devices.bus import MmioBus
from pkvm_emu.devices.loading import read_spec
from pkvm_emu.devices.model import DmaError, Model, Reg
from pkvm_emu.devices.models import COMPATIBLES, SHIPPED, for_compatible, shipped
from pkvm_emu.errors import UsageError
from pkvm_emu.kernel.devicetree.source import parse_source
from pkvm_emu.machine.engine import BusError
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System

BASE, OTHER = 0x1000_0000, 0x1100_0000
FILE = Path(__file__).with_name("model_file.py")
TREE = """/ { #address-cells = <2>; #size-cells = <2>;
timer@10000000 { compatible = "acme,timer"; reg = <0 0x10000000 0 0x1000>, <0 0x11000000 0 0x1000>; };
plain@12000000 { compatible = "acme,plain"; reg = <0 0x12000000 0 0x100>; };
near@12000200 { compatible = "acme,near"; reg = <0 0x12000200 0 0x100>; }; };"""
SMALL = MachineProfile(ram_size=64 << 20)
#: Two loads and two stores in one block, of 32 and 64 bits, and an access to nothing.
EL2 = """
static unsigned long regs, hole;
int hyp_init(const struct pkvm_module_ops *ops)
{
	int ret = ops->create_private_mapping(0x10000000, 0x1000, PAGE_HYP_DEVICE, &regs);

	return ret ? ret : ops->create_private_mapping(0x15000000, 0x1000, PAGE_HYP_DEVICE, &hole);
}
void hyp_call(pkvm_handler_regs_t *ctx)
{
	u64 *x = (u64 *)ctx;
	volatile u32 *at = (volatile u32 *)regs;

	x[0] = 0;
	at[0] = (u32)x[1];
	*(volatile u64 *)(regs + 0x10) = x[2];
	x[1] = at[1];
	x[2] = *(volatile u64 *)(regs + 0x10);
}
void hyp_stray(pkvm_handler_regs_t *ctx)
{
	*(volatile u16 *)(hole + 0x24) = 1;
	((u64 *)ctx)[0] = 0;
}
void hyp_fault(pkvm_handler_regs_t *ctx)
{
	*(volatile u32 *)(regs + 0x40) = 0;
	((u64 *)ctx)[0] = 0;
}
"""
EL1 = """
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_hyp_call(pkvm_handler_regs_t *regs);
void __kvm_nvhe_hyp_stray(pkvm_handler_regs_t *regs);
void __kvm_nvhe_hyp_fault(pkvm_handler_regs_t *regs);
static int __init probe_init(void)
{
	unsigned long token;
	int ret = pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);

	if (ret)
		return ret;
	pkvm_register_el2_mod_call(__kvm_nvhe_hyp_call, token);
	pkvm_register_el2_mod_call(__kvm_nvhe_hyp_stray, token);
	pkvm_register_el2_mod_call(__kvm_nvhe_hyp_fault, token);
	return 0;
}
module_init(probe_init);
"""


@pytest.fixture
def bus() -> MmioBus:
    return pkvm_emu.boot(16, profile=SMALL).mmio


@pytest.fixture
def timer(bus: MmioBus) -> Timer:
    made = Timer(bus, BASE, 0x1000, "timer")
    bus.attach(made)
    return made


@pytest.fixture
def system(c_module: Callable[..., Path]) -> System:
    ko = c_module(el1=EL1, el2=EL2)
    return pkvm_emu.boot(modules=[ko], mmio=[f"{BASE:#x}:0x1000={FILE}:Timer"])


# Registers


def test_a_register_holds_what_is_written_cut_to_its_width(timer: Timer) -> None:
    assert (timer.control, timer.wide) == (4, 0)
    timer.write(0x10, 8, 0x1_2345_6789_ABCD)
    timer.wide |= 1 << 64
    assert timer.read(0x10, 8) == 0x1_2345_6789_ABCD
    assert timer.read(0x14, 4) == 0x1_2345


def test_a_hook_gets_the_value_with_its_fields(timer: Timer) -> None:
    timer.write(0, 4, 3)
    assert timer.read(4, 4) == 2
    assert len(timer.started) == 1


def test_a_part_of_a_register_is_written_with_the_rest_of_it(timer: Timer) -> None:
    timer.write(1, 1, 0x80)
    assert timer.control == 0x8004
    assert timer.read(1, 1) == 0x80


def test_access_rules_hold_for_the_guest_and_not_for_the_model(timer: Timer) -> None:
    timer.write(4, 4, 9)
    timer.write(8, 4, 9)
    assert (timer.status, timer.read(8, 4), timer.key) == (0, 0, 9)


def test_arrays_are_indexed(timer: Timer) -> None:
    timer.write(0x28, 4, 21)
    assert timer.read(0x28, 4) == 44
    assert (timer.channel[2], timer.seen[2], len(timer.channel)) == (42, 21, 4)
    with pytest.raises(IndexError):
        timer.channel[4] = 1
    with pytest.raises(UsageError, match="is an array"):
        timer.channel = 1


def test_what_no_register_is_declared_at_holds_what_is_written(timer: Timer) -> None:
    timer.write(0x80, 4, 5)
    assert timer.read(0x80, 4) == 5
    assert [timer.register_name(at) for at in (0, 2, 0x28, 0x80)] == ["CONTROL", "CONTROL+2", "CHANNEL[2]", "+0x80"]


def test_a_register_off_its_own_alignment_is_no_declaration() -> None:
    with pytest.raises(UsageError, match="offset 0x2"):
        Reg(0x02)


def test_a_snapshot_brings_registers_and_attributes_back(bus: MmioBus, timer: Timer) -> None:
    machine = bus.machine
    digest = machine.digest()
    before = machine.snapshots.take()
    timer.write(0, 4, 1)
    timer.write(0x20, 4, 7)
    assert machine.digest() != digest
    machine.snapshots.restore(before)
    assert (timer.control, list(timer.started), dict(timer.seen), timer.status) == (4, [], {}, 0)
    assert machine.digest() == digest


# Through the machine


def test_the_log_names_the_instruction_the_register_and_its_fields(system: System) -> None:
    result = system.call("hyp_call", 3, 0x1_0000_0002)
    assert (result.x1, result.x2) == (2, 0x1_0000_0002)
    log = list(system.mmio.log)
    assert [(one.is_write, one.register, one.size, one.value, one.el, one.cpu) for one in log] == [
        (True, "CONTROL", 4, 3, 2, 0),
        (True, "WIDE", 8, 0x1_0000_0002, 2, 0),
        (False, "STATUS", 4, 2, 2, 0),
        (False, "WIDE", 8, 0x1_0000_0002, 2, 0),
    ]
    # Each is the place of a load or store of that size, one after the other.
    words = [system.machine.ram.read_u32(system.hyp.to_pa(one.pc)) for one in log]
    assert [word >> 30 for word in words] == [2, 3, 2, 3]
    assert [one.pc for one in log] == sorted({one.pc for one in log})
    assert "[MODE=0x1 ENABLE=1]" in system.mmio.describe(log[0])
    assert system.mmio.describe(log[0]).startswith("EL2 CPU 0 writes 4 bytes at 0x10000000 (0x10000000:0x1000=")


def test_an_access_to_nothing_says_what_and_where(system: System) -> None:
    with pytest.raises(
        BusError, match=r"hyp_stray.*writes 2 bytes at 0x15000024; the nearest is 0x10000000:0x1000="
    ) as caught:
        system.call("hyp_stray")
    assert "0x4fff024 bytes above the end of it" in str(caught.value)


def test_an_exception_in_a_model_is_one_line_with_its_file_and_line(system: System) -> None:
    number = next(n for n, line in enumerate(FILE.read_text().splitlines(), 1) if "1 // value" in line)
    with pytest.raises(UsageError) as caught:
        system.call("hyp_fault")
    text = str(caught.value)
    assert text.startswith(f"{FILE}:{number}: ZeroDivisionError: ")
    assert "in model Timer (EL2 CPU 0 writes 4 bytes at 0x10000040" in text
    assert "\n" not in text


def test_models_move_memory(bus: MmioBus) -> None:
    copier = Copier(bus, BASE, 0x1000, "copier")
    ram = bus.machine.ram
    ram.write(ram.base + 0xFFE, b"across")
    copier.source, copier.target = ram.base + 0xFFE, ram.base + 0x3000
    copier.write(0x10, 4, 6)
    assert ram.read(ram.base + 0x3000, 6) == b"across"
    assert list(bus.pending) == [37]
    copier.source = ram.end - 2
    with pytest.raises(DmaError, match="where there is no RAM"):
        copier.write(0x10, 4, 6)


def test_models_are_chosen_by_compatible_and_by_place(bus: MmioBus) -> None:
    system = pkvm_emu.boot(16, profile=SMALL, dtb=parse_source(TREE), mmio=[Timer, (0x1300_0000, 0x100, Copier)])
    assert [type(one).__name__ for one in system.mmio.models] == ["Copier", "Timer"]
    assert system.mmio.model("/timer@10000000") is system.mmio.model(0x1000_0FFF)
    assert [one.name for one in system.mmio.windows.values()][1:] == [
        "/timer@10000000",
        "/timer@10000000[1]",
        "/plain@12000000",
        "/near@12000200",
    ]
    with pytest.raises(UsageError, match="no model at '/plain'"):
        system.mmio.model("/plain")


def test_two_small_windows_share_a_page(bus: MmioBus) -> None:
    system = pkvm_emu.boot(16, profile=SMALL, dtb=parse_source(TREE))
    for offset in (0x10, 0x210, 0x400):
        assert system.host.write(0x1200_0000 + offset, 1, 4).ok
    names = [(one.window, one.register) for one in system.mmio.log]
    assert names == [("/plain@12000000", "+0x10"), ("/near@12000200", "+0x10"), ("outside the windows", "0x12000400")]


@pytest.mark.parametrize(
    ("base", "size", "why"),
    [
        (BASE + 0x800, 0x1000, "overlaps timer"),
        (0x0900_0000, 0x1000, "a device that every board has"),
        (0x4000_0000, 0x1000, "overlaps RAM"),
        (OTHER, 0, "no window of registers"),
        (1 << 40, 0x1000, "no window of registers"),
    ],
)
def test_a_window_that_is_taken_is_refused(bus: MmioBus, timer: Timer, base: int, size: int, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        bus.attach(Copier(bus, base, size, "copier"))


# What a user gives


def test_a_place_takes_a_file_a_class_of_it_or_a_shipped_model() -> None:
    (given,) = read_spec(f"0x10000000:64k={FILE}:Copier")
    assert (given.base, given.size, given.model.__name__) == (BASE, 0x1_0000, "Copier")
    (given,) = read_spec("0x10000000:1M=smmu-v3")
    assert (given.size, given.model.__name__) == (1 << 20, "SmmuV3")
    assert [one.model.__name__ for one in read_spec(str(FILE))] == ["Timer"]


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("nothing", "write ADDR:SIZE="),
        ("0x10:zero={file}", "'zero' is no number"),
        ("0x10:-4={file}", "is negative"),
        ("0x10:4=nothing", "no model 'nothing' (shipped: smmu-v3"),
        ("0x10:4={file}", "several models (Timer, Copier): add :CLASS"),
        ("0x10:4={file}:Nobody", "defines no model Nobody"),
        ("0x10:4=missing.py", "there is no file missing.py"),
        ("{file}:Copier", "no class in it has @model"),
        ("0x10:4={broken}", "broken.py:3: NameError: name 'nope' is not defined"),
        ("0x10:4={syntax}", "syntax.py:2: SyntaxError"),
        ("0x10:4={empty}", "defines no subclass"),
    ],
)
def test_a_specification_that_cannot_be_is_refused_in_one_line(tmp_path: Path, spec: str, why: str) -> None:
    files = {"broken": "\n\nnope\n", "syntax": "\nclass\n", "empty": "\n"}
    paths = {name: tmp_path / f"{name}.py" for name in files}
    for name, text in files.items():
        paths[name].write_text(text)
    with pytest.raises(UsageError) as caught:
        read_spec(spec.format(file=FILE, **paths))
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_whose_reset_fails_says_so(bus: MmioBus) -> None:
    class Broken(Model):
        def reset(self) -> None:
            raise KeyError("setting")

    with pytest.raises(UsageError, match=r"test_models.py:\d+: KeyError: 'setting' in model Broken \(reset\)"):
        Broken(bus, BASE, 0x1000, "broken")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_are_found_by_name_and_by_what_they_are_compatible_with(name: str) -> None:
    found = shipped(name)
    assert found is not None
    for text in found.COMPATIBLE:
        assert COMPATIBLES[text] == name
        assert for_compatible(text) is found
