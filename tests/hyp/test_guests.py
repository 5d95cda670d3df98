"""Protected guests: their pages, their SMCs and the modules' handlers, devices, and what is left when they are gone."""

from __future__ import annotations

import pytest
from guest_support import (
    ASKED,
    DONATE_HYP,
    E2BIG,
    EBUSY,
    EINVAL,
    ENOENT,
    EPERM,
    ERANGE,
    FIRST,
    GUEST_PA,
    IPA,
    KEEPER,
    NOT_SUPPORTED,
    PAGE,
    REGISTER,
    SECOND,
    ask,
    asked,
)

from pkvm_emu.errors import ModuleError, UsageError
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import boot

#: What ``booted`` loads: its name and its EL2 half.
MODULE = ("keeper", KEEPER)


# Memory


def test_a_donated_page_is_the_guests_alone(system):
    vm = system.create_vm()
    system.host.write(PAGE, 0x77)
    assert vm.donate(PAGE, IPA, 2) == 0
    assert vm.read(IPA).value == 0x77
    assert vm.write(IPA + 0x1008, 0x1234).ok
    assert system.machine.ram.read_u64(PAGE + 0x1008) == 0x1234
    for el in (1, 0):
        for access in (
            system.host.read(PAGE, el=el),
            system.host.write(PAGE, 0, el=el),
            system.host.execute(PAGE, el=el),
        ):
            assert access.fault.kind == "injected"
    page = system.pages.at(PAGE)
    assert page.owner.name == "GUEST"
    assert vm.state(IPA) == "OWNED"
    assert system.hyp.to_pa(system.hyp.stage1.va_of(PAGE)) is None
    assert system.pages.check() == vm.check() == []


def test_a_guest_reaches_nothing_that_it_was_not_given(system):
    vm = system.create_vm()
    vm.donate(PAGE, IPA)
    for ipa in (IPA + 0x1000, PAGE, system.kernel.hyp_reserved):
        for access in (vm.read(ipa), vm.write(ipa, 1)):
            assert (access.ok, access.kind, access.ipa) == (False, "translation", ipa)


def test_the_host_gets_every_page_back_zeroed_when_the_vm_is_destroyed(system):
    owned = set(range(PAGE, PAGE + 0x4000, 0x1000))
    vm = system.create_vm()
    vm.donate(PAGE, IPA, 3)
    vm.write(IPA, 0x1111)
    vm.write(IPA + 0x1000, 0x2222)
    vm.share(IPA + 0x1000)
    vm.destroy()
    assert not vm.is_alive
    assert system.host.read(PAGE).value == 0
    # What the guest shared with the host is no secret and is left as it is.
    assert system.host.read(PAGE + 0x1000).value == 0x2222
    assert {system.pages.at(pa).owner.name for pa in owned} == {"HOST"}
    assert all(system.pages.at(pa).owner.name == "HOST" for pa in vm._vm.given)
    assert system.pages.check() == []
    with pytest.raises(UsageError, match="destroyed"):
        vm.read(IPA)


def test_a_page_is_given_once(system):
    vm, other = system.create_vm(), system.create_vm()
    assert vm.donate(PAGE, IPA) == 0
    assert vm.donate(PAGE, IPA + 0x1000) == EPERM
    assert other.donate(PAGE, IPA) == EPERM
    assert system.explain()[0].owner.name == "GUEST"
    assert vm.donate(PAGE + 0x1000, IPA) == EPERM
    assert "already" in system.explain()[0].rule
    assert ask(system, DONATE_HYP, PAGE >> 12) == EPERM
    assert system.pages.check() == vm.check() == other.check() == []


def test_pages_of_the_hypervisor_and_of_modules_are_not_given_to_guests(system):
    vm = system.create_vm()
    assert ask(system, DONATE_HYP, PAGE >> 12) == 0
    assert vm.donate(PAGE, IPA) == EPERM
    assert vm.donate(system.kernel.hyp_reserved, IPA) == EPERM
    assert vm.state(IPA) == "NOPAGE"


def test_what_is_not_ram_is_not_given_to_guests(system):
    expected = EINVAL if system.generation.layout == "a16" else EPERM
    assert system.create_vm().donate(0x0900_0000, IPA) == expected


def test_addresses_beyond_the_guests_space_are_refused(newest):
    vm = newest.create_vm()
    assert vm.donate(PAGE, (1 << 44) - 0x1000) == 0
    assert vm.donate(PAGE + 0x1000, 1 << 44) == ERANGE
    assert (
        newest.hvc(newest.generation.hypercalls["host_donate_guest"], PAGE >> 12, IPA >> 12, 1).x1
        == EINVAL & NOT_SUPPORTED
    )
    with pytest.raises(UsageError, match="multiples of 4096"):
        vm.donate(PAGE + 8, IPA)


