"""The host as an attacker: what it reads, writes and runs, and what the kernel would say to it."""

from __future__ import annotations

import pytest

from pkvm_emu.abi.prot import PROT_R, PROT_RW
from pkvm_emu.errors import UsageError
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System, boot

WATCHER = r"""
static const struct pkvm_module_ops *o;
static u64 aborts, asked;
static void on_abort(pkvm_handler_regs_t *regs) { aborts++; }
static bool repairs;
static int allow(u64 pfn, u64 prot)
{
#if PKVM_EMU_ANDROID == 14
	return o->host_stage2_mod_prot(pfn, prot);
#else
	return o->host_stage2_mod_prot(pfn, prot, 1, false);
#endif
}
static int on_permission(pkvm_handler_regs_t *regs, u64 esr, u64 addr)
{
	asked++;
	return repairs ? allow(addr >> 12, 7) : -EPERM;
}
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;

	x[0] = 0;
	switch (x[1]) {
	case 0: x[1] = aborts; x[2] = asked; break;
	case 1:
#if PKVM_EMU_ANDROID == 14
		x[1] = o->host_donate_hyp(x[2], x[3]);
#else
		x[1] = o->host_donate_hyp(x[2], x[3], false);
#endif
		break;
	case 2: x[1] = o->hyp_donate_host(x[2], x[3]); break;
	case 3: x[1] = allow(x[2], x[3]); break;
	case 5: repairs = x[2]; break;
	case 4:
		for (int i = 2; i < 18; i++)
			x[i] = x[i] + i;
		break;
	}
}
int hyp_init(const struct pkvm_module_ops *ops)
{
	o = ops;
	ops->register_host_perm_fault_handler(on_permission);
	return ops->register_illegal_abt_notifier(on_abort);
}
"""
PAGE = 0x4800_0000
#: What ``booted`` loads: its name and its EL2 half.
MODULE = ("watcher", WATCHER)
COUNTS, DONATE, GIVE_BACK, PROTECT, ADD, REPAIR = range(6)


def counts(system: System) -> tuple[int, int]:
    """Injected aborts that the module saw, and permission faults that it was asked about."""
    result = system.call("hyp_call", COUNTS)
    return result.x1, result.x2


@pytest.mark.parametrize("el", [1, 0])
def test_the_host_uses_its_own_memory_in_every_size(system, el):
    host = system.host
    for size in (1, 2, 4, 8):
        value = 0x1122_3344_5566_7788 & (1 << 8 * size) - 1
        assert host.write(PAGE + 64 * size, value, size, el=el).ok
        assert host.read(PAGE + 64 * size, size, el=el).value == value
        assert system.machine.ram.read(PAGE + 64 * size, size) == value.to_bytes(size, "little")
    assert host.execute(PAGE, el=el).ok
    assert counts(system) == (0, 0)


@pytest.mark.parametrize("el", [1, 0])
def test_a_page_of_the_hypervisor_is_refused_for_every_kind_of_access_and_the_notifier_hears_each_once(system, el):
    assert system.call("hyp_call", DONATE, PAGE >> 12, 1).x1 == 0
    host = system.host
    accesses = [host.read(PAGE, el=el), host.write(PAGE, 5, el=el), host.execute(PAGE, el=el)]
    assert counts(system) == (3, 0)
    for access in accesses:
        assert not access.ok
        assert access.value is None
        assert access.fault.kind == "injected"
        assert access.fault.status == "translation"
        assert access.fault.level == 3
    assert [access.fault.is_fetch for access in accesses] == [False, False, True]
    if el == 1:
        text = "Unable to handle kernel access to hypervisor-protected memory at virtual address "
        assert all(access.oops == f"{text}{access.fault.far:016x}" for access in accesses)
        assert accesses[0].fault.far == system.kernel.memory.linear_va(PAGE)
        assert accesses[0].signal is None
    else:
        assert all(access.signal == ("SIGSEGV", "SEGV_ACCERR") for access in accesses)
        assert accesses[0].oops is None


