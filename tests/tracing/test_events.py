"""Events of the core and of modules: numbers, formats, flags, lines."""

from __future__ import annotations

import pytest
from trace_support import Traced

from pkvm_emu.abi.structs import HYP_EVENT_ID
from pkvm_emu.hyp.iommu import Iommu
from pkvm_emu.kernel.fs import FsError

CORE = {"15": 7, "16": 11}
VAULT_FORMAT = """\
name: vault_close
ID: {}
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;

	field:u32 slot;	offset:2;	size:4;	signed:0;
	field:int left;	offset:6;	size:4;	signed:1;

print fmt: "slot=%u left=%d", REC->slot, REC->left
"""
PRINTK_EL2 = """
#include <nvhe/trace.h>
static const struct pkvm_module_ops *o;
void *tracing_reserve_entry(unsigned long n) {{ return o->tracing_reserve_entry(n); }}
void tracing_commit_entry(void) {{ o->tracing_commit_entry(); }}
void trace___hyp_printk(u8 f, u64 a, u64 b, u64 c, u64 d) {{ o->tracing_mod_hyp_printk(f, a, b, c, d); }}
int hyp_init(const struct pkvm_module_ops *ops) {{ o = ops; return 0; }}
void hyp_call(pkvm_handler_regs_t *regs)
{{
	u64 *x = (u64 *)regs;
{}
	x[0] = 0;
}}
"""


@pytest.mark.parametrize("generation", ["15", "16"])
def test_events_of_a_module_come_behind_those_of_the_core_by_name(start, generation: str) -> None:
    traced = start(generation=generation)
    first = CORE[generation]
    assert traced.read("events/vault_close/id") == f"{first}\n"
    assert traced.read("events/vault_open/id") == f"{first + 1}\n"
    assert traced.read("events/vault_close/format") == VAULT_FORMAT.format(first)


@pytest.mark.parametrize("generation", ["15", "16"])
def test_the_line_of_a_module_event_is_written_by_the_module(start, generation: str) -> None:
    traced = start(generation=generation)
    traced.enable("vault_open", "vault_close")
    traced.on()
    printer = traced.system.modules["pkvm_events"].symbol("hyp_event_trace_vault_open")
    runs: list[int] = []
    core = traced.system.machine.core
    before = core.on_service
    core.on_service = lambda service, _: runs.append(1) if service.name == "trace_seq_printf" else None
    traced.open(0x1234)
    assert traced.texts() == ["vault_open slot=0 key=0x1234", "vault_close slot=0 left=7"]
    core.on_service = before
    assert printer is not None
    assert len(runs) == 2


def test_the_id_is_where_el1_and_el2_look_for_it(start) -> None:
    traced = start()
    module, hyp = traced.system.modules["pkvm_events"], traced.system.hyp
    for name, number in (("vault_close", 11), ("vault_open", 12)):
        row = hyp.read(module.el2_symbol(f"hyp_event_id_{name}"), HYP_EVENT_ID.size)
        assert HYP_EVENT_ID.get(row, "id") == number
        assert HYP_EVENT_ID.get(row, "data") == module.el2_symbol(f"{name}_enabled")
        record = module.symbol(f"hyp_event_{name}")
        assert traced.system.kernel.memory.read_u32(record + 64) == number


@pytest.mark.parametrize("generation", ["15", "16"])
def test_enabling_sets_the_flag_that_the_module_tests(start, generation: str) -> None:
    traced = start(generation=generation)
    module, memory = traced.system.modules["pkvm_events"], traced.system.kernel.memory
    flag, own_flag = module.el2_symbol("vault_open_enabled"), module.symbol("hyp_event_enabled_vault_open")
    states = [traced.system.hyp.read(flag, 4)]
    traced.enable("vault_open")
    states.append(traced.system.hyp.read(flag, 4))
    # The host has a flag of its own: it cannot read the one at EL2.
    assert memory.read(own_flag, 1) == b"\1"
    assert traced.read("events/vault_open/enable") == "1\n"
    traced.disable("vault_open")
    states.append(traced.system.hyp.read(flag, 4))
    assert states == [bytes(4), b"\1\0\0\0", bytes(4)]
    assert traced.read("events/vault_open/enable") == "0\n"


def test_an_event_that_is_off_costs_no_entry(start) -> None:
    traced = start()
    traced.enable("vault_close")
    traced.on()
    traced.open()
    assert traced.texts() == ["vault_close slot=0 left=7"]


