"""From a ``.ko`` to the result of its hypercall: the boot, on every generation and on several machines."""

from __future__ import annotations

import re

import pytest

import pkvm_emu
from pkvm_emu.kernel.modules import ModuleLoadError
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System

GENERATIONS = pytest.mark.parametrize("generation", ["14", "15", "16"])
NOT_SUPPORTED = 2**64 - 1
LATE = """
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_hyp_call(pkvm_handler_regs_t *regs);
void __kvm_nvhe_hyp_late(pkvm_handler_regs_t *regs);
static unsigned long token;
static int late_set(const char *val, const struct kernel_param *kp)
{
	pr_info("late registration gives %d\\n", pkvm_register_el2_mod_call(__kvm_nvhe_hyp_late, token));
	return 0;
}
static const struct kernel_param_ops late_ops = { .set = late_set };
module_param_cb(late, &late_ops, NULL, 0200);
static int __init probe_init(void)
{
	int ret = pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);
	return ret ? ret : pkvm_register_el2_mod_call(__kvm_nvhe_hyp_call, token) < 0;
}
module_init(probe_init);
"""
LATE_EL2 = """
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs) { u64 *x = (u64 *)regs; x[0] = 0; x[1] += x[2]; }
void hyp_late(pkvm_handler_regs_t *regs) { u64 *x = (u64 *)regs; x[0] = 0; x[1] = 77; }
"""
PLAIN = """
static int value = 5;
module_param(value, int, 0644);
static int __init plain_init(void) { pr_info("value is %d\\n", value); return RESULT; }
module_init(plain_init);
"""


def write_parameter(system: System, module: str, name: str, value: str) -> int:
    """``echo VALUE > /sys/module/MODULE/parameters/NAME``"""
    parameter = next(p for p in system.kernel.parameters.of(system.modules[module]) if p.name == name)
    return system.kernel.parameters.set(parameter, value)


def lines(system: System) -> list[str]:
    """dmesg without its times."""
    return [re.sub(r"^\[[ 0-9.]*\] ", "", line) for line in system.dmesg.splitlines()]


# The sample


@GENERATIONS
def test_the_sample_boots_and_its_hypercall_answers(pkvm_driver, generation: str) -> None:
    with pkvm_emu.boot(modules=[pkvm_driver(generation)]) as system:
        assert system.generation.name.startswith(f"android{generation}")
        assert "pkvm_driver: hypercall 128 is ready, (40, 2) answers 43" in lines(system)
        driver = system.modules["pkvm_driver"]
        assert driver.status == "live"
        assert dict(driver.hypercalls) == {"pkvm_driver_hyp_hvc": 128}
        # x1 + x2 + the number of the call; the first was made by the module's init.
        assert system.call("pkvm_driver_hyp_hvc", 5, 6)[:2] == (0, 5 + 6 + 2)
        assert system.hvc(128, 100, 200)[:2] == (0, 100 + 200 + 3)
        assert system.is_secure
        assert system.pages.check() == []


@GENERATIONS
def test_a_parameter_written_after_boot_makes_the_module_call_its_el2_half(pkvm_driver, generation: str) -> None:
    with pkvm_emu.boot(modules=[pkvm_driver(generation)]) as system:
        assert write_parameter(system, "pkvm_driver", "call", "5") == 0
        assert lines(system)[-1] == "pkvm_driver: hypercall(5, 0) answers 7"
        assert write_parameter(system, "pkvm_driver", "call", "five") == -22


@pytest.mark.parametrize(
    "profile",
    [
        MachineProfile(hvhe=False),
        MachineProfile(pauth=False),
        MachineProfile(lse=False),
        MachineProfile(lpa2=True),
        MachineProfile(hvhe=False, pauth=False, lse=False),
        MachineProfile(ram_size=64 << 20),
        MachineProfile(ram_size=512 << 20),
        MachineProfile(ram_size=2 << 30),
        MachineProfile(ram_size=16 << 30),
        MachineProfile(ram_base=0x8000_0000, ram_size=256 << 20),
    ],
    ids=lambda p: ",".join(
        f"{name}={getattr(p, name):#x}"
        for name in ("hvhe", "pauth", "lse", "lpa2", "ram_size", "ram_base")
        if getattr(p, name) != getattr(MachineProfile(), name)
    ),
)
@GENERATIONS
def test_every_machine_gives_the_same_answers(pkvm_driver, profile: MachineProfile, generation: str) -> None:
    with pkvm_emu.boot(modules=[pkvm_driver(generation)], profile=profile) as system:
        assert system.call("pkvm_driver_hyp_hvc", 40, 2)[:2] == (0, 44)
        assert "pkvm_driver: hypercall 128 is ready, (40, 2) answers 43" in lines(system)
        assert system.is_secure
        assert system.pages.check() == []


