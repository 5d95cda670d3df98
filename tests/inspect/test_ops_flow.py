"""Ops are found wherever the ops pointer travels: globals, registers, arguments, results, copies, the stack, jump tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from module_halves import LOADER
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.inspect.inspection import Inspection, inspect_module

Inspect = Callable[..., Inspection]
_CALL = "void hyp_call(pkvm_handler_regs_t *regs) { %s }\n"


@pytest.fixture
def inspected(c_module: Callable[..., Path]) -> Inspect:
    """``inspected(el2, ...)``: the inspection of a module with that EL2 half."""

    def run(el2: str, el1: str = LOADER, **options: str) -> Inspection:
        return inspect_module(ModuleFile.load(c_module(el1, el2, **options)))

    return run


def calls(found: Inspection) -> dict[str, list[str]]:
    """Op → functions that call it."""
    return {use.name: [site.place.symbol for site in use.calls] for use in found.ops.ops if use.calls}


@pytest.mark.parametrize("generation", ["14", "15", "16"])
def test_a_global_that_keeps_the_pointer_is_followed_into_every_function(inspected: Inspect, generation: str) -> None:
    found = inspected(
        """
        static const struct pkvm_module_ops *kept;
        int hyp_init(const struct pkvm_module_ops *ops) { kept = ops; return 0; }
        void hyp_call(pkvm_handler_regs_t *regs) { kept->puts("called"); kept->hyp_pa(regs); }
        """,
        generation=generation,
    )
    assert calls(found) == {"puts": ["hyp_call"], "hyp_pa": ["hyp_call"]}
    assert found.ops.kept_in == ["kept"]
    assert not found.ops.unresolved
    assert found.complete


def test_arguments_of_a_call_are_named(inspected: Inspect) -> None:
    found = inspected(
        'int hyp_init(const struct pkvm_module_ops *ops) { ops->puts("hello"); return ops->host_share_hyp(0x48000); }'
        + _CALL % ""
    )
    arguments = {use.name: use.calls[0].arguments for use in found.ops.ops}
    assert arguments == {"puts": ['"hello"'], "host_share_hyp": ["0x48000"]}


def test_the_pointer_is_followed_as_an_argument_and_as_a_result(inspected: Inspect) -> None:
    found = inspected(
        """
        static const struct pkvm_module_ops *kept;
        static noinline const struct pkvm_module_ops *get(void) { asm volatile(""); return kept; }
        static noinline int deeper(int a, const struct pkvm_module_ops *o) { return o->host_unshare_hyp(a); }
        static noinline int pass(const struct pkvm_module_ops *o, int a) { return deeper(a, o) + 1; }
        int hyp_init(const struct pkvm_module_ops *ops) { kept = ops; return pass(ops, 3); }
        """
        + _CALL % "get()->putx64(1);"
    )
    assert calls(found) == {"host_unshare_hyp": ["deeper"], "putx64": ["hyp_call"]}


def test_single_ops_that_are_copied_are_followed(inspected: Inspect) -> None:
    found = inspected(
        """
        static void (*print)(const char *);
        static struct { void *pad; void *(*va)(phys_addr_t); } mine;
        int hyp_init(const struct pkvm_module_ops *ops) { print = ops->puts; mine.va = ops->hyp_va; return 0; }
        """
        + _CALL % 'print("x"); mine.va(0);'
    )
    assert calls(found) == {"puts": ["hyp_call"], "hyp_va": ["hyp_call"]}
    assert sorted(text.partition(": ")[2] for text in found.ops.copied_to) == ["hyp_va", "puts"]


def test_a_copy_of_the_whole_table_is_followed(inspected: Inspect) -> None:
    found = inspected(
        """
        static struct pkvm_module_ops mine;
        void *memcpy(void *to, const void *from, size_t n)
        { char *t = to; const char *f = from; while (n--) { *t++ = *f++; asm volatile(""); } return to; }
        int hyp_init(const struct pkvm_module_ops *ops) { memcpy(&mine, ops, sizeof(mine)); return 0; }
        """
        + _CALL % "mine.udelay(10);"
    )
    assert calls(found) == {"udelay": ["hyp_call"]}


def test_ops_survive_calls_and_spills(inspected: Inspect) -> None:
    found = inspected(
        """
        int hyp_init(const struct pkvm_module_ops *ops)
        {
            const struct pkvm_module_ops *volatile spilled = ops;
            ops->puts("a");
            asm volatile("" ::: "x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28");
            spilled->putx64(1);
            ops->putc('c');
            return 0;
        }
        """
        + _CALL % ""
    )
    assert calls(found) == {"puts": ["hyp_init"], "putx64": ["hyp_init"], "putc": ["hyp_init"]}


def test_either_of_two_ops_counts_as_called(inspected: Inspect) -> None:
    found = inspected(
        """
        int hyp_init(const struct pkvm_module_ops *ops)
        {
            int (*one)(u64) = ((u64 *)ops)[93] ? ops->host_share_hyp : ops->host_unshare_hyp;
            return one(1);
        }
        """
        + _CALL % ""
    )
    assert calls(found) == {"host_share_hyp": ["hyp_init"], "host_unshare_hyp": ["hyp_init"]}


def test_an_op_that_is_only_tested_for_null_is_read_and_not_called(inspected: Inspect) -> None:
    found = inspected(
        "int hyp_init(const struct pkvm_module_ops *ops) { return ops->hyp_alloc ? 0 : -EINVAL; }" + _CALL % ""
    )
    (use,) = found.ops.ops
    assert (use.name, use.calls, [place.symbol for place in use.loads]) == ("hyp_alloc", [], ["hyp_init"])


def test_code_behind_a_jump_table_is_seen(inspected: Inspect) -> None:
    cases = "".join(f'case {n}: kept->putx64({n * n + 100}); asm volatile("nop"); break;' for n in range(9))
    found = inspected(
        f"""
        static const struct pkvm_module_ops *kept;
        int hyp_init(const struct pkvm_module_ops *ops) {{ kept = ops; return 0; }}
        void hyp_call(pkvm_handler_regs_t *regs)
        {{ switch (((u64 *)regs)[1]) {{ {cases} default: kept->puts("no"); }} }}
        """
    )
    assert {argument for use in found.ops.ops for site in use.calls for argument in site.arguments} >= {
        f"{n * n + 100:#x}" for n in range(9)
    }
    assert set(calls(found)) == {"putx64", "puts"}


def test_an_op_behind_an_unknown_pointer_is_told_by_offset_and_type_id(inspected: Inspect) -> None:
    found = inspected(
        """
        struct holder { u64 pad[4]; const struct pkvm_module_ops *ops; };
        int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
        """
        + _CALL % "((struct holder *)((u64 *)regs)[1])->ops->host_share_hyp(1);"
    )
    (use,) = found.ops.ops
    assert (use.name, [site.how for site in use.calls]) == ("host_share_hyp", ["type id"])


def test_a_call_through_an_unknown_pointer_of_another_type_is_reported_as_unresolved(inspected: Inspect) -> None:
    found = inspected(
        "int hyp_init(const struct pkvm_module_ops *ops) { return 0; }\n"
        + _CALL % "((u64 (*)(u16, u16, u16))((u64 *)regs)[1])(1, 2, 3);"
    )
    assert found.ops.ops == []
    assert [place.symbol for place in found.ops.unresolved] == ["hyp_call"]


def test_a_member_of_the_modules_own_struct_is_not_taken_for_an_op(inspected: Inspect) -> None:
    found = inspected(
        """
        static int local(u64 a) { return a + 1; }
        static int (*const table[])(u64) = { local, local };
        int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
        """
        + _CALL % "((u64 *)regs)[1] = table[((u64 *)regs)[1] & 1](2);"
    )
    assert found.ops.ops == []
    assert found.ops.unresolved == []


def test_a_reserve_slot_has_the_name_of_its_later_use(inspected: Inspect) -> None:
    found = inspected(
        """
        int hyp_init(const struct pkvm_module_ops *ops)
        { return ((int (*)(u64, u64))((u64 *)ops)[440 / 8])(1, 2); }
        """
        + _CALL % "",
        generation="15",
    )
    (use,) = found.ops.ops
    assert (use.name, use.offset, use.reserve) == ("host_stage2_enable_lazy_pte", 440, 2)


def test_calls_have_source_lines_where_the_module_carries_dwarf(inspected: Inspect) -> None:
    found = inspected(
        'int hyp_init(const struct pkvm_module_ops *ops)\n{\n\tops->puts("x");\n\treturn 0;\n}\n' + _CALL % ""
    )
    line = found.ops.ops[0].calls[0].place.line
    assert found.build.dwarf == (line is not None)
    assert line is None or "el2.c:" in line
