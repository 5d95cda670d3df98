"""Devices that go to a protected guest, their reset handlers, and their way back."""

from __future__ import annotations

import pytest
from guest_support import DEVICE, EBUSY, ENODEV, IPA, KEEPER, ON_RESET, RESET_RESULT, RESETS, ask

from pkvm_emu.errors import ModuleError
from pkvm_emu.hyp.devices import Devices
from pkvm_emu.hyp.vms import Vms
from pkvm_emu.system import boot

#: What ``booted`` loads: its name and its EL2 half.
MODULE = ("keeper", KEEPER)


def test_a_device_is_reset_when_it_goes_to_a_guest_and_when_it_comes_back(c_module):
    newest = boot(16, [c_module(el2=KEEPER, name="keeper", generation="android16-6.12")])
    writes = []
    newest.machine.engine.map_mmio(*DEVICE, lambda offset, size: 0x40 + offset, lambda *args: writes.append(args))
    newest.hyp.part(Devices).add(DEVICE)
    assert newest.host.read(DEVICE[0], 4).ok
    assert ask(newest, ON_RESET, DEVICE[0], 0xC0C) == 0
    vm = newest.create_vm()
    assert vm.assign(DEVICE[0], IPA) == 0
    result = newest.call("hyp_call", RESETS)
    assert (result.x1, result.x2, result.x3) == (0, 1, 0xC0C)
    assert vm.assign(DEVICE[0] + 0x1000, IPA + 0x1000) == 0
    assert newest.call("hyp_call", RESETS).x2 == 1
    assert vm.read(IPA + 4, 4).value == 0x44
    assert vm.write(IPA + 0x1008, 7, 4).ok
    assert writes == [(0x1008, 4, 7)]
    assert newest.host.read(DEVICE[0], 4).fault.kind == "injected"
    assert newest.create_vm().assign(DEVICE[0], IPA) == EBUSY
    vm.destroy()
    result = newest.call("hyp_call", RESETS)
    assert (result.x1, result.x2) == (1, 1)
    assert newest.host.read(DEVICE[0], 4).ok
    assert newest.host.read(DEVICE[0] + 0x1000, 4).ok
    assert newest.pages.check() == []


def test_a_device_without_reset_or_whose_reset_fails_is_not_assigned(newest):
    vm = newest.create_vm()
    assert vm.assign(DEVICE[0], IPA) == ENODEV
    newest.hyp.part(Devices).add(DEVICE)
    assert vm.assign(DEVICE[0], IPA) == ENODEV
    assert newest.explain()[0].rule == "no module registered a reset handler for the device"
    newest.hvc(newest.generation.hypercalls["host_reclaim_hyp_mmio"], DEVICE[0] >> 12, DEVICE[1] >> 12)
    ask(newest, ON_RESET, DEVICE[0], 0)
    ask(newest, RESET_RESULT, 0xFFFF_FFFB)
    assert vm.assign(DEVICE[0], IPA) == -5
    assert vm.state(IPA) == "NOPAGE"
    assert newest.hyp.part(Vms).devices == {}


def test_a_reset_that_fails_when_the_vm_is_gone_is_a_hypervisor_bug(newest):
    newest.hyp.part(Devices).add(DEVICE)
    ask(newest, ON_RESET, DEVICE[0], 0)
    vm = newest.create_vm()
    assert vm.assign(DEVICE[0], IPA) == 0
    ask(newest, RESET_RESULT, 0xFFFF_FFFB)
    with pytest.raises(ModuleError, match="reset handler"):
        vm.destroy()