@GENERATIONS
def test_two_boots_are_the_same_to_the_last_bit(pkvm_driver, generation: str) -> None:
    def run() -> tuple[str, str, int]:
        system = pkvm_emu.boot(modules=[pkvm_driver(generation)], profile=MachineProfile(ram_size=64 << 20))
        system.call("pkvm_driver_hyp_hvc", 1, 2)
        return system.dmesg, system.machine.digest(), system.machine.core.ticks

    assert run() == run()


COUNTER = """
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_hyp_call(pkvm_handler_regs_t *regs);
static unsigned long token;
static inline u64 now(void) { u64 v; asm volatile("isb\\nmrs %0, cntvct_el0" : "=r"(v)); return v; }
static int __init probe_init(void)
{
	u64 start = now(), end = start + 5000;
	while (now() < end)
		;
	pr_info("waited from %llu to %llu\\n", start, now());
	return pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token) ?:
		(pkvm_register_el2_mod_call(__kvm_nvhe_hyp_call, token) < 0);
}
module_init(probe_init);
"""
COUNTER_EL2 = """
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs, v;
	asm volatile("mrs %0, cntpct_el0" : "=r"(v));
	x[0] = 0;
	x[1] = v;
	do asm volatile("mrs %0, cntvct_el0" : "=r"(v)); while (v - x[1] < 100000);
	x[2] = v;
}
"""


def test_module_code_reads_the_machines_counter_at_both_levels(c_module) -> None:
    module = c_module(COUNTER, COUNTER_EL2)

    def run() -> tuple[str, int, int, int]:
        system = pkvm_emu.boot(modules=[module])
        before = system.machine.core.ticks
        answer = system.call("hyp_call")
        return system.dmesg, before, answer.x1, answer.x2

    log, before, first, last = run()
    assert before < first < before + 10_000
    assert 100_000 <= last - first < 101_000
    waited = re.search(r"waited from (\d+) to (\d+)", log)
    assert waited is not None
    assert 5000 <= int(waited[2]) - int(waited[1]) < 6000
    assert run() == (log, before, first, last)


# What deprivilege takes away


def el2_pages(system: System) -> list[tuple[str, int]]:
    """Section and EL1 address of every page of the EL2 half."""
    module = system.modules["pkvm_driver"]
    return [
        (section.name, va)
        for section in module.file.hyp_mapped_sections
        for va in range(
            module.layout.placements[section.index], module.layout.placements[section.index] + section.size, 4096
        )
    ]


S1PTW, WNR = 1 << 7, 1 << 6


@GENERATIONS
def test_the_host_loses_the_modules_el2_pages_at_deprivilege(pkvm_driver, generation: str) -> None:
    system = pkvm_emu.boot(modules=[pkvm_driver(generation)], deprivilege=False)
    access, memory = system.kernel.access, system.kernel.memory
    pages = el2_pages(system)
    assert {name for name, _ in pages} >= {".hyp.text", ".hyp.bss"}
    for _, va in pages:
        linear = memory.linear_va(memory.to_pa(va))
        for address in (va, linear):
            value, fault = access("host_load64", address)
            assert (value, fault) == (memory.read_u64(va), None)
        assert access("host_store64", linear, memory.read_u64(va))[1] is None
    system.kernel.deprivilege()
    for name, va in pages:
        linear = memory.linear_va(memory.to_pa(va)) + 8
        for address, label, arguments in (
            (va, "host_load64", ()),
            (linear, "host_load64", ()),
            (linear, "host_store8", (1,)),
        ):
            contents = memory.read(va, 4096)
            value, fault = access(label, address, *arguments)
            assert value == 2**64 - 14, (name, label)
            assert fault is not None
            esr, far = fault
            assert esr >> 26 == 0x25
            assert esr & S1PTW
            assert esr & 0x3F == 0x07
            assert bool(esr & WNR) == (label == "host_store8")
            assert far == address
            assert memory.read(va, 4096) == contents
        if name == ".hyp.text":
            _, fault = access("host_execute", va)
            assert fault is not None
            assert (fault[0] >> 26, fault[0] & S1PTW, fault[1]) == (0x21, S1PTW, va)
    assert system.pages.check() == []


@GENERATIONS
def test_el2_keeps_them(pkvm_driver, generation: str) -> None:
    system = pkvm_emu.boot(modules=[pkvm_driver(generation)])
    module = system.modules["pkvm_driver"]
    counter = module.el2_symbol("calls")
    assert counter is not None
    assert system.hyp.read(counter, 8) == (1).to_bytes(8, "little")
    system.call("pkvm_driver_hyp_hvc", 0, 0)
    assert system.hyp.read(counter, 8) == (2).to_bytes(8, "little")
    # EL2 reads what the host may not: the linear map of the same page.
    assert system.kernel.access("host_load64", module.layout.hyp_base)[1] is not None