def test_a_whole_block_is_mapped_as_a_block_and_comes_back(newest):
    vm = newest.create_vm()
    assert vm.donate(PAGE, IPA, 512) == 0
    assert (IPA, PAGE, 1 << 21, "OWNED") in vm.mappings()
    assert vm.write(IPA + 0x1F_F000, 9).ok
    assert vm.share(IPA + 0x1000) == 1
    assert newest.host.read(PAGE + 0x1000).ok
    assert not newest.host.read(PAGE + 0x2000).ok
    assert newest.pages.check() == vm.check() == []
    vm.destroy()
    assert newest.host.read(PAGE + 0x1F_F000).value == 0
    assert newest.pages.check() == []


def test_the_guest_shares_its_page_with_the_host_and_takes_it_back(system):
    vm = system.create_vm()
    vm.donate(PAGE, IPA)
    vm.write(IPA, 0xABC)
    assert vm.share(IPA) == 1
    assert vm.state(IPA) == "SHARED_OWNED"
    assert system.host.read(PAGE).value == 0xABC
    assert system.pages.at(PAGE).owner.name == "GUEST"
    assert system.host.write(PAGE, 0xDEF).ok
    assert vm.read(IPA).value == 0xDEF
    assert ask(system, DONATE_HYP, PAGE >> 12) == EPERM
    assert vm.check() == []
    assert vm.share(IPA) == -3
    assert vm.unshare(IPA) == 1
    assert vm.state(IPA) == "OWNED"
    assert system.host.read(PAGE).fault.kind == "injected"
    assert vm.unshare(IPA) == -3
    assert system.pages.check() == vm.check() == []


def test_sharing_an_address_without_page_asks_the_host_for_one(system):
    vm = system.create_vm()
    assert vm.share(IPA) == -1
    assert vm.share(IPA + 8) == -3


def test_two_guests_use_the_same_address_for_different_pages(system):
    first, second = system.create_vm(), system.create_vm()
    assert (first.handle, second.handle) == (0x1000, 0x1001)
    assert first.vmid != second.vmid
    first.donate(PAGE, IPA)
    second.donate(PAGE + 0x1000, IPA)
    first.write(IPA, 1)
    second.write(IPA, 2)
    assert (first.read(IPA).value, second.read(IPA).value) == (1, 2)
    first.destroy()
    assert second.read(IPA).value == 2
    third = system.create_vm()
    assert third.handle == 0x1000
    assert not third.read(IPA).ok


# VMs that are not protected


def test_the_host_shares_pages_with_a_vm_that_is_not_protected(system):
    vm = system.create_vm(protected=False)
    assert vm.host_share(PAGE, IPA) == 0
    assert vm.state(IPA) == "SHARED_BORROWED"
    vm.write(IPA, 5)
    assert system.host.read(PAGE).value == 5
    assert ask(system, DONATE_HYP, PAGE >> 12) == EPERM
    assert vm.check() == []


def test_a_page_is_shared_with_several_guests_and_is_free_after_the_last(newest):
    first, second = newest.create_vm(protected=False), newest.create_vm(protected=False)
    assert first.host_share(PAGE, IPA) == 0
    assert second.host_share(PAGE, IPA) == 0
    assert newest.hyp.vmemmap.share_count(PAGE) == 2
    assert first.host_unshare(IPA) == 0
    assert ask(newest, DONATE_HYP, PAGE >> 12) == EPERM
    assert second.host_unshare(IPA) == 0
    assert ask(newest, DONATE_HYP, PAGE >> 12) == 0
    assert second.host_unshare(IPA) == ENOENT
    assert second.host_unshare(IPA, 2) == EINVAL
    assert newest.pages.check() == first.check() == second.check() == []


def test_a_share_can_be_read_only(newest):
    vm = newest.create_vm(protected=False)
    assert vm.host_share(PAGE, IPA, prot=4) == 0
    assert vm.read(IPA).ok
    assert vm.write(IPA, 1).kind == "permission"
    assert vm.host_share(PAGE + 0x1000, IPA + 0x1000, prot=8) == EINVAL


def test_donating_is_for_protected_vms_and_sharing_for_the_others(newest):
    assert newest.create_vm(protected=False).donate(PAGE, IPA) == EINVAL
    vm = newest.create_vm()
    assert vm.host_share(PAGE, IPA) == EINVAL
    assert vm.host_unshare(IPA) == EINVAL


# SMCs


