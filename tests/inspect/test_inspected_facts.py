"""What a module is, registers, touches and needs is read from its binary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from module_halves import ADDER, LOADER
from pkvm_emu.build.builder import build_module
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.inspect.inspection import Inspection, inspect_module

MakeModule = Callable[..., Path]
_EL2_TAIL = """
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs) { body(); }
"""


def inspected(path: Path, **options: object) -> Inspection:
    return inspect_module(ModuleFile.load(path), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("generation", "name", "kcfi", "slot"),
    [
        ("14", "android14-6.1", None, 0x240 + 80),
        ("15", "android15-6.6", "plain", 0x470),
        ("16", "android16-6.12", "normalised", 0x498),
    ],
)
def test_identity_of_the_sample(
    pkvm_driver: Callable[[str], Path], generation: str, name: str, kcfi: str | None, slot: int
) -> None:
    found = inspected(pkvm_driver(generation))
    assert (found.identity.name, found.identity.generation, found.has_el2) == ("pkvm_driver", name, True)
    assert "vermagic" in found.identity.generation_reason
    assert found.build.kcfi_el2 == kcfi
    assert (found.struct_module.layout, found.entry_points.init_slot) == ("stock", slot)
    assert [use.function for use in found.ops.hypercalls] == ["pkvm_driver_hyp_hvc"]
    assert found.entry_points.el2_init == ["pkvm_driver_hyp_init"]
    assert {row.status for row in found.imports} <= {"served", "variable"}


def test_the_init_function_is_found_by_its_type_id_when_the_loader_is_not_called(c_module: MakeModule) -> None:
    el1 = """
    int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
    static int __init probe_init(void) { return (unsigned long)__kvm_nvhe_hyp_init & 1; }
    module_init(probe_init);
    """
    found = inspected(c_module(el1, ADDER))
    assert found.entry_points.el2_init == ["hyp_init"]
    assert "kCFI" in found.entry_points.how
    assert found.struct_module.arch_hyp_offset is None


def test_a_module_without_el2_half_says_so(c_module: MakeModule) -> None:
    found = inspected(c_module("static int __init one(void) { return 0; }\nmodule_init(one);\n", None))
    assert not found.has_el2
    assert found.entry_points.how == "no EL2 code"
    assert all(row.el == 1 for row in found.sections)


def test_hypercalls_in_a_loop_over_a_table_are_found(c_module: MakeModule) -> None:
    el1 = """
    int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
    void __kvm_nvhe_hyp_call(pkvm_handler_regs_t *regs);
    void __kvm_nvhe_other(pkvm_handler_regs_t *regs);
    static void (*const table[])(pkvm_handler_regs_t *) = { __kvm_nvhe_hyp_call, __kvm_nvhe_other };
    static unsigned long token;
    static int __init probe_init(void)
    {
        int ret = pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);
        for (int i = 0; i < 2 && !ret; i++) {
            ret = pkvm_register_el2_mod_call(table[i], token) < 0;
            asm volatile("" : "+r"(i));
        }
        return ret;
    }
    module_init(probe_init);
    """
    found = inspected(c_module(el1, ADDER + "void other(pkvm_handler_regs_t *regs) {}\n"))
    assert {row.function for row in found.ops.hypercalls} == {"hyp_call", "other"}


def test_handlers_are_named_by_the_op_that_registers_them(c_module: MakeModule) -> None:
    el2 = """
    static bool smc(struct user_pt_regs *regs) { return false; }
    static void out(char c) {}
    static bool unmask(void) { return true; }
    static void mask(void) {}
    int hyp_init(const struct pkvm_module_ops *ops)
    {
        ops->register_serial_driver(out);
        ops->register_unmask_serror(unmask, mask);
        return ops->register_host_smc_handler(smc);
    }
    void hyp_call(pkvm_handler_regs_t *regs) {}
    """
    found = inspected(c_module(LOADER, el2))
    assert {(row.by, row.function) for row in found.ops.handlers} == {
        ("register_serial_driver", "out"),
        ("register_unmask_serror", "unmask"),
        ("register_unmask_serror", "mask"),
        ("register_host_smc_handler", "smc"),
    }


def test_smcs_have_their_function_ids(c_module: MakeModule) -> None:
    el2 = (
        """
        static void body(void)
        {
            register u64 id asm("x0") = 0xc2000834;
            asm volatile("smc #0" : "+r"(id) :: "memory");
        }
        """
        + _EL2_TAIL
    )
    (call,) = [call for call in inspected(c_module(LOADER, el2)).hardware.calls if call.conduit == "smc"]
    assert (call.el, call.ids, call.name, call.by) == (2, [0xC2000834], "sip 0x834", "smc #0")


def test_an_smc_wrapper_has_the_ids_of_all_its_callers(c_module: MakeModule) -> None:
    el2 = (
        """
        static noinline void wrapper(u64 function)
        { register u64 id asm("x0") = function; asm volatile("smc #0" : "+r"(id) :: "memory"); }
        static void body(void) { wrapper(0x84000000); wrapper(0xc2000001); }
        """
        + _EL2_TAIL
    )
    (call,) = [call for call in inspected(c_module(LOADER, el2)).hardware.calls if call.conduit == "smc"]
    assert call.ids == [0x84000000, 0xC2000001]
    assert call.name == "PSCI_VERSION | sip 0x1"


def test_system_registers_and_maintenance_at_el2_are_listed(c_module: MakeModule) -> None:
    el2 = (
        """
        static void body(void)
        {
            u64 value;
            asm volatile("mrs %0, hpfar_el2\\n msr elr_el2, %0\\n tlbi alle1is\\n dc civac, %0\\n at s1e1r, %0" : "=r"(value));
        }
        """
        + _EL2_TAIL
    )
    hardware = inspected(c_module(LOADER, el2)).hardware
    assert {(row.name, bool(row.reads), bool(row.writes)) for row in hardware.registers} == {
        ("HPFAR_EL2", True, False),
        ("ELR_EL2", False, True),
    }
    assert [row.operation for row in hardware.maintenance] == ["at s1e1r", "dc civac", "tlbi alle1is"]


def test_names_in_the_device_tree_are_collected(c_module: MakeModule) -> None:
    el1 = (
        LOADER
        + """
        struct device_node; struct property;
        struct device_node *of_find_compatible_node(struct device_node *from, const char *type, const char *compat);
        const void *of_get_property(const struct device_node *np, const char *name, int *lenp);
        struct table { char name[32]; char type[32]; char compatible[128]; const void *data; };
        static const struct table matches[] = { { .compatible = "acme,guard-v1" }, { .compatible = "acme,guard-v2" }, {} };
        const void *volatile sink;
        void look(void);
        void look(void)
        {
            sink = matches;
            sink = of_get_property(of_find_compatible_node(NULL, NULL, "acme,carveout"), "acme,size", NULL);
        }
        MODULE_ALIAS("of:N*T*Cacme,aliasC*");
        """
    )
    found = inspected(c_module(el1, ADDER))
    names = {(use.kind, use.name) for use in found.hardware.tree}
    assert names == {
        ("compatible", "acme,guard-v1"),
        ("compatible", "acme,guard-v2"),
        ("compatible", "acme,carveout"),
        ("compatible", "acme,alias"),
        ("property", "acme,size"),
    }


def test_constant_mappings_have_their_address(c_module: MakeModule) -> None:
    el2 = """
    static unsigned long va;
    int hyp_init(const struct pkvm_module_ops *ops) { return ops->create_private_mapping(0x9000000, 0x1000, 14, &va); }
    void hyp_call(pkvm_handler_regs_t *regs) {}
    """
    (row,) = inspected(c_module(LOADER, el2)).hardware.mappings
    assert (row.by, row.address, row.size) == ("create_private_mapping", 0x9000000, 0x1000)


def test_symbols_are_sorted_into_served_and_not(c_module: MakeModule) -> None:
    el1 = (
        LOADER
        + "void vendor_hook_that_nobody_has(void);\nvoid use(void);\nvoid use(void) { vendor_hook_that_nobody_has(); }\n"
    )
    status = {row.name: row.status for row in inspected(c_module(el1, ADDER)).imports}
    assert status["vendor_hook_that_nobody_has"] == "stub"
    assert status["__pkvm_load_el2_module"] == "served"


def test_a_symbol_that_another_given_module_exports_is_given_by_it(c_module: MakeModule) -> None:
    exporter = c_module(
        LOADER + "int vendor_api(int a);\nint vendor_api(int a) { return a; }\nEXPORT_SYMBOL(vendor_api);\n",
        ADDER,
        name="giver",
    )
    el1 = LOADER + "int vendor_api(int a);\nint use(void);\nint use(void) { return vendor_api(1); }\n"
    taker = c_module(el1, ADDER, name="taker", symbols=(exporter,))
    others = [ModuleFile.load(exporter)]
    (row,) = [row for row in inspected(taker, others=others).imports if row.name == "vendor_api"]
    assert (row.status, row.given_by) == ("module", "giver")
    assert [row.name for row in inspected(exporter).exports] == ["vendor_api"]


def test_declared_trace_events_are_listed(tmp_path: Path, pkvm_driver: Callable[[str], Path]) -> None:
    tree = Path(__file__).parents[1] / "conformance" / "modules" / "pkvm_driver"
    tracing = inspected(build_module(tree, tmp_path / "driver.ko", "16").path).tracing
    (event,) = tracing.events
    assert event.name == "pkvm_driver_event"
    assert event.print_fmt
    assert [field.name for field in event.fields]
    assert tracing.printk_formats
    assert inspected(pkvm_driver("16")).tracing.events == []
