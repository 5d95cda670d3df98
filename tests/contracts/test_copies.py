"""What the ops memcpy() and memset() access is looked at like loads and stores of the module, at the call."""

from __future__ import annotations

import pytest
from tests.module_halves import LOADER

from pkvm_emu.system import System, boot

PAGE = 0x4800_0000
#: x1: what to do; x2: a PFN of the host.
EL2 = """
static const struct pkvm_module_ops *o;
int hyp_init(const struct pkvm_module_ops *ops) { o = ops; return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs, buffer[4];
	void *shared = o->hyp_va(x[2] << 12);
	u64 *block;

	o->host_share_hyp(x[2]);
	o->pin_shared_mem(shared, shared + 4096);
	switch (x[1]) {
	case 0: /* read, then copied */
		buffer[0] = *(volatile u64 *)shared;
		o->memcpy(buffer, shared, 32);
		break;
	case 1: /* an address of EL2, in the middle of what is copied to the host */
		buffer[0] = 1; buffer[1] = (u64)o; buffer[2] = 3; buffer[3] = 4;
		o->memcpy(shared, buffer, 32);
		break;
	case 2: /* one byte too many */
		block = o->hyp_alloc(40);
		o->memset(block, 0, 41);
		o->hyp_free(block);
		break;
	case 3:
		block = o->hyp_alloc(40);
		o->hyp_free(block);
		o->memcpy(buffer, block, 8);
		break;
	case 5: /* the hypervisor's work, not the module's */
		for (int i = 0; i < 600; i++)
			o->memset(shared, 0, 4096);
		break;
	case 4: /* all of it right: the second copy is of other bytes, the block is filled to its end */
		block = o->hyp_alloc(40);
		o->memset(block, 0, 40);
		o->memcpy(buffer, shared, 16);
		o->memcpy(buffer, shared + 16, 16);
		buffer[1] = 7;
		o->memcpy(shared, buffer, 32);
		o->hyp_free(block);
		break;
	}
	o->unpin_shared_mem(shared, shared + 4096);
	o->host_unshare_hyp(x[2]);
	x[0] = 0;
	x[1] = x[2] = 0;
}
"""


@pytest.fixture(scope="module")
def module(c_module):
    return c_module(
        LOADER.replace("return ret ?", "if (!ret) __pkvm_topup_hyp_alloc(4);\n\treturn ret ?"),
        EL2,
        name="copies",
        generation="16",
    )


@pytest.mark.parametrize(
    ("what", "contract", "words"),
    [
        (0, "double-fetch", "32 bytes of the host's memory at 0x48000000 are read again"),
        (1, "hyp-address-leak", "is stored where the host reads: 0x48000008"),
        (2, "heap-out-of-bounds", "store to 41 bytes"),
        (3, "heap-use-after-free", "load of 8 bytes"),
    ],
)
def test_a_copy_breaks_contracts_at_its_call(module, what: int, contract: str, words: str) -> None:
    system = boot(modules=[module], contracts="memory")
    system.call("hyp_call", what, PAGE >> 12)
    (finding,) = found(system)
    assert (finding.contract, words in finding.message) == (contract, True), finding
    assert "hyp_call" in finding.where
    assert finding.entry == "hypercall hyp_call [copies]"


def test_copies_that_come_close_are_right(module) -> None:
    system = boot(modules=[module], contracts="memory")
    system.call("hyp_call", 4, PAGE >> 12)
    assert found(system) == []


def found(system: System) -> list:
    assert system.contracts is not None
    return system.contracts.findings


def test_what_the_hypervisor_executes_for_a_module_is_not_of_its_budget(module: object) -> None:
    system = boot(modules=[module], contracts="memory,budget=100000")
    assert system.contracts is not None
    before = system.contracts.executed
    system.call("hyp_call", 5, PAGE >> 12)
    assert system.contracts.executed - before > 200_000
    assert not [found for found in system.contracts.findings if found.contract == "instruction-budget"]