def test_a_module_answers_a_guests_smc(system):
    vm = system.create_vm()
    if not system.generation.guest_smc_slots:
        assert vm.smc(0x8200_0001, 1, 2).registers[:3] == (NOT_SUPPORTED, 1, 2)
        return
    assert ask(system, REGISTER, FIRST, vm.handle) == 0
    result = vm.smc(0x8200_0001, 40, 2, *range(3, 18))
    assert result.registers[:4] == (0, 42, vm.handle, 17)
    assert not result.exited
    rest = tuple(0x100 + n for n in range(4, 18)) if system.generation.layout == "a16" else tuple(range(4, 18))
    assert result.registers[4:] == rest
    assert system.call("hyp_call", ASKED).x3 == vm.handle


def test_what_nobody_wants_is_not_supported_for_the_guest(system):
    vm = system.create_vm()
    result = vm.smc(0x8200_0009, 1, 2)
    assert result.registers[:3] == (NOT_SUPPORTED, 1, 2)
    assert not result.is_supported
    if system.generation.guest_smc_slots:
        ask(system, REGISTER, FIRST, vm.handle)
        assert not vm.smc(0x8200_0009, 1, 2).is_supported
        assert asked(system) == (1, 0)
    assert not system.hyp.el3.unanswered


def test_android16_asks_all_handlers_in_the_order_of_registration_for_every_vm(newest):
    vm, other = newest.create_vm(), newest.create_vm()
    ask(newest, REGISTER, FIRST)
    ask(newest, REGISTER, SECOND)
    assert vm.smc(0x8200_0002).registers[0] == 22
    assert asked(newest) == (1, 1)
    assert other.smc(0x8200_0001).registers[2] == other.handle
    assert asked(newest) == (2, 1)
    assert [ask(newest, REGISTER, SECOND) for _ in range(15)] == [0] * 14 + [EBUSY]
    assert not vm.smc(0x8200_0003).is_supported
    assert asked(newest) == (3, 1 + 15)


def test_android15_asks_the_handler_of_the_vm_only(booted):
    system = booted("android15-6.6")
    vm, other = system.create_vm(), system.create_vm()
    assert ask(system, REGISTER, FIRST, vm.handle) == 0
    assert ask(system, REGISTER, SECOND, vm.handle) == EBUSY
    assert ask(system, REGISTER, FIRST, 0x77) == EINVAL
    assert vm.smc(0x8200_0001, 1, 2).registers[1] == 3
    assert not other.smc(0x8200_0001, 1, 2).is_supported
    assert asked(system) == (1, 0)
    assert ask(system, REGISTER, SECOND, other.handle) == 0
    assert other.smc(0x8200_0002).registers[0] == 22


def test_standard_services_and_vms_without_forwarding_do_not_reach_the_modules(newest):
    ask(newest, REGISTER, FIRST)
    vm, closed = newest.create_vm(), newest.create_vm(smc_forwarded=False)
    assert not vm.smc(0x8400_0000).is_supported
    assert not closed.smc(0x8200_0001).is_supported
    assert not newest.create_vm(protected=False).smc(0x8200_0001).is_supported
    assert asked(newest) == (0, 0)


def test_a_fault_in_a_modules_handler_is_a_panic_of_the_hypervisor(newest):
    ask(newest, REGISTER, FIRST)
    vm = newest.create_vm()
    with pytest.raises(HypPanic, match=r"first\+"):
        vm.smc(0x8200_0BAD)


def test_the_host_is_as_before_after_a_guest_ran(system):
    vm = system.create_vm()
    engine = system.machine.engine
    names = ("SCTLR_EL1", "TTBR0_EL1", "TTBR1_EL1", "TCR_EL1", "MAIR_EL1", "HCR_EL2", "VTTBR_EL2", "TPIDR_EL1")
    before = [engine.read_sysreg(name) for name in names], engine.read("vbar_el1"), engine.read("vbar_el2")
    vm.smc(0x8200_0009)
    vm.read(IPA)
    assert ([engine.read_sysreg(name) for name in names], engine.read("vbar_el1"), engine.read("vbar_el2")) == before
    assert system.host.write(PAGE, 4).ok
    assert system.host.read(PAGE, el=0).value == 4


@pytest.mark.parametrize("features", ["nvhe", "nopauth", "lpa2", "nolse"])
def test_guests_run_on_every_machine(c_module, features):
    module = c_module(el2=KEEPER, name="keeper", generation="android16-6.12")
    system = boot(16, [module], profile=MachineProfile.parse(features))
    vm = system.create_vm()
    ask(system, REGISTER, FIRST)
    vm.donate(PAGE, IPA)
    assert vm.write(IPA, 3).ok
    assert vm.smc(0x8200_0001, 1, 2).registers[1] == 3
    assert system.pages.check() == vm.check() == []


