"""CPU registers, delays, lists, tracing, devices, guests, ranges of module pages."""

from __future__ import annotations

from errno import EBUSY, EINVAL, ENODEV, ENOMEM, EPERM

import pytest
from ops_caller import GENERATIONS

from pkvm_emu.hyp.devices import Devices
from pkvm_emu.hyp.guests import Guests
from pkvm_emu.hyp.ops.lists import LIST_POISON1
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.machine.profile import MachineProfile

TACR = 1 << 21
LATER = pytest.mark.parametrize("generation", ["15", "16"])


@pytest.mark.parametrize("generation", GENERATIONS)
def test_hcr_changes_on_the_cpu_and_in_what_is_kept_for_its_resume(caller, generation: str) -> None:
    ops = caller(generation)
    before = ops.system.machine.engine.read_sysreg("HCR_EL2")
    ops.op("update_hcr_el2", TACR, 0)
    assert ops.system.machine.engine.read_sysreg("HCR_EL2") == before | TACR == ops.hyp.hcr[0]
    ops.op("update_hcr_el2", 0, TACR)
    assert ops.system.machine.engine.read_sysreg("HCR_EL2") == before == ops.hyp.hcr[0]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_hfgwtr_is_undefined_without_fine_grained_traps(caller, generation: str) -> None:
    with pytest.raises(HypPanic, match="no FEAT_FGT") as caught:
        caller(generation).op("update_hfgwtr_el2", 1, 0)
    assert caught.value.state.exception_class == 0
    ops = caller(generation, profile=MachineProfile(fgt=True))
    ops.op("update_hfgwtr_el2", 1, 1 << 54)
    assert ops.hyp.hfgwtr[0] == 1 << 55 | 1


@LATER
def test_udelay_passes_that_much_time(caller, generation: str) -> None:
    ops = caller(generation)
    machine = ops.system.machine
    before = machine.core.ticks
    ops.op("udelay", 1000)
    passed = machine.core.ticks - before
    assert 0 <= passed - machine.profile.counter_hz // 1000 < 10_000


@LATER
def test_lists_are_checked_link_by_link(caller, generation: str) -> None:
    ops = caller(generation)
    head, entry, new = ops.buffer, ops.buffer + 16, ops.buffer + 32
    for node, following, previous in ((head, entry, entry), (entry, head, head)):
        ops.store(node, following)
        ops.store(node + 8, previous)
    assert ops.op("list_add_valid_or_report", new, entry, head) == 1
    assert ops.op("list_del_entry_valid_or_report", entry) == 1
    ops.store(entry, LIST_POISON1)
    with pytest.raises(HypPanic, match="removed before") as caught:
        ops.op("list_del_entry_valid_or_report", entry)
    assert caught.value.state.is_bug


def test_adding_an_entry_next_to_itself_is_a_bug(caller) -> None:
    ops = caller()
    head = ops.buffer
    ops.store(head, head)
    ops.store(head + 8, head)
    with pytest.raises(HypPanic, match="it is its own neighbour"):
        ops.op("list_add_valid_or_report", head, head, head)


def test_a_damaged_list_that_leads_nowhere_is_a_fault(caller) -> None:
    ops = caller()
    ops.store(ops.buffer, 0x10)
    ops.store(ops.buffer + 8, 0x10)
    with pytest.raises(HypPanic, match="list check") as caught:
        ops.op("list_del_entry_valid_or_report", ops.buffer)
    assert caught.value.state.far == 0x10


@LATER
def test_events_are_dropped_while_no_trace_buffer_is_loaded(caller, generation: str) -> None:
    ops = caller(generation)
    assert ops.op("tracing_reserve_entry", 16) == 0
    if generation == "16":
        ops.op("tracing_mod_hyp_printk", 0, 1, 2, 3, 4)


def test_sixteen_modules_may_announce_events_on_android15(caller) -> None:
    ops = caller("15")
    results = [ops.int("register_hyp_event_ids", ops.buffer, ops.buffer + 16) for _ in range(17)]
    assert results == [0] * 16 + [-ENOMEM]


