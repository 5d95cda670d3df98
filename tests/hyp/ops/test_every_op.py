"""Each op, called at EL2 by a module and from Python: the same answer, on every generation that has it.

The calls here are the plain good ones (and the refusals that every generation shares); what ops do in depth stands in the files
beside this one, whose text the last test looks through for the ops that are missing here.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EBUSY, EINVAL, EPERM
from pathlib import Path

import pytest
from ops_caller import EL2, Caller, start

from pkvm_emu.abi.generation import GENERATIONS, generation
from pkvm_emu.hyp import layout
from pkvm_emu.hyp.errors import HypFault
from pkvm_emu.hyp.op_table import FIRMWARE_OPS
from pkvm_emu.hyp.page_state import Component
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.hyp.registry import OPS
from pkvm_emu.machine.calling import bind
from pkvm_emu.machine.profile import MachineProfile

NAMES = [gen.name for gen in GENERATIONS]
U64 = (1 << 64) - 1
R, RW, RWX = 4, 6, 7
WORD = 0x1122_3344_5566_7788
CALLBACKS = """
static void putc_cb(char c) { note(c, 0, 0, 0); }
#if PKVM_EMU_ANDROID > 14
static bool unmask_cb(void) { return false; }
static void mask_cb(void) { }
#else
#define unmask_cb 0
#define mask_cb 0
#endif
int hyp_init("""
SOURCE = EL2.replace("int hyp_init(", CALLBACKS.lstrip("\n"), 1).replace(
    "\tcase 4:", "\tcase 5: x[1] = (u64)putc_cb; x[2] = (u64)unmask_cb; x[3] = (u64)mask_cb; break;\n\tcase 4:", 1
)

#: What a case says: the answer, and what has to hold afterwards.
Case = Callable[["Ops"], None]
CASES: dict[str, tuple[Case, tuple[str, ...]]] = {}


class Ops:
    """Calls ops at EL2 or from Python, as the test wants them."""

    def __init__(self, caller: Caller, from_python: bool) -> None:
        self.at_el2 = caller
        self.hyp = caller.hyp
        self.ram = caller.system.machine.ram
        self.ownership = caller.hyp.ownership
        self._from_python = from_python
        number = next(iter(caller.system.modules["probe"].hypercalls.values()))
        self.putc, self.unmask, self.mask = caller.system.kernel.hvc(0xC600_0000 | number, 5)[1:4]

    def __call__(self, name: str, *args: int) -> int:
        if not self._from_python or name in FIRMWARE_OPS:
            return self.at_el2.op(name, *args)
        count, call = bind(OPS[name].function, self.hyp)
        result = call(*[a & U64 for a in (*args, *[0] * 8)][:count])
        return 0 if result is None else int(result) & U64

    def has(self, name: str) -> bool:
        return name in self.hyp.generation.ops.by_name

    def page(self) -> int:
        pa = self.at_el2.page()
        self.ram.write_u64(pa, WORD)
        return pa


def case(name: str, *also: str) -> Callable[[Case], Case]:
    """A case of op ``name``; it calls the ops in ``also`` too, where the generation has them."""

    def register(function: Case) -> Case:
        CASES[name] = (function, also)
        return function

    return register


def errno(value: int) -> int:
    return -value & U64


@case("create_private_mapping")
def _private(ops: Ops) -> None:
    pa = ops.page()
    assert ops("create_private_mapping", pa + 8, 16, RW, ops.at_el2.buffer) == 0
    va = ops.at_el2.load(ops.at_el2.buffer)
    assert va & 0xFFF == 8
    ops.ram.write_u64(pa + 8, WORD)
    assert ops.at_el2.load(va) == WORD
    assert ops("create_private_mapping", pa, 16, RWX, ops.at_el2.buffer) == errno(EINVAL)


@case("alloc_module_va", "map_module_page")
def _module_page(ops: Ops) -> None:
    pa = ops.page()
    va = ops("alloc_module_va", 2)
    assert ops("alloc_module_va", 1) == va + 0x2000
    assert ops("map_module_page", pa >> 12, va, RW, 0) == 0
    assert ops.ownership.owner_of(pa) is Component.HYP
    assert ops.at_el2.load(va) == WORD
    assert ops("map_module_page", pa >> 12, va + 0x1000, R, 0) == errno(EPERM)
    assert ops("map_module_page", pa >> 12, va + 0x1000, R, 1) == 0
    assert ops.at_el2.load(va + 0x1000) == WORD


@case("register_serial_driver", "puts", "putx64", "putc")
def _serial(ops: Ops) -> None:
    ops("puts", ops.at_el2.buffer)
    assert ops("register_serial_driver", ops.putc) == 0
    assert ops("register_serial_driver", ops.putc) == errno(EBUSY)
    ops.at_el2.store(ops.at_el2.buffer, int.from_bytes(b"pkvm", "little"))
    ops("puts", ops.at_el2.buffer)
    ops("putx64", 0xABC0)
    text = "pkvm\n\r" + "0x000000000000abc0\n\r"
    if ops.has("putc"):
        ops("putc", ord("!"))
        text += "!"
    assert "".join(chr(note[0]) for note in ops.at_el2.notes()) == text


@case("fixmap_map", "fixmap_unmap")
def _fixmap(ops: Ops) -> None:
    pa = ops.page()
    va = ops("fixmap_map", pa)
    assert ops.at_el2.load(va) == WORD
    ops("fixmap_unmap")
    assert ops.hyp.to_pa(va) is None


@case("linear_map_early", "linear_unmap_early")
def _linear(ops: Ops) -> None:
    pa = ops.page()
    assert ops("linear_map_early", pa + 8, 4096, RW) == 0
    va = ops("linear_map_early", pa, 4096, RW)
    assert va == ops("hyp_va", pa)
    assert ops.at_el2.load(va) == WORD
    ops("linear_unmap_early", va, 4096)
    assert ops.hyp.to_pa(va) is None


@case("flush_dcache_to_poc")
def _flush(ops: Ops) -> None:
    ops.at_el2.store(ops.at_el2.buffer, WORD)
    ops("flush_dcache_to_poc", ops.at_el2.buffer, 128)
    assert ops.at_el2.load(ops.at_el2.buffer) == WORD


@case("update_hcr_el2")
def _hcr(ops: Ops) -> None:
    before = ops.hyp.hcr[0]
    ops("update_hcr_el2", 1 << 21, 0)
    assert ops.hyp.hcr[0] == before | 1 << 21
    ops("update_hcr_el2", 0, 1 << 21)
    assert ops.hyp.hcr[0] == before


@case("update_hfgwtr_el2")
def _hfgwtr(ops: Ops) -> None:
    ops("update_hfgwtr_el2", 1, 0)
    assert ops.hyp.hfgwtr[0] & 1


def _slots(name: str, label: str, attribute: str) -> None:
    @case(name)
    def _chain(ops: Ops) -> None:
        free = getattr(ops.hyp.generation, attribute)
        assert [ops(name, ops.at_el2.function) for _ in range(free + 1)] == [0] * free + [errno(EBUSY)]
        assert ops.hyp.read_word(label) == free


_slots("register_host_smc_handler", "smc_count", "smc_handler_slots")
_slots("register_host_perm_fault_handler", "perm_count", "perm_fault_handler_slots")


def _single(name: str, label: str) -> None:
    @case(name)
    def _slot(ops: Ops) -> None:
        assert [ops(name, ops.at_el2.function) for _ in range(2)] == [0, errno(EBUSY)]
        assert ops.hyp.read_word(label) == ops.at_el2.function


_single("register_default_trap_handler", "default_trap_fn")
_single("register_illegal_abt_notifier", "abort_notifier_fn")
_single("register_hyp_panic_notifier", "panic_notifier_fn")
_single("register_psci_notifier", "psci_notifier_fn")


@case("register_unmask_serror")
def _serror(ops: Ops) -> None:
    assert ops("register_unmask_serror", 0, ops.mask) == errno(EINVAL)
    assert ops("register_unmask_serror", ops.unmask, 0) == errno(EINVAL)
    assert ops("register_unmask_serror", ops.unmask, ops.mask) == 0
    assert ops("register_unmask_serror", ops.unmask, ops.mask) == errno(EBUSY)


@case("host_stage2_mod_prot", "host_stage2_get_leaf", "host_stage2_mod_prot_range")
def _permissions(ops: Ops) -> None:
    pa, buffer = ops.page(), ops.at_el2.buffer
    assert ops("host_stage2_mod_prot", pa >> 12, R, 1, 0) == 0
    ops.at_el2.store(buffer + 8, U64)
    assert ops("host_stage2_get_leaf", pa, buffer, buffer + 8) == 0
    assert ops.at_el2.load(buffer) & 0xC0 == 0x40
    size = ops.hyp.generation.leaf_level_bytes
    assert ops.at_el2.load(buffer + 8) == U64 & ~((1 << 8 * size) - 1) | 3
    assert ops("host_stage2_mod_prot", pa >> 12, 1 << 7, 1, 0) == errno(EINVAL)
    assert ops("host_stage2_mod_prot", pa >> 12, RWX, 1, 0) == 0
    if ops.has("host_stage2_mod_prot_range"):
        assert ops("host_stage2_mod_prot_range", pa >> 12, R, 1) == 0
        assert ops.ownership.host_stage2_get_leaf(pa).descriptor & 0xC0 == 0x40


@case("host_donate_hyp", "hyp_donate_host")
def _donate(ops: Ops) -> None:
    pa = ops.page()
    assert ops("host_donate_hyp", pa >> 12, 1, 0) == 0
    assert ops("host_donate_hyp", pa >> 12, 1, 0) == errno(EPERM)
    assert ops.at_el2.load(ops("hyp_va", pa)) == WORD
    assert ops("hyp_donate_host", pa >> 12, 1) == 0
    assert ops("hyp_donate_host", pa >> 12, 1) == errno(EPERM)


@case("host_donate_hyp_prot")
def _donate_prot(ops: Ops) -> None:
    pa = ops.page()
    assert ops("host_donate_hyp_prot", pa >> 12, 1, 0, R) == 0
    assert ops.at_el2.load(ops("hyp_va", pa)) == WORD
    assert ops("hyp_donate_host", pa >> 12, 1) == errno(EPERM)


@case("host_donate_sglist_hyp")
def _sglist(ops: Ops) -> None:
    pa = ops.page()
    ops.at_el2.store(ops.at_el2.buffer, pa >> 12)
    assert ops("host_donate_sglist_hyp", ops.at_el2.buffer, 1) == 0
    assert ops.ownership.owner_of(pa) is Component.HYP


@case("host_share_hyp", "host_unshare_hyp", "pin_shared_mem", "unpin_shared_mem")
def _share(ops: Ops) -> None:
    pa = ops.page()
    va = ops("hyp_va", pa)
    assert ops("pin_shared_mem", va, va + 8) == errno(EPERM)
    assert ops("host_share_hyp", pa >> 12) == 0
    assert ops("host_share_hyp", pa >> 12) == errno(EPERM)
    assert ops.at_el2.load(va) == WORD
    assert ops("pin_shared_mem", va, va + 8) == 0
    assert ops("host_unshare_hyp", pa >> 12) == ops.ownership.rules.unshare_pinned_errno & U64
    ops("unpin_shared_mem", va, va + 8)
    assert ops("host_unshare_hyp", pa >> 12) == 0


@case("host_stage2_enable_lazy_pte", "host_stage2_disable_lazy_pte")
def _lazy(ops: Ops) -> None:
    pa = ops.page()
    assert ops("host_stage2_enable_lazy_pte", pa >> 12, 1) == 0
    assert ops.ownership.host_stage2_get_leaf(pa).descriptor == 0
    assert ops("host_stage2_disable_lazy_pte", pa >> 12, 1) == 0
    assert ops.ownership.host_stage2_get_leaf(pa).valid == ops.ownership.rules.lazy_disable_maps


@case("memset", "memcpy")
def _bytes(ops: Ops) -> None:
    buffer = ops.at_el2.buffer
    assert ops("memset", buffer + 3, 0x1A5, 6) == buffer + 3
    assert ops.at_el2.load(buffer) == 0xA5A5_A5A5_A500_0000
    assert ops.at_el2.load(buffer + 8) == 0xA5
    assert ops("memcpy", buffer + 17, buffer, 9) == buffer + 17
    assert ops.at_el2.load(buffer + 16) == 0xA5A5_A5A5_0000_0000
    assert ops.at_el2.load(buffer + 24) == 0xA5A5
    assert ops("memcpy", buffer, 0, 0) == buffer


@case("hyp_pa", "hyp_va", "kern_hyp_va")
def _addresses(ops: Ops) -> None:
    pa = ops.page() + 0x28
    va = ops("hyp_va", pa)
    assert ops("hyp_pa", va) == pa
    kernel_va = ops.at_el2.system.kernel.memory.linear_va(pa)
    assert ops("kern_hyp_va", kernel_va) == va == layout.kern_hyp_va(kernel_va)
    assert ops("kern_hyp_va", va) == va


@case("tracing_reserve_entry", "tracing_commit_entry")
def _trace_entry(ops: Ops) -> None:
    assert ops("tracing_reserve_entry", 16) == 0
    with pytest.raises((HypPanic, HypFault), match="no trace buffer is loaded"):
        ops("tracing_commit_entry")


@case("hyp_smp_processor_id")
def _cpu(ops: Ops) -> None:
    assert ops("hyp_smp_processor_id") == 0


PAIRS = [(name, op) for name in NAMES for op in CASES if op in generation(name).ops.by_name]


@pytest.fixture(scope="module")
def booted(c_module) -> Callable[[str], Caller]:  # type: ignore[no-untyped-def]
    callers: dict[str, Caller] = {}

    def get(name: str) -> Caller:
        if name not in callers:
            module = c_module(el2=SOURCE, generation=name)
            callers[name] = start(module, name, MachineProfile(fgt=True))
            callers[name].snapshot = callers[name].system.snapshot()  # type: ignore[attr-defined]
        callers[name].system.restore(callers[name].snapshot)  # type: ignore[attr-defined]
        return callers[name]

    return get


@pytest.mark.parametrize("from_python", [False, True], ids=["at EL2", "from Python"])
@pytest.mark.parametrize(("name", "op"), PAIRS, ids=[f"{name}-{op}" for name, op in PAIRS])
def test_the_op_answers_as_the_generation_does(booted, name: str, op: str, from_python: bool) -> None:  # type: ignore[no-untyped-def]
    function, _ = CASES[op]
    caller = booted(name)
    function(Ops(caller, from_python))
    assert caller.system.pages.check() == []


@pytest.mark.parametrize("name", NAMES)
def test_no_op_of_a_generation_is_left_out(name: str) -> None:
    here = set(CASES) | {op for _, also in CASES.values() for op in also}
    beside = "".join(
        path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path.name != Path(__file__).name
    )
    slots = [slot.name for slot in generation(name).ops.slots if slot.prototype]
    assert [op for op in slots if op not in here and f'"{op}"' not in beside] == []
