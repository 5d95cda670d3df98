"""Calls into the hypervisor nest: ops inside callbacks inside ops inside handlers, many levels deep, and everything comes back.

The module is an IOMMU driver, so every change of the host's stage-2 calls it back from the middle of an op.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from iommu_modules import DOMAINS, DOMAINS_EL1

import pkvm_emu
from pkvm_emu.hyp.page_state import Component
from pkvm_emu.system import System

LEVELS = 8
SMC = 0x8200_0077
EXTRA = """
static u64 depth, deepest, given, mapped, restored;
static void putc_cb(char c)
{
	if (c != '>')
		return;
	if (++depth > deepest)
		deepest = depth;
	if (depth < 8)
		ops->puts(">");
	else if (given)
		mapped = (u64)ops->host_donate_hyp(given, 1, false);
	depth--;
}
static bool smc_cb(struct user_pt_regs *regs)
{
	if (regs->regs[0] != 0x82000077)
		return false;
	given = regs->regs[1];
	mapped = 1;
	ops->puts(">");
	regs->regs[0] = mapped;
	regs->regs[1] = deepest;
	regs->regs[2] = depth;
	return true;
}
static int perm_cb(struct user_pt_regs *regs, u64 esr, u64 addr)
{
	restored++;
	if (ops->host_donate_hyp(given, 1, false))
		return -EPERM;
	return ops->host_stage2_mod_prot(addr >> 12, 7, 1, true);
}
int hyp_init(const struct pkvm_module_ops *o)
{
	ops = o;
	if (ops->register_serial_driver(putc_cb) || ops->register_host_smc_handler(smc_cb))
		return -EBUSY;
	return ops->register_host_perm_fault_handler(perm_cb);
}
"""
PLAIN_INIT = "int hyp_init(const struct pkvm_module_ops *o) { ops = o; return 0; }\n"
COMMANDS = """	case 8: given = x[2]; x[1] = ops->host_stage2_mod_prot(x[3], 4, 1, false); break;
	case 9: x[1] = restored; break;
	}
}
"""


@pytest.fixture(params=["15", "16"])
def system(request: pytest.FixtureRequest, c_module: Callable[..., Path]) -> System:
    head, _, tail = DOMAINS.partition(PLAIN_INIT)
    body = (head + EXTRA + tail).rstrip()
    assert body.endswith("\t}\n}")
    source = body.removesuffix("\t}\n}") + COMMANDS
    module = c_module(DOMAINS_EL1, source, name="probe", generation=request.param)
    system = pkvm_emu.boot(modules=[module])
    # From the snapshot of the host's stage-2 on, the driver follows its changes.
    assert hypercalls(system, 4) == 0
    return system


def page(system: System) -> int:
    pa = system.kernel.pages.alloc_pages(0, zero=True)
    assert pa is not None
    return pa


def hypercalls(system: System, *args: int) -> int:
    return system.call("hyp_call", *args).x1


def test_a_donation_eight_calls_deep_inside_an_smc_handler_is_made_and_all_of_them_return(system: System) -> None:
    pa = page(system)
    hypercalls(system, 1)
    result = system.smc(SMC, pa >> 12)
    assert result[:3] == (0, LEVELS, 0)
    assert system.pages.at(pa).owner is Component.HYP
    assert hypercalls(system, 1) >= 8, "the driver heard of the donation in the middle of it"
    assert system.pages.check() == []
    assert system.smc(SMC, page(system) >> 12)[:3] == (0, LEVELS, 0)


def test_a_permission_fault_handler_may_donate_another_page_and_the_access_is_tried_again(system: System) -> None:
    target, other = page(system), page(system)
    assert hypercalls(system, 8, other >> 12, target >> 12) == 0
    access = system.host.write(target, 0x1234)
    assert access.ok, access
    assert system.host.read(target).value == 0x1234
    assert hypercalls(system, 9) == 1
    assert system.pages.at(other).owner is Component.HYP
    assert not system.host.read(other).ok
    assert system.pages.check() == []


def test_a_snapshot_taken_after_nested_calls_comes_back_whole(system: System) -> None:
    saved, before = system.snapshot(), system.machine.digest()
    system.smc(SMC, page(system) >> 12)
    system.restore(saved)
    assert system.machine.digest() == before
