"""Explanations of refusals: the call, who asked, the rule, and what had happened to the page."""

from __future__ import annotations

import json

import pytest

from pkvm_emu.cli.main import main
from pkvm_emu.hyp.refusals import Refusals
from pkvm_emu.system import System

PROBE = r"""
static const struct pkvm_module_ops *o;
static u64 out;
static bool handler(pkvm_handler_regs_t *regs) { return false; }
/* Functions of their own, so that the compiler does not merge the calls and their lines. */
static noinline int share(u64 pfn)
{
	int ret = o->host_share_hyp(pfn);
	asm volatile("" ::: "memory");
	return ret;
}
static noinline int donate(u64 pfn, u64 nr)
{
#if PKVM_EMU_ANDROID == 14
	int ret = o->host_donate_hyp(pfn, nr);
#else
	int ret = o->host_donate_hyp(pfn, nr, false);
#endif
	asm volatile("" ::: "memory");
	return ret;
}
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;

	x[0] = 0;
	switch (x[1]) {
	case 0: x[1] = donate(x[2], x[3]); break;
	case 1: x[1] = share(x[2]); break;
	case 2: x[1] = o->hyp_donate_host(x[2], x[3]); break;
	case 3: x[1] = o->register_host_smc_handler(handler); break;
	case 4: x[1] = o->create_private_mapping(x[2], x[3], x[4], (unsigned long *)&out); break;
	case 5: x[1] = o->register_default_trap_handler(handler); break;
#if PKVM_EMU_ANDROID == 14
	case 6: x[1] = o->host_stage2_mod_prot(x[2], x[3]); break;
#else
	case 6: x[1] = o->host_stage2_mod_prot(x[2], x[3], 1, false); break;
#endif
	}
}
int hyp_init(const struct pkvm_module_ops *ops) { o = ops; return 0; }
"""
DONATE, SHARE, GIVE_BACK, SMC_HANDLER, MAP, TRAP_HANDLER, PROTECT = range(7)
PFN = 0x48000
#: Lines that ``c_module`` puts in front of the EL2 half.
HEAD_LINES = 3
#: What ``booted`` loads: its name and its EL2 half.
MODULE = ("probe", PROBE)


def ends_at(where: str, text: str) -> bool:
    """Whether a place in words ends with the source line that holds a text (some includes are put in front of it)."""
    line = next(n for n, line in enumerate(PROBE.split("\n"), 1) if text in line)
    return where.endswith(f"el2.c:{line + HEAD_LINES})")


def ask(system: System, *args: int) -> int:
    """The op's errno as a number."""
    value = system.call("hyp_call", *args).x1 & 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


def test_nothing_is_explained_where_nothing_was_refused(system):
    assert ask(system, DONATE, PFN, 2) == 0
    assert system.explain(None) == ()
    assert str(system.explain()) == "nothing was refused"


def test_an_ownership_refusal_names_the_page_its_owner_and_the_line_that_gave_it_away(system):
    ask(system, DONATE, PFN, 2)
    assert ask(system, SHARE, PFN + 1) == -1
    (why,) = system.explain()
    assert (why.call, why.errno) == ("host_share_hyp(pfn=0x48001 (page 0x48001000))", "-EPERM")
    assert why.rule == "the page is not OWNED for the host"
    assert (why.page, why.owner.name, why.hyp_state) == (0x4800_1000, "HYP", "OWNED")
    assert why.host_state.startswith("NOPAGE") or system.generation.layout == "a14"
    assert "share+" in why.caller
    assert ends_at(why.caller, "host_share_hyp")
    (gift,) = why.past
    assert gift.event.op == "host_donate_hyp"
    assert ends_at(gift.who, "host_donate_hyp(pfn, nr);") or ends_at(gift.who, "host_donate_hyp(pfn, nr, false)")
    assert "donate+" in gift.who
    assert "[probe]" in gift.who


def test_the_text_has_the_call_the_caller_the_rule_the_page_and_its_past(newest):
    ask(newest, DONATE, PFN, 1)
    ask(newest, SHARE, PFN)
    call, caller, rule, page, past = str(newest.explain()).split("\n")
    assert call == "host_share_hyp(pfn=0x48000 (page 0x48000000)) = -EPERM"
    assert caller.startswith("  asked by: ")
    assert "share+" in caller
    assert rule == "  rule: the page is not OWNED for the host"
    assert page == "  page 0x48000000 then: owner HYP, host NOPAGE, hyp OWNED"
    assert past.startswith("  its past: #")
    assert "host_donate_hyp, OWNED by HOST -> OWNED by HYP, by " in past
    assert "donate+" in past


def test_the_page_is_told_as_it_was_then_and_not_as_it_is_now(newest):
    ask(newest, DONATE, PFN, 1)
    ask(newest, SHARE, PFN)
    ask(newest, GIVE_BACK, PFN, 1)
    (why,) = newest.explain()
    assert why.owner.name == "HYP"
    assert len(why.past) == 1
    assert newest.pages.at(PFN << 12).owner.name == "HOST"


def test_a_page_that_the_host_always_had_has_no_past(newest):
    assert ask(newest, GIVE_BACK, PFN, 1) == -1
    (why,) = newest.explain()
    assert why.past == ()
    assert why.rule == "the page is not OWNED for the hypervisor"
    assert "the host's from the start" in str(why)