def test_enabling_an_id_that_nobody_has_is_refused(start) -> None:
    traced = start()
    number = traced.system.generation.hypercalls["enable_event"]
    assert str(traced.system.hvc(number, 13, 1)).split()[1] == "x1=-EINVAL"
    assert traced.system.hvc(number, 12, 1).x1 == 0


@pytest.mark.parametrize("text", ["2\n", "x", "10\n", "on\n"])
def test_enable_takes_one_digit(start, text: str) -> None:
    with pytest.raises(FsError, match="EINVAL"):
        start().write("events/hyp_enter/enable", text)


def test_a_trap_is_bracketed_and_named(start) -> None:
    traced = start()
    traced.enable("hyp_enter", "hyp_exit", "host_hcall", "host_smc", "host_mem_abort")
    traced.on()
    traced.texts()
    traced.open()
    assert traced.texts() == ["hyp_enter  ", "host_hcall id=128 invalid=0", "hyp_exit  "]
    traced.system.hvc(129)
    traced.system.hvc(1, 0)
    assert [t for t in traced.texts() if "hcall" in t] == ["host_hcall id=129 invalid=1", "host_hcall id=1 invalid=1"]


@pytest.mark.parametrize(
    ("generation", "lines"),
    [
        ("14", ["hyp_enter  ", "host_smc id=2181038081 forwarded=1", "hyp_exit  ", "hyp_enter  ", "hyp_exit  "]),
        ("15", ["hyp_enter  ", "hyp_exit  ", "hyp_enter  ", "host_smc id=2181038081 forwarded=1", "hyp_exit  "]),
        ("16", ["hyp_enter  ", "hyp_exit  ", "hyp_enter  ", "host_smc id=2181038081 forwarded=1", "hyp_exit  "]),
    ],
)
def test_an_smc_that_goes_on_leaves_the_hypervisor_in_between(plain, generation: str, lines: list[str]) -> None:
    traced = plain(generation)
    traced.enable("hyp_enter", "hyp_exit", "host_smc")
    traced.on()
    traced.texts()
    traced.system.smc(0x8200_0001)
    assert traced.texts() == lines
    traced.system.smc(0x8400_0000)
    assert [text for text in traced.texts() if "smc" in text] == [f"host_smc id={0x8400_0000} forwarded=0"]


def test_an_abort_of_the_host_is_traced_with_syndrome_and_address(start) -> None:
    traced = start()
    traced.enable("host_mem_abort")
    traced.on()
    page = traced.system.hyp.to_pa(traced.system.modules["pkvm_events"].el2_symbol("pkvm_ops"))
    traced.system.host.read(page)
    (line,) = traced.texts()
    assert line.startswith("host_mem_abort esr=0x9")
    assert line.endswith(f" addr={page:#x}")


def test_pages_of_protected_guests_are_counted(start) -> None:
    traced = start()
    traced.enable("psci_mem_protect")
    traced.on()
    vm = traced.system.create_vm()
    vm.donate(0x4800_0000, 0x8000_0000, 3)
    vm.destroy()
    counts = [(event.fields["count"], event.fields["was"]) for event in traced.system.trace_pipe.events()]
    assert counts[0][1] == counts[-1][0] == 0
    assert max(count for count, _ in counts) >= 3
    assert all(was == before for (_, was), (before, _) in zip(counts[1:], counts, strict=False))


def test_changes_of_the_host_stage2_are_traced_once_there_is_an_iommu_driver(plain) -> None:
    traced = plain("16")
    traced.enable("iommu_idmap", "iommu_idmap_complete")
    traced.on()
    host = traced.system.hyp.host
    for ops in (0, 0x1000):
        traced.system.hyp.part(Iommu).ops = ops
        host.tell_iommu(0x4000_0000, 0x4020_0000, 7)
        host.complete_iommu(True)
    assert traced.texts() == ["iommu_idmap from=0x40000000 to=0x40200000 prot=0x7", "iommu_idmap_complete map=1"]


# printk


def test_printk_says_what_was_printed(start) -> None:
    traced = start()
    traced.enable("__hyp_printk")
    traced.on()
    traced.open(0xABC)
    assert traced.texts() == ["__hyp_printk vault: slot 0 opened with 0xabc"]


def printing(c_module, plain, *formats: str, name: str = "probe", modules: tuple = ()) -> Traced:
    lines = "\n".join(
        f'\ttrace_hyp_printk("{fmt}");' if "%" not in fmt else f"\ttrace_hyp_printk({fmt});" for fmt in formats
    )
    module = c_module(el2=PRINTK_EL2.format(lines), name=name)
    traced = plain("16", modules=[*modules, module])
    traced.enable("__hyp_printk")
    traced.on()
    return traced