def test_a_page_that_comes_back_can_be_used_again(system):
    system.call("hyp_call", DONATE, PAGE >> 12, 1)
    assert not system.host.read(PAGE).ok
    system.call("hyp_call", GIVE_BACK, PAGE >> 12, 1)
    assert system.host.write(PAGE, 7).ok
    assert system.host.read(PAGE).value == 7


def test_a_read_only_page_is_read_and_not_written_and_the_handler_is_asked_before_the_abort(system):
    assert system.call("hyp_call", PROTECT, PAGE >> 12, PROT_R).x1 == 0
    assert system.host.read(PAGE).ok
    access = system.host.write(PAGE, 1)
    assert counts(system) == (1, 1)
    assert (access.fault.kind, access.fault.status) == ("injected", "permission")
    # Observed on a device kernel, register number aside: the permission text wins over the protected-memory text.
    assert access.oops.startswith("Unable to handle kernel write to read-only memory at virtual address ")
    assert int(access.fault.esr) & ~0x1F_0000 == 0x97C0_80CF
    assert system.host.write(PAGE, 1, el=0).signal == ("SIGSEGV", "SEGV_ACCERR")


def test_what_a_permission_handler_repairs_is_no_fault(system):
    system.call("hyp_call", PROTECT, PAGE >> 12, PROT_R)
    system.call("hyp_call", REPAIR, 1)
    for el in (0, 1):
        assert system.host.write(PAGE, 7, el=el).ok
    assert system.host.read(PAGE).value == 7
    assert counts(system) == (0, 1)
    assert system.explain(None) == ()


def test_a_page_without_execute_permission_is_used_as_data_only(system):
    assert system.call("hyp_call", PROTECT, PAGE >> 12, PROT_RW).x1 == 0
    assert system.host.write(PAGE, 1).ok
    for el in (1, 0):
        access = system.host.execute(PAGE, el=el)
        assert access.fault.is_fetch
        assert access.fault.kind == "injected"


def test_the_modules_own_pages_and_the_hypervisors_are_out_of_reach(newest):
    module = newest.modules["watcher"]
    text = newest.hyp.stage1.leaf(module.token).pa
    for pa in (text, newest.kernel.hyp_reserved, newest.hyp.data_pa("hyp_vectors")):
        assert newest.host.read(pa).fault.kind == "injected"
    assert newest.host.read(va=module.token - module.hyp_delta).fault.kind == "injected"


def test_before_deprivilege_the_host_reaches_what_it_gave_away_in_silence(c_module):
    system = boot(16, [c_module(el2=WATCHER, name="watcher", generation="android16-6.12")], deprivilege=False)
    system.call("hyp_call", DONATE, PAGE >> 12, 1)
    for el in (1, 0):
        assert system.host.write(PAGE, 3 + el, el=el).ok
        assert system.host.read(PAGE, el=el).value == 3 + el
        assert system.host.execute(PAGE, el=el).ok
    assert counts(system) == (0, 0)
    system.kernel.deprivilege()
    assert not system.host.read(PAGE).ok


def test_faults_of_stage_1_are_told_from_those_of_the_hypervisor(newest):
    host = newest.host
    null, wild = host.read(va=8), host.read(va=0xFFFF_FFFD_0000_0000)
    assert null.fault.kind == wild.fault.kind == "translation"
    assert "NULL pointer dereference" in null.oops
    assert "paging request" in wild.oops
    code = newest.kernel.entry("el1_vectors")
    assert "write to read-only memory" in host.write(va=code, value=0).oops
    assert host.read(va=code, el=0).signal == ("SIGSEGV", "SEGV_MAPERR")
    assert "non-executable" in host.execute(va=newest.kernel.memory.linear_va(PAGE)).oops
    assert counts(newest) == (0, 0)


@pytest.mark.parametrize("el", [1, 0])
def test_device_registers_are_reached_through_a_mapping_of_the_moment(c_module, el):
    newest = boot(16, [c_module(el2=WATCHER, name="watcher", generation="android16-6.12")])
    seen = []
    newest.machine.engine.map_mmio(
        0x0C00_0000, 0x1000, lambda offset, size: 0x90 + offset, lambda *args: seen.append(args)
    )
    assert newest.host.read(0x0C00_0004, 4, el=el).value == 0x94
    assert newest.host.write(0x0C00_0008, 0x33, 1, el=el).ok
    assert seen == [(8, 1, 0x33)]
    assert newest.host.execute(0x0C00_0000, el=el).fault.status == "permission"