def test_reset_handlers_are_for_assignable_devices(caller) -> None:
    ops = caller()
    assert ops.int("device_register_reset", 0x0900_0000, 7, ops.function) == -ENODEV
    ops.hyp.part(Devices).add((0x0900_0000, 0x1000))
    assert ops.int("device_register_reset", 0x0900_0800, 7, ops.function) == 0
    assert ops.int("device_register_reset", 0x0900_0000, 7, ops.function) == -EBUSY
    assert ops.hyp.part(Devices).resets[0] == (ops.function, 7)


def test_guest_smc_handlers_are_global_on_android16(caller) -> None:
    ops = caller()
    assert [ops.int("register_guest_smc_handler", ops.function) for _ in range(17)] == [0] * 16 + [-EBUSY]


def test_guest_smc_handlers_belong_to_a_vm_on_android15(caller) -> None:
    ops = caller("15")
    assert ops.int("register_guest_smc_handler", ops.function, 5) == -EINVAL
    ops.hyp.part(Guests).add(5)
    assert ops.int("register_guest_smc_handler", ops.function, 5) == 0
    assert ops.int("register_guest_smc_handler", ops.function, 5) == -EBUSY


def test_guest_addresses_translate_on_android15(caller) -> None:
    ops = caller("15")
    guests = ops.hyp.part(Guests)
    guests.add(5)
    guests.map(5, 0x8000_0000, 0x4400_0000)
    assert ops.int("guest_stage2_pa", 5, 0x8000_0123, ops.buffer) == 0
    assert ops.load(ops.buffer) == 0x4400_0123
    assert ops.int("guest_stage2_pa", 5, 0x9000_0000, ops.buffer) == -EINVAL


def test_trng_ops_have_one_slot(caller) -> None:
    ops = caller()
    assert ops.int("register_guest_trng_ops", ops.buffer) == 0
    assert ops.int("register_guest_trng_ops", ops.buffer) == -EBUSY


def test_module_pages_come_and_go_as_a_range(caller) -> None:
    ops = caller()
    pa, va = ops.page(2), ops.op("alloc_module_va", 2)
    assert ops.int("map_module_pages", pa >> 12, va, 2, 6, 0) == 0
    ops.store(va + 4096, 0x99)
    assert ops.load(ops.hyp.stage1.va_of(pa) + 4096) == 0x99
    assert ops.int("map_module_pages", pa >> 12, va, 2, 6, 0) == -EPERM
    ops.op("unmap_module_pages", pa >> 12, va, 2)
    assert ops.hyp.to_pa(va) is None
    assert ops.hyp.ownership.owner_of(pa).name == "HOST"
    with pytest.raises(HypPanic, match="unmap_module_pages"):
        ops.op("unmap_module_pages", pa >> 12, va, 2)


def test_dma_references_are_dropped_one_by_one(caller) -> None:
    ops = caller()
    pa = ops.page()
    ops.hyp.ownership.use_dma(pa, 4096)
    assert ops.int("host_donate_hyp", pa >> 12, 1, 0) == -EINVAL
    assert ops.int("pkvm_unuse_dma", pa, 4096) == 0
    assert ops.int("host_donate_hyp", pa >> 12, 1, 0) == 0


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_bad_result_pointer_is_a_fault_of_the_hypervisor(caller, generation: str) -> None:
    ops = caller(generation)
    with pytest.raises(HypPanic, match=r"ops->create_private_mapping\(\), called by .*0x10 is not writable") as caught:
        ops.op("create_private_mapping", ops.page(), 4096, 6, 0x10)
    assert caught.value.state.far == 0x10
    assert caught.value.state.esr & 1 << 6


def test_everything_the_ops_change_goes_back_with_a_snapshot(caller) -> None:
    ops = caller()
    ops.give(0, [0] * 3)
    snapshot = ops.system.snapshot()
    digest = ops.system.machine.digest()
    ops.op("hyp_alloc", 4096)
    ops.op("fixblock_map", 0x4000_0000)
    ops.op("update_hcr_el2", TACR, 0)
    ops.op("register_guest_trng_ops", ops.buffer)
    with pytest.raises(HypPanic):
        ops.op("hyp_free", 0x1000)
    ops.system.restore(snapshot)
    assert ops.system.machine.digest() == digest
    assert ops.op("fixblock_map", 0x4000_0000)
