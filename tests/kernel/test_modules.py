"""The life of a module in the kernel: placement, symbols of other modules, states, and what stays when it is gone."""

from __future__ import annotations

import pytest

import pkvm_emu
from pkvm_emu.kernel import layout
from pkvm_emu.kernel.modules import ModuleLoadError
from pkvm_emu.kernel.vsprintf_env import GuestFault
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System

SMALL = MachineProfile(ram_size=64 << 20)
EXPORTER = """
int shared_value = 41;
EXPORT_SYMBOL(shared_value);
int shared_add(int a);
int shared_add(int a) { return a + shared_value; }
EXPORT_SYMBOL_GPL(shared_add);
static int __init exporter_init(void) { return 0; }
module_init(exporter_init);
"""
IMPORTER = """
extern int shared_value;
int shared_add(int a);
static int __init importer_init(void)
{
	pr_info("%d and %d\\n", shared_value, shared_add(1));
	return 0;
}
module_init(importer_init);
"""
WEAK = """
extern int nobody_has_this(void) __attribute__((weak));
static int (*volatile function)(void) = nobody_has_this;
static int __init weak_init(void) { pr_info("weak is %d\\n", function != NULL); return 0; }
module_init(weak_init);
"""
SIMPLE = """
static volatile int ten = 10;
static const char text[] = "constant";
static int __init simple_init(void) { pr_info("%d %s\\n", ten, text); return 0; }
static void __exit simple_exit(void) { }
module_init(simple_init);
module_exit(simple_exit);
"""


@pytest.fixture
def system() -> System:
    return pkvm_emu.boot("16", profile=SMALL)


@pytest.fixture
def pair(c_module):
    exporter = c_module(EXPORTER, None, name="exporter")
    return exporter, c_module(IMPORTER, None, name="importer", symbols=(exporter,))


def test_a_module_lies_in_the_module_area_and_each_next_one_behind_it(system: System, pair) -> None:
    exporter, importer = (system.load(path).layout for path in pair)
    assert exporter.base == system.kernel.memory.layout.modules_vaddr
    # A guard page is between the two.
    assert importer.base >= exporter.base + exporter.size + layout.PAGE_SIZE
    with pytest.raises(GuestFault):
        system.kernel.memory.read(importer.base - layout.PAGE_SIZE, 1)


def test_symbols_come_from_the_modules_that_export_them(system: System, pair) -> None:
    for path in pair:
        system.load(path)
    assert "importer: 41 and 42" in system.dmesg


def test_a_missing_exporter_is_an_unknown_symbol(system: System, pair) -> None:
    with pytest.raises(ModuleLoadError, match=r"unknown symbol shared_(value|add).*give exporter before it") as error:
        system.load(pair[1])
    assert error.value.errno == -2
    assert "importer: Unknown symbol shared_" in system.dmesg
    assert list(system.modules) == []


def test_a_weak_symbol_that_nobody_has_is_null(system: System, c_module) -> None:
    system.load(c_module(WEAK, None, name="weak"))
    assert "weak: weak is 0" in system.dmesg
    assert "nobody_has_this" not in system.kernel.symbols.unserved


def test_a_weak_symbol_that_is_served_is_linked(system: System, c_module) -> None:
    system.kernel.symbols.provide("nobody_has_this", lambda kernel: 0)
    system.load(c_module(WEAK, None, name="weak"))
    assert "weak: weak is 1" in system.dmesg


def test_text_is_not_writable_and_data_not_executable(system: System, c_module) -> None:
    module = system.load(c_module(SIMPLE, None, name="simple"))
    assert "simple: 10 constant" in system.dmesg
    access, memory = system.kernel.access, system.kernel.memory
    exit_function, ten = module.symbol("cleanup_module"), module.symbol("ten")
    assert exit_function is not None
    assert ten is not None
    _, fault = access("host_store8", exit_function, 1)
    assert fault is not None
    assert (fault[0] >> 26, fault[0] & 0x3F, fault[1]) == (0x25, 0x0F, exit_function)
    _, fault = access("host_execute", ten)
    assert fault is not None
    assert (fault[0] >> 26, fault[0] & 0x3F, fault[1]) == (0x21, 0x0F, ten)
    assert access("host_store32", ten, 11)[1] is None
    assert memory.read_u32(ten) == 11


