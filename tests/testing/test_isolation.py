"""Whatever a test does to the shared system, the next one gets it as it was after the boot."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.testing.conftest import EL2

from pkvm_emu.devices.model import Model
from pkvm_emu.errors import PkvmEmuError
from pkvm_emu.hyp.registry import HYPERCALLS, hypercall
from pkvm_emu.kernel.registry import FUNCTIONS, kernel_symbol
from pkvm_emu.machine.snapshot import SnapshotTree
from pkvm_emu.shell.session import Session
from pkvm_emu.system import System
from pkvm_emu.testing.injection import Injection, inject
from pkvm_emu.testing.pool import SystemPool
from pkvm_emu.testing.recipe import Recipe

PAGE, RAM = 4096, 0x4800_0000
Act = Callable[[System], Any]
ACTS: dict[str, Act] = {}


def act(function: Act) -> Act:
    ACTS[function.__name__] = function
    return function


def touch(system: System) -> None:
    system.smc(0x8400_0000)
    system.host.read(RAM)
    system.call("hyp_call", 0x48000)


@act
def calls(system: System) -> None:
    touch(system)


@act
def panics(system: System) -> None:
    system.call("hyp_call", 666)


@act
def hangs(system: System) -> None:
    system.machine.core.instruction_budget = 7
    touch(system)


@act
def ruins_hypervisor_text(system: System) -> None:
    pa, size = system.hyp.text
    system.machine.ram.write(pa, bytes(size))
    touch(system)


@act
def ruins_module_text(system: System) -> None:
    for module in system.modules.values():
        for pa, order in module.blocks.values():
            system.machine.ram.write(pa, bytes(PAGE << order))
    touch(system)


@act
def patches_code_as_told(system: System) -> None:
    for module in system.modules.values():
        for pa, _ in module.blocks.values():
            system.machine.patch_code(pa, bytes(64))
    touch(system)


@act
def ruins_el2_tables(system: System) -> None:
    system.machine.ram.write(system.hyp.stage1.root, bytes(PAGE))
    system.machine.engine.flush_tlb()
    touch(system)


@act
def ruins_host_stage2(system: System) -> None:
    system.machine.ram.write(system.hyp.host.table.root, bytes(PAGE))
    system.machine.engine.flush_tlb()
    system.host.read(RAM)


@act
def ruins_el1_tables(system: System) -> None:
    root = system.machine.engine.read_sysreg("TTBR1_EL1") & ((1 << 48) - PAGE)
    system.machine.ram.write(root, bytes(PAGE))
    system.machine.engine.flush_tlb()
    touch(system)


@act
def ruins_hypervisor_data(system: System) -> None:
    for name in ("smc_count", "perm_count", "serial_putc_fn"):
        system.hyp.write_word(name, 0xFFFF_FFFF)
    touch(system)


@act
def ruins_registers(system: System) -> None:
    for name in ("x0", "x18", "x19", "x30", "sp"):
        system.machine.engine.write(name, 0x1234_5678)
    for name in ("VBAR_EL2", "TTBR0_EL2", "HCR_EL2", "TPIDR_EL2", "VTTBR_EL2", "SP_EL0", "VBAR_EL1"):
        system.machine.engine.write_sysreg(name, 0x1234_5000)


@act
def replaces_services(system: System) -> None:
    services = system.machine.core.services
    for number, service in list(services.items()):
        services[number] = replace(service, function=lambda *_: 1 // 0)
    touch(system)


@act
def hangs_raising_callbacks_on_the_core(system: System) -> None:
    def boom(*_: Any) -> None:
        raise RuntimeError("boom")

    for name in ("on_service", "on_exception", "on_run", "on_result"):
        setattr(system.machine.core, name, boom)
    touch(system)


@act
def patches_methods(system: System) -> None:
    for owner, name in (
        (system, "smc"),
        (system.hyp.traps, "name_of"),
        (system.kernel.symbols, "find"),
        (system.hyp.el3, "serve"),
    ):
        setattr(owner, name, lambda *_: None)
    touch(system)


@act
def takes_parts_away(system: System) -> None:
    del system.kernel._loader
    del system.machine.core.watchdog
    touch(system)


@act
def observers_raise(system: System) -> None:
    def raises(*_: Any) -> None:
        raise RuntimeError("in an observer")

    system.hyp.ops.observe(SimpleNamespace(before_op=raises, after_op=raises))
    touch(system)


@act
def lets_ops_fail(system: System) -> None:
    inject(system, [Injection.parse("host_share_hyp=*:EPERM")])
    touch(system)


@act
def serves_smcs(system: System) -> None:
    system.hyp.el3.serve(lambda registers: (7,))
    touch(system)


@act
def adds_a_model(system: System) -> None:
    system.add_models([(0x0A10_0000, 0x1000, Model)])


@act
def registers_services_of_its_own(system: System) -> None:
    kernel_symbol("vendor_symbol")(lambda kernel: 1)
    hypercall("vendor_hypercall")(lambda hyp: 1)
    system.kernel.symbols.provide("another", lambda kernel: 1) if hasattr(system.kernel.symbols, "provide") else None


@act
def writes_files_and_leaves_them_open(system: System) -> None:
    system.fs.write("/tmp/left", "behind")
    Session(system, bytearray().extend).run("echo 1 > /sys/kernel/tracing/hypervisor/tracing_on; exec 3< /proc/cmdline")


@act
def lets_time_pass(system: System) -> None:
    system.idle(3.0)


@act
def turns_cpus_off(system: System) -> None:
    system.cpu(1).online = False


@act
def suspends(system: System) -> None:
    system.cpu(1).suspend()


@act
def fails_on_another_cpu(system: System) -> None:
    with system.on_cpu(1):
        touch(system)
        raise RuntimeError("on CPU 1")


@act
def takes_snapshots(system: System) -> None:
    first = system.snapshot()
    touch(system)
    system.snapshot()
    system.restore(first)
    touch(system)


@act
def watches_and_records(system: System) -> None:
    system.watch_contracts("memory")
    system.record_timeline()
    system.machine.engine.hook_memory(RAM, RAM + PAGE, lambda *_: None)
    touch(system)


@act
def ends_the_system(system: System) -> None:
    system.reboot()


@pytest.fixture(scope="module")
def recipe(c_module: Callable[..., Path]) -> Recipe:
    return Recipe(modules=(c_module(el2=EL2, name="vendor"),), cpus=2, ram_mib=192, options=(("contracts", "memory"),))


@pytest.fixture
def pool() -> SystemPool:
    return SystemPool()


def behaviour(system: System) -> list[object]:
    """What a test sees of a system, and all of its state afterwards."""
    seen: list[object] = [tuple(system.call("hyp_call", 0x48000 + n)) for n in range(3)]
    seen += [tuple(system.smc(0x8400_0000)), str(system.host.read(RAM)), str(system.host.write(RAM + 8, 3))]
    with system.on_cpu(1):
        seen.append(tuple(system.call("hyp_call", 0x48009)))
    seen += [system.dmesg, str(system.pages.at(RAM)), [str(finding) for finding in system.contracts.findings]]
    return [*seen, system.machine.digest()]


def spoil(system: System, function: Act) -> None:
    # What never ends does so soon.
    system.machine.core.event_budget = 3000
    system.machine.core.instruction_budget = 100_000
    with suppress(PkvmEmuError, RuntimeError, AttributeError, KeyError, TypeError, ValueError, ArithmeticError):
        function(system)


@pytest.mark.parametrize("name", ACTS)
def test_the_next_test_gets_the_system_as_it_was(recipe: Recipe, pool: SystemPool, name: str) -> None:
    fresh = pool.system(recipe)
    before = fresh.machine.digest()
    wanted = behaviour(pool.system(recipe))
    spoil(pool.system(recipe), ACTS[name])
    again = pool.system(recipe)
    assert again is fresh, "it was booted anew"
    assert again.machine.digest() == before
    assert behaviour(pool.system(recipe)) == wanted
    assert pool.boots == 1


def test_any_sequence_of_them_leaves_what_a_fresh_boot_makes(recipe: Recipe, pool: SystemPool) -> None:
    rng = random.Random(7)
    wanted = behaviour(SystemPool().system(recipe))
    for _ in range(12):
        system = pool.system(recipe)
        chosen = [rng.choice(list(ACTS)) for _ in range(3)]
        for name in chosen:
            spoil(system, ACTS[name])
        assert behaviour(pool.system(recipe)) == wanted, chosen
    assert pool.boots == 1


def test_registrations_and_snapshots_of_tests_do_not_pile_up(recipe: Recipe, pool: SystemPool) -> None:
    system = pool.system(recipe)
    base = system.machine.snapshots.base
    for _ in range(3):
        spoil(system, registers_services_of_its_own)
        spoil(system, takes_snapshots)
        system = pool.system(recipe)
    assert "vendor_symbol" not in FUNCTIONS
    assert "vendor_hypercall" not in HYPERCALLS
    assert system.machine.snapshots.base is base
    assert base is not None
    assert len(base.children) <= 1


def test_a_system_that_cannot_be_brought_back_is_booted_anew(
    recipe: Recipe, pool: SystemPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = pool.system(recipe)
    monkeypatch.setattr(SnapshotTree, "restore", lambda *_: 1 // 0)
    again = pool.system(recipe)
    assert again is not system
    assert again.call("hyp_call", 0x48000).x2 == 1
