"""What the macros of the module headers leave in an object: sections, symbols, relocations and strings."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from header_snippets import A14, A14_515, A15, A16, Compile, CompileError, Generation

ABS64, PREL32 = 257, 261
MODULE = "#include <linux/module.h>\n"

EVENTS_H = """
#if !defined(SNIPPET_EVENTS_H) || defined(HYP_EVENT_MULTI_READ)
#define SNIPPET_EVENTS_H
#ifdef __KVM_NVHE_HYPERVISOR__
#include <nvhe/trace.h>
#endif
HYP_EVENT(door_opened,
	HE_PROTO(u8 door, u64 when, int delta),
	HE_STRUCT(he_field(u8, door) he_field(u64, when) he_field(int, delta)),
	HE_ASSIGN(__entry->door = door; __entry->when = when; __entry->delta = delta;),
	HE_PRINTK("door=%u when=0x%llx delta=%d", __entry->door, __entry->when, __entry->delta)
);
HYP_EVENT(door_shut, HE_PROTO(void), HE_STRUCT(), HE_ASSIGN(), HE_PRINTK(" "));
#endif
"""


DEFINE_EVENTS = "#define HYP_EVENT_FILE ../../events.h\n#include <nvhe/define_events.h>\n"


@pytest.fixture
def events_flags(tmp_path: Path) -> list[str]:
    (tmp_path / "events.h").write_text(EVENTS_H)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    return [f"-I{tmp_path / 'deep' / 'er'}"]


def strings(data: bytes) -> list[str]:
    return [part.decode() for part in data.split(b"\0") if part]


def test_module_macros_write_modinfo(compile_c: Compile) -> None:
    built = compile_c(
        MODULE + 'MODULE_LICENSE("GPL"); MODULE_AUTHOR("A"); MODULE_DESCRIPTION("D"); MODULE_VERSION("1");\n'
        'MODULE_ALIAS("of:N*"); MODULE_IMPORT_NS(SPACE);\n'
        'static int n; module_param(n, int, 0644); MODULE_PARM_DESC(n, "how many");\n'
    )
    assert strings(built.sections[".modinfo"]) == [
        *("license=GPL", "author=A", "description=D", "version=1", "alias=of:N*", "import_ns=SPACE"),
        *("parmtype=n:int", "parm=n:how many"),
    ]


def test_a_parameter_is_an_entry_of_40_bytes_with_its_pointers_relocated(compile_c: Compile) -> None:
    built = compile_c(
        MODULE
        + "static bool flag; module_param(flag, bool, 0444);\n"
        + "static int set(const char *val, const struct kernel_param *kp) { return 0; }\n"
        + "static const struct kernel_param_ops ops = { .set = set };\n"
        + "module_param_cb(knob, &ops, NULL, 0200);\n"
    )
    param = built.sections["__param"]
    assert len(param) == 80
    entries = [struct.unpack_from("<HbB", param, 40 * i + 24) for i in range(2)]
    assert entries == [(0o444, -1, 0), (0o200, -1, 0)]
    at = {offset: (kind, symbol) for offset, kind, symbol, _ in built.relocations("__param")}
    assert at[8] == (ABS64, "__this_module")
    assert at[16] == (ABS64, "param_ops_bool")
    assert {0, 32, 40, 48, 56} < at.keys()
    assert 72 not in at  # the callback's argument is NULL
    assert built.undefined == {"__this_module", "param_ops_bool"}


def test_world_writable_nonsense_in_a_mode_is_refused(compile_c: Compile) -> None:
    with pytest.raises(CompileError, match="permissions of a module parameter"):
        compile_c(MODULE + "static int n; module_param(n, int, 644);")


def test_a_parameter_of_another_type_than_its_variable_is_refused(compile_c: Compile) -> None:
    with pytest.raises(CompileError, match="incompatible pointer types"):
        compile_c(MODULE + "static long n; module_param(n, int, 0444);")


def test_init_and_exit_are_aliases_that_the_loader_looks_for(compile_c: Compile) -> None:
    built = compile_c(
        MODULE + "static int __init up(void) { return -ENODEV; } module_init(up);\n"
        "static void __exit down(void) { } module_exit(down);\n"
    )
    assert built.section_of("init_module") == ".init.text"
    assert built.section_of("cleanup_module") == ".exit.text"
    assert {built.defined["init_module"], built.defined["cleanup_module"]} == {0}


@pytest.mark.parametrize(("macro", "kind"), [("EXPORT_SYMBOL", ""), ("EXPORT_SYMBOL_GPL", "_gpl")])
def test_an_export_is_three_self_relative_offsets(compile_c: Compile, macro: str, kind: str) -> None:
    built = compile_c(f"{MODULE}u64 __kvm_nvhe_helper(u64 a); {macro}(__kvm_nvhe_helper);\n")
    section = f"___ksymtab{kind}+__kvm_nvhe_helper"
    assert built.sections[section] == bytes(12)
    found = built.relocations(section)
    assert [(offset, kind) for offset, kind, _, _ in found] == [(0, PREL32), (4, PREL32), (8, PREL32)]
    assert found[0][2] == "__kvm_nvhe_helper"
    text = built.sections["__ksymtab_strings"]
    name, space = (text[built.defined.get(symbol, 0) + addend :] for _, _, symbol, addend in found[1:])
    assert name.startswith(b"__kvm_nvhe_helper\0")
    assert space.startswith(b"\0")
    assert "__kvm_nvhe_helper" in built.undefined


def test_nothing_is_exported_from_el2(compile_c: Compile) -> None:
    built = compile_c(f"{MODULE}u64 helper(u64 a) {{ return a; }} EXPORT_SYMBOL(helper);\n", level=2)
    assert not [name for name in built.sections if "ksymtab" in name]


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize(
    ("statement", "flags"), [("BUG();", 0), ("WARN_ON(x);", 0x901), ("WARN_ON_ONCE(x);", 0x903)], ids=str
)
def test_bug_and_warn_are_brk_0x800_with_a_table_entry(
    compile_c: Compile, level: int, statement: str, flags: int
) -> None:
    built = compile_c(f"#include <linux/bug.h>\n#line 77\nvoid f(int x) {{ {statement} }}\n", level=level)
    words = struct.unpack(f"<{len(built.sections['.text']) // 4}I", built.sections[".text"])
    brk = words.index(0xD4210000)  # brk #0x800
    line, flag_bits = struct.unpack_from("<HH", built.sections["__bug_table"], 8)
    assert len(built.sections["__bug_table"]) == 12
    assert (line, flag_bits) == (77, flags)
    where, name = built.relocations("__bug_table")
    assert where[:2] == (0, PREL32)
    assert name[:2] == (4, PREL32)
    target = built.defined.get(where[2], 0) + where[3]
    assert target == 4 * brk
    assert built.sections[".rodata.str"].endswith(b"snippet.c\0")


def test_levels_are_a_start_of_header_byte_and_a_digit(compile_c: Compile) -> None:
    built = compile_c(
        '#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt\n#include <linux/printk.h>\n'
        'void f(void) { pr_err("e%d\\n", 1); pr_warn("w\\n"); pr_info("i\\n"); pr_debug("d\\n"); printk("p\\n"); }\n'
    )
    assert set(strings(built.sections[".rodata.str1.1"])) == {
        "\x013snippet: e%d\n",
        "\x014snippet: w\n",
        "\x016snippet: i\n",
        "p\n",
    }
    assert built.undefined == {"_printk"}


@pytest.mark.parametrize(("generation", "entry"), [(A14_515, 8), (A14, 12), (A15, 12), (A16, 12)], ids=str)
@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_a_no_fault_store_has_a_fixup(compile_c: Compile, generation: Generation, entry: int, width: int) -> None:
    built = compile_c(
        "#include <linux/uaccess.h>\n"
        f"int put(u{width} *d, u{width} *s)\n"
        f"{{ __put_kernel_nofault(d, s, u{width}, bad); return 0; bad: return -EFAULT; }}\n",
        generation,
    )
    store = {8: 0x39000000, 16: 0x79000000, 32: 0xB9000000, 64: 0xF9000000}[width]
    words = struct.unpack(f"<{len(built.sections['.text']) // 4}I", built.sections[".text"])
    [where] = [4 * i for i, word in enumerate(words) if word & 0xFFFFFC00 == store]
    table = built.sections["__ex_table"]
    assert len(table) == entry
    fault, fixup = built.relocations("__ex_table")
    assert (fault[0], fault[1], fixup[0], fixup[1]) == (0, PREL32, 4, PREL32)
    assert built.defined.get(fault[2], 0) + fault[3] == where
    if entry == 12:
        kind, data = struct.unpack_from("<HH", table, 8)
        assert kind == 3  # -EFAULT into register 9, none is zeroed
        assert (data & 31, data >> 5) == (9, 31)


def test_an_event_at_el2_is_an_id_and_a_flag(compile_c: Compile, events_flags: list[str]) -> None:
    source = DEFINE_EVENTS + "void f(void) { trace_door_shut(); }\n"
    for generation in (A15, A16):
        built = compile_c(source, generation, level=2, flags=events_flags)
        for event in ("door_opened", "door_shut"):
            section = f".hyp.event_ids.{event}"
            assert built.sections[section] == bytes(16)
            [(offset, kind, _, _)] = built.relocations(section)
            assert (offset, kind) == (8, ABS64)
            assert built.section_of(f"hyp_event_id_{event}") == section
            assert built.section_of(f"{event}_enabled") == ".data..ro_after_init"
        assert built.undefined == {"tracing_reserve_entry", "tracing_commit_entry"}


def test_the_order_of_the_event_headers_does_not_matter(compile_c: Compile, events_flags: list[str]) -> None:
    use = "void f(void) { trace_door_opened(1, 2, -3); }\n"
    first = compile_c('#include "../../events.h"\n' + DEFINE_EVENTS + use, level=2, flags=events_flags)
    last = compile_c(
        DEFINE_EVENTS + '#include "../../events.h"\n#include <nvhe/trace.h>\n' + use, level=2, flags=events_flags
    )
    assert first.sections[".text"] == last.sections[".text"]


def test_an_entry_has_no_padding_and_starts_with_the_id(compile_c: Compile, events_flags: list[str]) -> None:
    compile_c(
        "#include <nvhe/trace.h>\n"
        '#include "../../events.h"\n'
        '_Static_assert(sizeof(struct trace_hyp_format_door_opened) == 2 + 1 + 8 + 4, "packed");\n'
        '_Static_assert(offsetof(struct trace_hyp_format_door_opened, when) == 3, "packed");\n'
        '_Static_assert(sizeof(struct trace_hyp_format_door_shut) == 2, "header alone");\n',
        level=2,
        flags=events_flags,
    )


def test_an_event_at_el1_is_described_in_hyp_events(compile_c: Compile, events_flags: list[str]) -> None:
    source = "#define HYP_EVENT_FILE ../../events.h\n#include <asm/kvm_define_hypevents.h>\n"
    built = compile_c(source, A16, flags=events_flags)
    event = built.sections["_hyp_events.door_opened"]
    assert len(event) == 72
    assert event[:32].rstrip(b"\0") == b"door_opened"
    at = {offset: (symbol, addend) for offset, _, symbol, addend in built.relocations("_hyp_events.door_opened")}
    assert at.keys() == {32, 40, 48, 56}
    # The flag at EL2 cannot be read by the host; this one is its own.
    assert at[32][0] == ".bss"
    data = built.sections[".data"]
    print_fmt = data[built.defined["hyp_event_print_fmt_door_opened"] :].split(b"\0")[0].decode()
    assert print_fmt == '"door=%u when=0x%llx delta=%d", REC->door, REC->when, REC->delta'
    assert {"trace_seq_puts", "trace_seq_putc", "trace_seq_printf"} <= built.undefined

    start = built.defined["hyp_event_fields_door_opened"]
    fields = [struct.unpack_from("<iiI", data, start + 40 * i + 16) for i in range(4)]
    assert fields == [(1, 1, 0), (8, 8, 0), (4, 4, 1), (0, 0, 0)]  # size, alignment, signed; the last ends the list


def test_hyp_printk_stores_records_of_128_bytes_and_an_offset_each(compile_c: Compile) -> None:
    built = compile_c(
        "#include <nvhe/trace.h>\n"
        'void f(u64 a) { trace_hyp_printk("none"); trace_hyp_printk("one %d", (int)a);\n'
        'trace_hyp_printk("four %llu %llx %d %p", a, a, 3, (void *)a); }\n',
        A16,
        level=2,
    )
    formats = built.sections[".hyp.printk_fmts"]
    assert [formats[i : i + 128].rstrip(b"\0") for i in range(0, len(formats), 128)] == [
        *(b"none", b"one %d", b"four %llu %llx %d %p"),
    ]
    assert built.sections[".hyp.printk_fmt_offset"] == bytes(3)
    assert built.undefined == {"trace___hyp_printk", "__hyp_printk_fmts_start"}


@pytest.mark.parametrize(("generation", "needs"), [(A14, "android15"), (A15, "android16")], ids=str)
def test_hyp_printk_where_it_does_not_exist_is_explained(
    compile_c: Compile, generation: Generation, needs: str
) -> None:
    with pytest.raises(CompileError, match=f"needs {needs} or later"):
        compile_c('#include <nvhe/trace.h>\nvoid f(void) { trace_hyp_printk("x"); }', generation, level=2)


def test_a_hyp_printk_format_that_does_not_fit_is_refused(compile_c: Compile) -> None:
    source = '#include <nvhe/trace.h>\nvoid f(void) {{ trace_hyp_printk("{}"); }}'
    compile_c(source.format("x" * 126), level=2)
    with pytest.raises(CompileError, match="format is too long"):
        compile_c(source.format("x" * 128), level=2)


def test_events_on_android14_are_refused(compile_c: Compile, events_flags: list[str]) -> None:
    for level, header in ((1, "asm/kvm_define_hypevents.h"), (2, "nvhe/define_events.h")):
        with pytest.raises(CompileError, match="needs android15 or later"):
            compile_c(f"#define HYP_EVENT_FILE ../../events.h\n#include <{header}>\n", A14, level, events_flags)


@pytest.mark.parametrize(
    ("generation", "capability"), [(A14, 40), (A15, 51), (A16, 55)], ids=["android14", "android15", "android16"]
)
def test_the_protected_mode_test_is_an_alternative(compile_c: Compile, generation: Generation, capability: int) -> None:
    built = compile_c("#include <asm/virt.h>\n#include <asm/kvm_host.h>\n" + PROTECTED, generation)
    table = built.sections[".altinstructions"]
    assert len(table) == 12
    assert struct.unpack_from("<HBB", table, 8) == (capability, 4, 4)
    original, replacement = built.relocations(".altinstructions")
    text = built.sections[".text"]
    (nop,) = struct.unpack_from("<I", text, built.defined.get(original[2], 0) + original[3])
    (branch,) = struct.unpack_from("<I", text, built.defined.get(replacement[2], 0) + replacement[3])
    assert nop == 0xD503201F
    assert branch >> 26 == 0b000101


PROTECTED = "int f(void) { return is_protected_kvm_enabled() ? 5 : 6; }\n"


def test_the_protected_mode_test_is_always_true_at_el2_and_refused_on_5_15(compile_c: Compile) -> None:
    assert ".altinstructions" not in compile_c("#include <asm/kvm_host.h>\n" + PROTECTED, level=2).sections
    with pytest.raises(CompileError, match=r"needs a 6\.1, 6\.6 or 6\.12 kernel"):
        compile_c("#include <asm/kvm_host.h>\n" + PROTECTED, A14_515)


def test_list_checks_have_an_inline_fast_path_and_an_outside_slow_path(compile_c: Compile) -> None:
    source = (
        "#include <linux/list.h>\nvoid f(struct list_head *n, struct list_head *h) { list_add(n, h); list_del(n); }\n"
    )
    assert compile_c(source, A16, level=2).undefined == {
        "__list_add_valid_or_report",
        "__list_del_entry_valid_or_report",
    }
    assert compile_c(source, A14, level=2).undefined == set()


def test_atomics_need_no_library(compile_c: Compile) -> None:
    built = compile_c(
        "#include <linux/atomic.h>\n#include <linux/bitops.h>\n#include <nvhe/spinlock.h>\n"
        "hyp_spinlock_t lock;\n"
        "int f(atomic_t *v, atomic64_t *w, unsigned long *m) { hyp_spin_lock(&lock); atomic_inc(v); set_bit(3, m);\n"
        "hyp_spin_unlock(&lock);\n"
        "return atomic_cmpxchg(v, 1, 2) + (int)atomic64_add_return(1, w) + (int)xchg(m, 0UL); }\n",
        level=2,
    )
    assert built.undefined == set()


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (A14_515, {"__kmalloc", "__get_free_pages", "vmalloc", "strscpy", "__ioremap", "usleep_range"}),
        (A15, {"__kmalloc", "__get_free_pages", "vmalloc", "strscpy", "ioremap_prot", "usleep_range_state"}),
        (
            A16,
            {
                *("__kmalloc_noprof", "get_free_pages_noprof", "vmalloc_noprof", "sized_strscpy"),
                *("ioremap_prot", "usleep_range_state"),
            },
        ),
    ],
    ids=["android14-5.15", "android15-6.6", "android16-6.12"],
)
def test_kernel_functions_are_imported_by_the_name_of_the_kernel_line(
    compile_c: Compile, generation: Generation, expected: set[str]
) -> None:
    built = compile_c(
        "#include <linux/slab.h>\n#include <linux/vmalloc.h>\n#include <linux/io.h>\n#include <linux/delay.h>\n"
        "#include <linux/string.h>\n#include <linux/ktime.h>\n#include <linux/mm.h>\n"
        "void *volatile keep; u64 now; char b[9];\n"
        "void f(const char *s) { keep = kmalloc(8, GFP_KERNEL); keep = (void *)__get_free_page(GFP_KERNEL);\n"
        "keep = vmalloc(9); keep = ioremap(0x9000000, 4096);\n"
        "strscpy(b, s); strscpy(b, s, sizeof(b)); usleep_range(1, 2);\n"
        "now = ktime_get_ns(); kfree(keep); free_page(now); msleep(1); }\n",
        generation,
    )
    assert built.undefined == expected | {"ktime_get", "kfree", "free_pages", "msleep"}


def test_an_alternative_is_an_entry_with_both_lengths_and_its_capability(compile_c: Compile) -> None:
    built = compile_c(
        "#include <asm/alternative-macros.h>\n"
        'void f(void) { __asm__ volatile(ALTERNATIVE("nop\\n\\tnop", "isb\\n\\tdsb sy", 42)); }\n'
        "int g(void) { return alternative_has_cap_unlikely(7); }\n"
    )
    entries = [struct.unpack_from("<HBB", built.sections[".altinstructions"], 12 * n + 8) for n in range(2)]
    assert sorted(entries) == [(7, 4, 4), (42, 8, 8)]
    assert len(built.sections[".altinstructions"]) == 24