def test_guests_run_where_branch_targets_are_checked():
    # Without a module: one that is not compiled for it cannot run there.
    system = boot(16, profile=MachineProfile.parse("bti"))
    vm = system.create_vm()
    assert vm.donate(PAGE, IPA) == 0
    assert vm.write(IPA, 3).ok
    assert not vm.smc(0x8200_0001).is_supported


def test_a_module_finds_the_page_behind_a_guest_address(booted):
    system = booted("android15-6.6")
    vm = system.create_vm()
    vm.donate(PAGE, IPA)
    result = system.call("hyp_call", GUEST_PA, vm.handle, IPA + 0x123)
    assert (result.x1, result.x2) == (0, PAGE + 0x123)
    assert ask(system, GUEST_PA, vm.handle, IPA + 0x1000) == EINVAL
    assert ask(system, GUEST_PA, 0x77, IPA) == EINVAL


# When there are VMs at all


def test_protected_vms_are_refused_on_an_insecure_system(c_module):
    broken = c_module(
        el2="int hyp_init(const struct pkvm_module_ops *o) { return 0; }\nvoid hyp_call(pkvm_handler_regs_t *r) { }\n",
        name="whole",
    )
    system = boot(16, [broken], cmdline="kvm-arm.protected_modules=missing,whole")
    assert not system.is_secure
    with pytest.raises(ModuleError, match="insecure, because missing was not loaded"):
        system.create_vm()
    assert system.create_vm(protected=False).smc(0x8200_0001).registers[0] == NOT_SUPPORTED


def test_vms_come_after_the_boot(c_module):
    system = boot(16, [c_module(el2=KEEPER, name="keeper", generation="android16-6.12")], deprivilege=False)
    with pytest.raises(UsageError, match="not deprivileged yet"):
        system.create_vm()


def test_a_snapshot_brings_a_vm_back():
    newest = boot(16, profile=MachineProfile(ram_size=256 << 20))
    vm = newest.create_vm()
    vm.donate(PAGE, IPA)
    vm.write(IPA, 1)
    before = newest.snapshot()
    digest = newest.machine.digest()
    vm.write(IPA, 2)
    vm.donate(PAGE + 0x1000, IPA + 0x1000)
    other = newest.create_vm()
    vm.destroy()
    newest.restore(before)
    assert newest.machine.digest() == digest
    assert vm.is_alive
    assert not other.is_alive
    assert vm.read(IPA).value == 1
    assert not vm.read(IPA + 0x1000).ok


def test_a_vm_is_destroyed_at_the_end_of_its_block(newest):
    with newest.create_vm() as vm:
        vm.donate(PAGE, IPA)
    assert not vm.is_alive
    assert newest.pages.at(PAGE).owner.name == "HOST"


@pytest.mark.parametrize(
    ("hypercall", "args", "errno"),
    [
        ("start_teardown_vm", (0x77,), ENOENT),
        ("finalize_teardown_vm", (0x77,), ENOENT),
        ("finalize_teardown_vm", (0x1000,), EBUSY),
        ("reclaim_dying_guest_page", (0x1000, PAGE >> 12, IPA >> 12, 0), EINVAL),
        ("vcpu_run", (), EINVAL),
    ],
)
def test_steps_out_of_order_are_refused(newest, hypercall, args, errno):
    vm = newest.create_vm()
    vm.donate(PAGE, IPA)
    assert newest.hvc(newest.generation.hypercalls[hypercall], *args).x1 == errno & NOT_SUPPORTED
    (why,) = newest.explain(None)
    assert why.record.name == hypercall
    assert "VM" in why.rule


def test_reclaiming_looks_at_the_size_the_place_and_the_page(newest):
    vm = newest.create_vm()
    vm.donate(PAGE, IPA)
    number = newest.generation.hypercalls["reclaim_dying_guest_page"]
    newest.hvc(newest.generation.hypercalls["start_teardown_vm"], vm.handle)

    def reclaim(pa: int, ipa: int, order: int = 0) -> int:
        value = newest.hvc(number, vm.handle, pa >> 12, ipa >> 12, order).x1
        return value - (1 << 64) if value >> 63 else value

    assert reclaim(PAGE, IPA, 1) == EINVAL
    assert reclaim(PAGE, IPA, 9) == E2BIG
    assert reclaim(PAGE + 0x1000, IPA) == EINVAL
    assert reclaim(PAGE, IPA + 0x1000) == ENOENT
    assert reclaim(PAGE, 0x10_0000_0000) == E2BIG
    assert reclaim(PAGE, IPA) == 0
    assert newest.host.read(PAGE).ok