def test_strings_of_el2_cannot_be_printed_and_pointers_are_hashed(c_module, plain) -> None:
    traced = printing(c_module, plain, '"%s|", "text"', '"%p|", regs', '"%d %x|", -5, 0x1234')
    traced.system.call("hyp_call")
    texts = traced.texts()
    assert texts[0] == "__hyp_printk (efault)|"
    assert texts[1].startswith("__hyp_printk 00000000")
    assert len(texts[1]) == len("__hyp_printk ") + 17
    assert texts[2] == "__hyp_printk -5 1234|"


def test_formats_of_later_modules_count_on(c_module, plain, built) -> None:
    traced = printing(c_module, plain, "first", "second", modules=(built(),))
    traced.enable("vault_open")
    traced.open(1)
    traced.system.call("hyp_call")
    assert [text for text in traced.texts() if "printk" in text] == [
        "__hyp_printk vault: slot 0 opened with 0x1",
        "__hyp_printk first",
        "__hyp_printk second",
    ]


def test_255_formats_are_all_there_is_room_for(c_module, plain) -> None:
    many = c_module(el2=PRINTK_EL2.format("\n".join(f'\ttrace_hyp_printk("n{n}");' for n in range(200))), name="many")
    traced = printing(c_module, plain, *(f"m{n}" for n in range(56)), modules=(many,))
    assert "Too many trace_hyp_printk()!" in traced.system.dmesg
    traced.system.hvc(129)
    # They are numbered from 0, as if their module had come first.
    assert traced.texts()[:2] == ["__hyp_printk n0", "__hyp_printk n1"]


def test_an_unknown_format_and_an_unknown_event_are_named_so(start) -> None:
    traced = start()
    traced.enable("__hyp_printk")
    traced.on()
    module = traced.system.modules["pkvm_events"]
    ids = module.layout.placements[module.file.section(".hyp.event_ids").index]
    ram, memory = traced.system.machine.ram, traced.system.kernel.memory
    ram.write(memory.to_pa(ids) + 2 * HYP_EVENT_ID.size, b"\x63")
    ram.write(memory.to_pa(ids) + HYP_EVENT_ID.size, (999).to_bytes(2, "little"))
    traced.system.hyp.machine.ram.write_u32(traced.system.hyp.to_pa(module.el2_symbol("vault_open_enabled")), 1)
    traced.open()
    assert traced.texts() == ["Unknown event id 999", "__hyp_printk Unknown Format"]


@pytest.mark.parametrize(
    ("smc", "protected", "lines"),
    [
        ((0xC200_0001,), True, ["vcpu_illegal_trap esr_el2=5e000000"]),
        ((0x8400_0000,), True, ["vcpu_illegal_trap esr_el2=5e000000"]),
        ((0xC200_0001,), False, []),
    ],
    ids=["vendor", "standard", "not protected"],
)
def test_an_smc_of_a_protected_guest_that_nobody_wants_is_an_illegal_trap(plain, smc, protected: bool, lines) -> None:
    traced = plain()
    vm = traced.system.create_vm(protected=protected)
    traced.enable("vcpu_illegal_trap")
    traced.on()
    assert not vm.smc(*smc).is_supported
    assert traced.texts() == lines


def test_an_smc_of_a_guest_that_a_module_answers_is_none(c_module, plain) -> None:
    el2 = """
static bool smc(struct arm_smccc_1_2_regs *in, struct arm_smccc_1_2_regs *res, u32 handle)
{
	res->a0 = 7;
	return in->a0 == 0xc2000001;
}
int hyp_init(const struct pkvm_module_ops *ops) { return ops->register_guest_smc_handler(smc); }
void hyp_call(pkvm_handler_regs_t *regs) {}
"""
    traced = plain("16", [c_module(el2=el2, name="answers")])
    vm = traced.system.create_vm()
    traced.enable("vcpu_illegal_trap")
    traced.on()
    assert vm.smc(0xC200_0001).registers[0] == 7
    assert traced.texts() == []
    vm.smc(0xC200_0002)
    assert len(traced.texts()) == 1


def test_a_module_that_expects_events_of_its_own_is_told_where_there_are_none(built, plain) -> None:
    traced = plain("14", [built(generation="16")])
    assert "pkvm_emu: pkvm_events: 2 events, but android14-6.1 has none for modules" in traced.system.dmesg
    assert "vault_open" not in traced.system.fs.list(traced.path("events/hyp"))