@GENERATIONS
def test_other_memory_stays_the_hosts(pkvm_driver, generation: str) -> None:
    system = pkvm_emu.boot(modules=[pkvm_driver(generation)])
    page = system.kernel.pages.alloc_pages(0, zero=True)
    assert page is not None
    va = system.kernel.memory.linear_va(page)
    assert system.kernel.access("host_store64", va + 16, 0x1234)[1] is None
    assert system.kernel.access("host_load32", va + 16) == (0x1234, None)


@GENERATIONS
def test_a_pkvm_module_cannot_be_loaded_after_deprivilege(pkvm_driver, generation: str) -> None:
    with pkvm_emu.boot(generation) as system:
        with pytest.raises(ModuleLoadError, match=r"its init function returned -95 \(-EOPNOTSUPP\)") as error:
            system.load(pkvm_driver(generation))
        assert error.value.errno == -95
        assert list(system.modules) == []
        assert "pkvm_driver: the EL2 half was not loaded: -95" in lines(system)


def test_an_ordinary_module_loads_at_any_time(c_module) -> None:
    plain = c_module(PLAIN.replace("RESULT", "0"), None, name="plain")
    with pkvm_emu.boot("16") as system:
        module = system.load(plain, [("value", "31")])
        assert module.status == "live"
        assert "plain: value is 31" in lines(system)
        with pytest.raises(ModuleLoadError, match="EEXIST"):
            system.load(plain)


def test_a_late_registration_gives_a_positive_number_that_means_nothing(c_module) -> None:
    with pkvm_emu.boot(modules=[c_module(LATE, LATE_EL2)]) as system:
        assert write_parameter(system, "probe", "late", "1") == 0
        function = system.modules["probe"].el2_symbol("hyp_late")
        assert function is not None
        bogus = function & 0xFFFF_FFFF
        assert bogus > 0
        assert lines(system)[-1] == f"probe: late registration gives {bogus}"
        assert any(line.startswith("WARNING") for line in lines(system))
        assert system.hvc(0xC600_0000 | bogus).x0 == NOT_SUPPORTED
        assert dict(system.modules["probe"].hypercalls) == {"hyp_call": 128}
        assert system.call("hyp_call", 1, 2).x1 == 3


def test_before_deprivilege_the_same_registration_works(c_module) -> None:
    with pkvm_emu.boot(modules=[c_module(LATE, LATE_EL2)], deprivilege=False) as system:
        write_parameter(system, "probe", "late", "1")
        assert lines(system)[-1] == "probe: late registration gives 129"
        system.kernel.deprivilege()
        assert system.call("hyp_late").x1 == 77


@GENERATIONS
def test_the_loaders_hypercalls_are_closed_at_deprivilege(generation: str) -> None:
    for name in ("alloc_module_va", "map_module_page", "unmap_module_page", "init_module", "register_hcall"):
        with pkvm_emu.boot(generation) as system:
            number = system.generation.hypercalls[name]
            assert system.hvc(number, 0x40000, 2, 3) == (NOT_SUPPORTED, 0x40000, 2, 3), name


@GENERATIONS
def test_deprivilege_happens_once(generation: str) -> None:
    with pkvm_emu.boot(generation, deprivilege=False) as system:
        number = system.generation.hypercalls["prot_finalize"]
        assert system.hvc(number)[:2] == (0, 0)
        assert system.hvc(number)[:2] == (0, 2**64 - 1)


@GENERATIONS
@pytest.mark.parametrize(
    "function",
    [0xC600_0081, 0xC600_00FF, 0xC600_0100, 0xC600_7FFF, 0x8000_0000, 0x8400_0000, 0xDEAD_BEEF, 2**64 - 1, 0],
    ids=hex,
)
def test_an_unknown_id_is_not_supported_and_leaves_the_arguments(pkvm_driver, generation: str, function: int) -> None:
    system = pkvm_emu.boot(modules=[pkvm_driver(generation)])
    answer = system.kernel.hvc(function, 0x11, 0x22, 0x33)[:4]
    assert answer == (NOT_SUPPORTED, 0x11, 0x22, 0x33)


def test_the_sve_hint_of_the_id_is_ignored_on_android16(pkvm_driver) -> None:
    system = pkvm_emu.boot(modules=[pkvm_driver("16")])
    assert system.hvc(0xC601_0080, 1, 1)[:2] == (0, 4)