def test_an_address_with_nothing_behind_it_is_an_external_abort_and_the_host_goes_on(newest):
    for el in (1, 0):
        access = newest.host.read(0x0B00_0000, el=el)
        assert (access.fault.kind, access.fault.esr) == ("external", None)
    assert newest.host.read(0x0B00_0000).oops.startswith("Internal error: synchronous external abort")
    assert newest.host.read(PAGE).ok
    assert counts(newest) == (0, 0)


def test_no_access_leaves_a_mapping_or_a_word_behind(newest):
    system = newest
    system.machine.ram.write(PAGE, b"keep me!")
    tables = list(system.kernel.memory._table.leaves()), list(system.kernel.memory._user.leaves())
    system.call("hyp_call", DONATE, (PAGE >> 12) + 1, 1)
    for el in (1, 0):
        for pa in (PAGE, PAGE + 0x1000, 0x0900_0000):
            system.host.read(pa, el=el)
            system.host.execute(pa, el=el)
    assert (list(system.kernel.memory._table.leaves()), list(system.kernel.memory._user.leaves())) == tables
    assert system.machine.ram.read(PAGE, 8) == b"keep me!"
    assert system.pages.check() == []


def test_code_of_the_host_runs_as_it_is_again_after_an_execute_probe(newest):
    target = newest.kernel.entry("host_hvc")
    assert newest.host.execute(va=target).ok
    assert newest.hvc(0xFFFF).status == "SMCCC_RET_NOT_SUPPORTED"


def test_hvc_and_smc_carry_eighteen_registers_there_and_back(system):
    number = 0xC600_0000 | system.modules["watcher"].hypercalls["hyp_call"]
    answer = system.host.hvc(number, ADD, *range(100, 116))
    assert answer == (0, ADD, *[100 + i + i + 2 for i in range(16)])
    sent = []
    registers = (0x8300_0001, *range(1, 18))
    system.hyp.el3.serve(
        lambda given: sent.append(given) or tuple(r + 1 for r in given) if given == registers else None
    )
    assert system.host.smc(*registers) == tuple(r + 1 for r in registers)
    assert sent[-1] == registers


def test_accesses_work_without_hvhe_and_pauth(c_module):
    profile = MachineProfile.parse("nvhe,nopauth")
    system = boot(16, [c_module(el2=WATCHER, name="watcher", generation="android16-6.12")], profile=profile)
    system.call("hyp_call", DONATE, PAGE >> 12, 1)
    for el in (1, 0):
        assert system.host.read(PAGE, el=el).fault.kind == "injected"
        assert system.host.read(PAGE + 0x1000, el=el).ok


def test_restoring_a_snapshot_undoes_what_the_attacker_did():
    newest = boot(16, profile=MachineProfile(ram_size=256 << 20))
    before = newest.snapshot()
    digest = newest.machine.digest()
    newest.host.write(PAGE, 1)
    newest.host.write(PAGE, 1, el=0)
    newest.host.execute(newest.kernel.hyp_reserved)
    newest.restore(before)
    assert newest.machine.digest() == digest


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda host: host.read(), "give a physical address"),
        (lambda host: host.read(PAGE, va=PAGE), "give a physical address"),
        (lambda host: host.read(PAGE, 3), "1, 2, 4 or 8"),
        (lambda host: host.write(PAGE, 0, 16), "1, 2, 4 or 8"),
        (lambda host: host.read(PAGE, el=2), "EL1 and EL0"),
        (lambda host: host.execute(PAGE + 2), "multiples of 4"),
        (lambda host: host.read(1 << 44), "44 bits"),
        (lambda host: host.read(va=-1), "64 bits"),
        (lambda host: host.hvc(*range(19)), "x0 to x17"),
    ],
)
def test_what_no_host_can_do_is_a_usage_error(newest, call, message):
    with pytest.raises(UsageError, match=message):
        call(newest.host)
