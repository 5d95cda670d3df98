"""Random steps of host, hypervisor and two guests: a small model predicts each answer, and all tables agree after each step."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.machine.snapshot import Snapshot
from pkvm_emu.system import System, boot

BASE, IPA, STEP = 0x4240_0000, 0x8000_0000, 0x1000
#: Neighbours in one 2 MiB block, and the first page of the next one.
PAGES = (0, 1, 2, 511, 512)
pages = st.sampled_from(PAGES)
places = st.integers(0, 2)
guests = st.integers(0, 1)
levels = st.sampled_from([0, 1])
EPERM = -1


@cache
def booted(generation: str) -> tuple[System, Snapshot]:
    system = boot(generation, profile=MachineProfile(ram_size=64 << 20))
    return system, system.snapshot()


class Machine(RuleBasedStateMachine):
    """``owner`` says who has a page: ``host``, ``hyp``, or ``(guest, place, shared)``."""

    generation = "android16-6.12"

    def __init__(self):
        super().__init__()
        self.system, before = booted(self.generation)
        self.system.restore(before)
        self.vms = [self.system.create_vm(), self.system.create_vm()]
        self.owner = dict.fromkeys(PAGES, "host")

    def pa(self, page):
        return BASE + page * STEP

    def page_at(self, guest, place):
        found = [page for page, owner in self.owner.items() if owner[:2] == (guest, place)]
        return found[0] if found else None

    @rule(guest=guests, page=pages, place=places)
    def donate(self, guest, page, place):
        possible = self.owner[page] == "host" and self.page_at(guest, place) is None
        assert self.vms[guest].donate(self.pa(page), IPA + place * STEP) == (0 if possible else EPERM)
        if possible:
            self.owner[page] = (guest, place, False)

    @rule(guest=guests, place=places)
    def share(self, guest, place):
        page = self.page_at(guest, place)
        expected = -1 if page is None else -3 if self.owner[page][2] else 1
        assert self.vms[guest].share(IPA + place * STEP) == expected
        if expected == 1:
            self.owner[page] = (guest, place, True)

    @rule(guest=guests, place=places)
    def unshare(self, guest, place):
        page = self.page_at(guest, place)
        expected = 1 if page is not None and self.owner[page][2] else -3
        assert self.vms[guest].unshare(IPA + place * STEP) == expected
        if expected == 1:
            self.owner[page] = (guest, place, False)

    @rule(page=pages)
    def take(self, page):
        possible = self.owner[page] == "host"
        assert self.system.hyp.ownership.host_donate_hyp(self.pa(page) >> 12) == (0 if possible else EPERM)
        if possible:
            self.owner[page] = "hyp"

    @rule(page=pages)
    def give_back(self, page):
        possible = self.owner[page] == "hyp"
        assert self.system.hyp.ownership.hyp_donate_host(self.pa(page) >> 12) == (0 if possible else EPERM)
        if possible:
            self.owner[page] = "host"

    @rule(page=pages, el=levels, value=st.integers(1, 255))
    def host_writes(self, page, el, value):
        owner = self.owner[page]
        reachable = owner == "host" or (owner != "hyp" and owner[2])
        assert self.system.host.write(self.pa(page), value, el=el).ok is reachable
        if reachable:
            assert self.system.host.read(self.pa(page), el=el).value == value

    @rule(guest=guests, place=places, value=st.integers(1, 255))
    def guest_writes(self, guest, place, value):
        page = self.page_at(guest, place)
        assert self.vms[guest].write(IPA + place * STEP, value).ok is (page is not None)
        if page is not None:
            assert self.system.machine.ram.read_u64(self.pa(page)) == value

    @rule(guest=guests)
    def make_anew(self, guest):
        self.vms[guest].destroy()
        for page, owner in self.owner.items():
            if owner[0] == guest:
                if not owner[2]:
                    assert self.system.host.read(self.pa(page)).value == 0
                self.owner[page] = "host"
        self.vms[guest] = self.system.create_vm()

    @invariant()
    def the_tables_agree(self):
        assert self.system.pages.check() == []
        for vm in self.vms:
            assert vm.check() == []


@pytest.mark.parametrize("generation", ["android14-6.1", "android15-6.6", "android16-6.12"])
def test_random_steps_end_as_the_model_says(generation):
    machine = type("Chosen", (Machine,), {"generation": generation})
    machine.TestCase.settings = settings(max_examples=5, stateful_step_count=25, deadline=None, derandomize=True)
    machine.TestCase("runTest").runTest()