def test_a_full_chain_says_how_many_slots_there_are_and_who_has_them(system):
    slots = system.generation.smc_handler_slots
    assert [ask(system, SMC_HANDLER) for _ in range(slots)] == [0] * slots
    assert ask(system, SMC_HANDLER) == -16
    (why,) = system.explain()
    assert (f"all {slots} slots are taken" if slots > 1 else "there is one slot, it is taken") in why.rule
    assert len(why.holders) == slots
    assert all("handler+0x0" in holder for holder in why.holders)
    assert why.arguments[0].text.endswith("[probe])")
    assert str(why).count("handler+0x0") == 2
    assert slots == 1 or f", {slots} times" in str(why)


def test_a_taken_slot_says_who_has_it(system):
    assert ask(system, TRAP_HANDLER) == 0
    assert ask(system, TRAP_HANDLER) == -16
    (why,) = system.explain()
    assert why.rule.startswith("there is one slot")
    assert len(why.holders) == 1


def test_a_bad_protection_and_a_full_private_range_are_explained(system):
    assert ask(system, MAP, PFN << 12, 0x1000, 7) == -22
    (bad,) = system.explain()
    assert bad.rule.startswith("EL2 cannot have this protection")
    assert [str(argument) for argument in bad.arguments[2:3]] == ["prot=RWX"]
    assert ask(system, MAP, PFN << 12, 1 << 46, 6) == -12
    (full,) = system.explain()
    assert "beyond the private range" in full.rule


def test_a_hypercall_of_the_host_is_explained_with_the_hosts_own_instruction(newest):
    number = newest.generation.hypercalls["host_unshare_hyp"]
    assert newest.hvc(number, PFN).x1 == (1 << 64) - 1
    (why,) = newest.explain()
    assert (why.record.kind, why.record.name, why.errno) == ("hypercall", "host_unshare_hyp", "-EPERM")
    assert why.caller == "the host (host_hvc)"
    assert why.rule == "the page is not SHARED_OWNED for the host"


def test_a_hypercall_that_deprivilege_closed_is_told_from_one_that_does_not_exist(newest):
    newest.hvc(newest.generation.hypercalls["alloc_module_va"], 1)
    newest.hvc(0x3FF)
    closed, unknown = newest.explain(2)
    assert closed.errno == unknown.errno == "SMCCC_RET_NOT_SUPPORTED"
    assert "closed once the host is deprivileged" in closed.rule
    assert unknown.rule == "no hypercall has this id"


@pytest.mark.parametrize("el", [1, 0])
def test_an_access_of_the_host_that_ends_in_an_abort_is_explained(newest, el):
    ask(newest, DONATE, PFN, 1)
    newest.host.read((PFN << 12) + 8, el=el)
    (why,) = newest.explain()
    text = str(why)
    assert text.startswith("the host's access to 0x48000008 was refused")
    assert why.rule == "the page is not the host's to touch"
    assert ("user program" if el == 0 else "the host (host_load64)") in why.caller
    assert why.past[0].event.op == "host_donate_hyp"


def test_a_write_to_a_read_only_page_says_what_stage_2_allows(newest):
    assert ask(newest, PROTECT, PFN, 4) == 0
    newest.host.write(PFN << 12, 1)
    (why,) = newest.explain()
    assert "gives only R here" in why.rule
    assert why.past[0].event.op == "host_stage2_mod_prot"


def test_an_access_that_is_repaired_is_no_refusal(newest):
    newest.host.read(0x9_0000_0000)
    assert newest.explain() == ()


def test_refusals_go_back_with_a_snapshot(newest):
    before = newest.snapshot()
    ask(newest, SHARE, 0x7F200)
    assert len(newest.explain(None)) == 1
    newest.restore(before)
    assert newest.explain(None) == ()
    ask(newest, SHARE, PFN)
    assert newest.explain(None) == ()


def test_an_op_may_say_its_own_rule(newest):
    refusals = newest.hyp.part(Refusals)
    watched = refusals.watch("ops->sample()", lambda *_: refusals.refuse(-22, "the moon is full", 0x4800_0123))
    assert watched(1, 2) == -22
    (why,) = newest.explain()
    assert (why.rule, why.page, why.errno) == ("the moon is full", 0x4800_0000, "-EINVAL")


def test_the_command_line_explains_on_request_only(c_module, capsys):
    path = str(c_module(el2=PROBE, generation="android16-6.12"))
    call = ["--call", f"hyp_call:{SHARE},0x7f200"]
    main(["run", path, *call])
    assert "rule:" not in capsys.readouterr().out
    main(["run", path, *call, "--explain"])
    out = capsys.readouterr().out
    assert "refused:\nhost_share_hyp(pfn=0x7f200 (page 0x7f200000)) = -EPERM\n" in out
    assert "by the boot of the hypervisor" in out
    main(["run", path, *call, "--explain", "--json"])
    (refusal,) = json.loads(capsys.readouterr().out)["refusals"]
    assert (refusal["name"], refusal["errno"], refusal["owner"]) == ("host_share_hyp", "-EPERM", "HYP")