def test_addresses_are_named_by_function_and_module(system: System, c_module) -> None:
    module = system.load(c_module(SIMPLE, None, name="simple"))
    init = module.symbol("init_module")
    assert init is not None
    text = system.symbols.el1(init + 4)
    assert text is not None
    assert text.endswith("[simple]")
    assert "+0x4/0x" in text
    assert system.kernel.loader.find(init) is module
    assert system.kernel.loader.find(module.layout.base - 1) is None


def test_an_out_of_tree_module_taints_once(system: System, pair) -> None:
    for path in pair:
        system.load(path)
    assert system.dmesg.count("loading out-of-tree module taints kernel") == 1
    assert "O" in system.kernel.tainted


def test_a_failed_module_is_gone_and_can_be_loaded_again(system: System, c_module) -> None:
    source = """
static int result = -EAGAIN;
module_param(result, int, 0);
static int __init probe_init(void) { return result; }
module_init(probe_init);
"""
    path = c_module(source, None)
    with pytest.raises(ModuleLoadError, match=r"returned -11 \(-EAGAIN\)"):
        system.load(path)
    assert "probe" not in system.modules
    module = system.load(path, [("result", "0")])
    assert (module.status, module.init_result) == ("live", 0)


def test_a_positive_answer_of_init_is_taken_for_success(system: System, c_module) -> None:
    module = system.load(c_module("static int __init f(void) { return 7; }\nmodule_init(f);\n", None))
    assert (module.status, module.init_result) == ("live", 7)


def test_a_loaded_el2_half_pins_its_module(pkvm_driver) -> None:
    system = pkvm_emu.boot(modules=[pkvm_driver("16")], profile=SMALL)
    module = system.modules["pkvm_driver"]
    assert module.references == 1
    assert module.token
    assert module.hyp_delta == module.token - module.layout.hyp_base
    assert module.el2_symbol("pkvm_driver_hyp_hvc") == module.el2_symbol("__kvm_nvhe_pkvm_driver_hyp_hvc")
    assert module.el2_symbol("no_such_function") is None


def test_module_names_are_found_or_listed(system: System, pair) -> None:
    system.load(pair[0])
    assert list(system.modules) == ["exporter"]
    with pytest.raises(KeyError, match=r"no module 'importer' is loaded \(loaded: exporter\)"):
        system.modules["importer"]


_HALF = """
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_hyp_call(struct user_pt_regs *regs);
static unsigned long token;
static int __init half_init(void)
{
	int ret = pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);
	return ret ? ret : pkvm_register_el2_mod_call(__kvm_nvhe_hyp_call, token) < 0;
}
module_init(half_init);
"""
_INIT = "int hyp_init(const struct pkvm_module_ops *ops) { return 0; }\nu64 twice(u64 a);\n"
_CALL = "void hyp_call(struct user_pt_regs *regs) { regs->regs[0] = 0; regs->regs[1] = twice(regs->regs[1]); }\n"


def test_a_module_whose_symbols_another_one_uses_shows_its_user(c_module) -> None:  # type: ignore[no-untyped-def]
    giver = c_module(
        "u64 __kvm_nvhe_twice(u64 a);\nEXPORT_SYMBOL(__kvm_nvhe_twice);\n" + _HALF,
        _INIT + "u64 twice(u64 a) { return 2 * a; }\n" + _CALL,
        name="giver",
    )
    taker = c_module(_HALF, _INIT + _CALL, name="taker", symbols=(giver,))
    system = pkvm_emu.boot(modules=[giver, taker])
    assert list(system.modules["giver"].users) == ["taker"]
    assert list(system.modules["taker"].users) == []
    lines = {line.split()[0]: line.split()[2:4] for line in system.fs.read("/proc/modules").splitlines()}
    assert lines == {"giver": ["2", "taker,[permanent],"], "taker": ["1", "[permanent],"]}
    assert system.hvc(system.modules["taker"].hypercalls["hyp_call"], 21).x1 == 42
