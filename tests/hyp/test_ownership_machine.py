"""Random operations, legal or not: a small model predicts each errno, and the tables agree after each step."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from ownership_support import A14, A15, A16, PAGE, RTC, make, name

from pkvm_emu.hyp.errors import HypBug

BASE = 0x4820_0000
COUNT = 1025
pages = st.one_of(st.integers(0, 3), st.sampled_from([511, 512, 513, 1023, 1024]))
counts = st.integers(1, 3)


class Machine(RuleBasedStateMachine):
    """The model has one word for each page: host, hyp, hyp_ro, shared, restricted, none."""

    generation = A16

    def __init__(self):
        super().__init__()
        self.memory = make(self.generation)
        self.m = self.memory.ownership
        self.word = dict.fromkeys(range(COUNT + 4), "host")
        self.pins = dict.fromkeys(range(COUNT + 4), 0)

    @initialize(late=st.booleans())
    def begin(self, late):
        if late:
            self.m.finalise()

    def pfn(self, page):
        return (BASE >> 12) + page

    def words(self, page, count):
        return [self.word[page + i] for i in range(count)]

    def write(self, page, count, word):
        for i in range(count):
            self.word[page + i] = word

    @rule(page=pages, count=counts, mmio=st.booleans())
    def donate(self, page, count, mmio):
        pinned = any(self.pins[page + i] for i in range(count))
        expected = "0" if set(self.words(page, count)) == {"host"} else "-EPERM"
        if pinned and self.generation == A15:
            expected = "-EINVAL"
        assert name(self.m.host_donate_hyp(self.pfn(page), count, mmio)) == expected
        if expected == "0":
            self.write(page, count, "hyp")

    @rule(page=pages)
    def donate_read_only(self, page):
        expected = "0" if self.word[page] == "host" else "-EPERM"
        if self.pins[page] and self.generation == A15:
            expected = "-EINVAL"
        assert name(self.m.host_donate_hyp(self.pfn(page), 1, False, prot=4)) == expected
        if expected == "0":
            self.word[page] = "hyp_ro"

    @rule(page=pages, count=counts)
    def give_back(self, page, count):
        expected = "0" if set(self.words(page, count)) == {"hyp"} else "-EPERM"
        assert name(self.m.hyp_donate_host(self.pfn(page), count)) == expected
        if expected == "0":
            self.write(page, count, "host")

    @rule(page=pages)
    def share(self, page):
        expected = "0" if self.word[page] == "host" else "-EPERM"
        if self.pins[page] and self.generation == A15:
            expected = "-EINVAL"
        assert name(self.m.host_share_hyp(self.pfn(page))) == expected
        if expected == "0":
            self.word[page] = "shared"

    @rule(page=pages)
    def unshare(self, page):
        expected = "0" if self.word[page] == "shared" else "-EPERM"
        if self.pins[page]:
            expected = "-EINVAL" if self.generation == A15 else "-EBUSY"
        assert name(self.m.host_unshare_hyp(self.pfn(page))) == expected
        if expected == "0":
            self.word[page] = "host"

    @rule(page=pages, count=counts)
    def pin(self, page, count):
        va = self.memory.hyp.va_of(BASE + page * PAGE)
        expected = "0" if set(self.words(page, count)) == {"shared"} else "-EPERM"
        assert name(self.m.pin_shared_mem(va, va + count * PAGE)) == expected
        if expected == "0":
            for i in range(count):
                self.pins[page + i] += 1

    @rule(page=pages)
    def unpin(self, page):
        va = self.memory.hyp.va_of(BASE + page * PAGE)
        if self.pins[page]:
            self.m.unpin_shared_mem(va, va + 1)
            self.pins[page] -= 1
        else:
            with pytest.raises(HypBug):
                self.m.unpin_shared_mem(va, va + 1)

    @rule(page=pages, count=counts, prot=st.sampled_from([0, 4, 6, 7, 2, 0x80]))
    def restrict(self, page, count, prot):
        mine = {"restricted", "none"}
        words = set(self.words(page, count))
        expected = "0" if words <= mine or words == {"host"} else "-EPERM"
        if prot == 0x80:
            expected = "-EINVAL"
        assert name(self.m.host_stage2_mod_prot(self.pfn(page), prot, count)) == expected
        if expected == "0":
            self.write(page, count, {0: "none", 7: "host"}.get(prot, "restricted"))

    @rule(page=pages)
    def touch(self, page):
        result = name(self.m.host_mem_abort(BASE + page * PAGE, False))
        reachable = self.word[page] in ("host", "shared", "restricted")
        assert result in (("0", "-EAGAIN") if reachable else ("-EPERM",))

    @rule()
    def touch_mmio(self):
        assert name(self.m.host_mem_abort(RTC, False)) in ("0", "-EAGAIN")

    @invariant()
    def tables_agree(self):
        assert self.m.check_consistency() == []
        for page in (0, 1, 511, 512, 1024):
            leaf = self.m.host_stage2_get_leaf(BASE + page * PAGE)
            word = self.word[page]
            if word in ("hyp", "hyp_ro", "none"):
                assert leaf.descriptor == (0x10 if word == "none" else 0x4)
            elif word == "restricted":
                assert leaf.level == 3
                assert leaf.valid
            else:
                assert not leaf.descriptor or leaf.pa == BASE + page * PAGE


def generation_machine(name, generation):
    case = type(name, (Machine,), {"generation": generation}).TestCase
    case.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
    return case


TestAndroid14 = generation_machine("Android14", A14)
TestAndroid15 = generation_machine("Android15", A15)
TestAndroid16 = generation_machine("Android16", A16)
