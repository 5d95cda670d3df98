"""CPUs that are off: refused, started where they are told to, and back after a restore."""

from __future__ import annotations

import pytest
from bare import _EL1_RW, _EL1_RX, _TABLES, CODE, EL1_BASE, EL1H, EL2H, HCR_TSC, PAGE, Bare

from pkvm_emu.arch.insn import hvc
from pkvm_emu.errors import ModuleError, UsageError
from pkvm_emu.machine.core import CpuParked, Service
from pkvm_emu.machine.pagetable import BumpAllocator, PageTable
from pkvm_emu.machine.power import Entry, PoweredOff, PowerState
from pkvm_emu.machine.scheduler import Scheduler


@pytest.fixture
def bare() -> Bare:
    """Two CPUs at EL1; an SMC with x0 = 0 parks the CPU, another one starts CPU 1 at the code of EL2."""
    machine = Bare(cpus=2)
    for index in (1, 0):
        machine.machine.switch_to(index)
        # SMCs are not for EL2 here: they go to EL3.
        machine.engine.write_sysreg("HCR_EL2", machine.engine.read_sysreg("HCR_EL2") & ~HCR_TSC)
        machine.enter(EL1H)
    power, core = machine.machine.power, machine.core
    entry = machine.pa(CODE, 2)
    machine.machine.patch_code(entry, hvc(0x8000).to_bytes(4, "little"))

    def arrive() -> None:
        machine.engine.write("x7", machine.core.el << 8 | machine.machine.current.index)
        core.leave()

    core.add_service(entry, Service("arrive", 2, 1, lambda value: arrive()))

    def smc() -> None:
        if machine.engine.read("x0") == 0:
            power.turn_off(machine.machine.current.index)
            core.park()
        else:
            power.turn_on(1, Entry(entry, 0x77))

    core.on_smc = smc
    return machine


def smc(bare: Bare, x0: int) -> tuple[int, ...]:
    start = bare.load("start: smc #0\n mov x0, #5\n ret\n", 1)["start"]
    return bare.core.call(start, x0)


def test_a_call_in_which_the_cpu_goes_off_does_not_come_back_and_another_cpu_goes_on(bare: Bare) -> None:
    with pytest.raises(CpuParked, match="CPU 0 is off and does not run until another CPU switches it on"):
        smc(bare, 0)
    assert bare.machine.current.index == 1
    assert bare.machine.power.running == [1]
    with pytest.raises(UsageError, match="CPU 0 is off"):
        bare.machine.switch_to(0)
    with pytest.raises(UsageError, match="CPU 0 is off"), bare.machine.on_cpu(0):
        pass
    assert bare.machine.current.index == 1


def test_the_last_cpu_that_goes_off_leaves_a_machine_that_does_not_run(bare: Bare) -> None:
    for _ in range(2):
        with pytest.raises(CpuParked):
            smc(bare, 0)
    with pytest.raises(ModuleError, match="CPU 1 is off"):
        smc(bare, 1)


def test_a_cpu_that_is_switched_on_runs_at_el2_with_the_mmu_off_and_the_caller_goes_on(bare: Bare) -> None:
    with bare.machine.on_cpu(1), pytest.raises(CpuParked):
        smc(bare, 0)
    assert bare.machine.current.index == 0
    assert smc(bare, 1)[0] == 5
    assert (bare.machine.current.index, bare.machine.power.running) == (0, [0, 1])
    bare.machine.switch_to(1)
    assert (bare.engine.read("x0"), bare.engine.read("x7")) == (0x77, 2 << 8 | 1)
    assert bare.engine.read_sysreg("SCTLR_EL2") & 1 == 0
    assert bare.engine.read("pstate") & 0x3CF == EL2H & 0x3CF


def test_in_turns_a_cpu_goes_off_and_one_that_is_switched_on_joins(bare: Bare) -> None:
    with bare.machine.on_cpu(1), pytest.raises(CpuParked):
        smc(bare, 0)
    start = bare.load("start: smc #0\n mov x0, #0\n smc #0\n ret\n", 1)["start"]
    results = Scheduler(bare.machine, 0).run({0: (start, (1,))})
    assert results[0] == ()
    assert results[1][0] == 0x77
    assert bare.machine.current.index == 1
    assert bare.machine.power.in_state(PowerState.OFF) == [0]


def test_power_states_contexts_and_digests_go_back(bare: Bare) -> None:
    machine = bare.machine
    both = machine.snapshots.take()
    digest = machine.digest()
    with machine.on_cpu(1), pytest.raises(CpuParked):
        smc(bare, 0)
    one, off = machine.snapshots.take(), machine.digest()
    assert digest != off
    for _ in range(2):
        machine.snapshots.restore(both)
        assert machine.digest() == digest
        assert machine.power.running == [0, 1]
        machine.switch_to(1)
        assert bare.engine.read("pstate") & 0x3CF == EL1H & 0x3CF
        machine.snapshots.restore(one)
        assert machine.power.running == [0]
        assert machine.digest() == off


def test_registers_of_a_cpu_that_is_not_on_the_engine_show_in_the_digest(bare: Bare) -> None:
    machine = bare.machine
    snapshot = machine.snapshots.take()
    before = machine.digest()
    with machine.on_cpu(1):
        bare.engine.write("x5", 0x1234)
    assert machine.digest() != before
    machine.snapshots.restore(snapshot)
    assert machine.digest() == before
    with machine.on_cpu(1):
        assert bare.engine.read("x5") == 0


def test_cpus_with_different_tables_do_not_share_cached_translations(bare: Bare) -> None:
    machine = bare.machine
    load = bare.load("start: ldr x0, [x0]\n ret\n", 1)["start"]
    page = 0x80000
    machine.switch_to(1)
    # CPU 1 has a table of its own, in which the same address is another page.
    pages = BumpAllocator(_TABLES + (8 << 20), _TABLES + (9 << 20))
    own = PageTable(bare.ram, pages, 39, va_base=EL1_BASE)
    own.map(load & -PAGE, bare.pa(CODE, 1), PAGE, _EL1_RX)
    own.map(bare.va(0xF000, 1), bare.pa(0xF000, 1), PAGE, _EL1_RX)
    own.map(EL1_BASE + page, bare.pa(page, 1) + PAGE, PAGE, _EL1_RW)
    bare.el1.map(EL1_BASE + page, bare.pa(page, 1), PAGE, _EL1_RW)
    bare.ram.write_u64(bare.pa(page, 1), 111)
    bare.ram.write_u64(bare.pa(page, 1) + PAGE, 222)
    bare.engine.write_sysreg("TTBR1_EL1", own.root)
    for _ in range(3):
        for index, value in ((0, 111), (1, 222)):
            machine.switch_to(index)
            assert bare.core.call(load, EL1_BASE + page)[0] == value


def test_a_machine_that_was_switched_off_says_since_when_until_it_is_restored(bare: Bare) -> None:
    snapshot = bare.machine.snapshots.take()
    error = bare.machine.power.end("PSCI SYSTEM_RESET on CPU 1", "reset")
    assert (error.kind, str(error)) == ("reset", "PSCI SYSTEM_RESET on CPU 1 resets the machine")
    with pytest.raises(PoweredOff, match="does not run since PSCI SYSTEM_RESET on CPU 1: restore a snapshot") as again:
        smc(bare, 1)
    assert again.value.kind == "reset"
    bare.machine.snapshots.restore(snapshot)
    assert smc(bare, 1)[0] == 5
