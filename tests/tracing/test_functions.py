"""Function tracing: any module, filters by glob, nested calls, tail calls."""

from __future__ import annotations

import pytest

import pkvm_emu
from pkvm_emu.arch.insn import NOP, branch_target
from pkvm_emu.kernel.fs import FsError
from pkvm_emu.kernel.tracing.functions import matches

FILES = "/sys/kernel/tracing/hypervisor"
ON = "hyp_ftrace_filter= hyp_event=func,func_ret"
NESTED = """
static volatile u64 sink;
static noinline void leaf(u64 n) { sink = n; }
static noinline u64 middle(u64 n)
{
	leaf(n);
	if (n)
		sink += middle(n - 1);
	return sink;
}
static noinline u64 tail(u64 n) { sink = n; return middle(n); }
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	x[0] = 0;
	x[1] = tail(x[1]);
}
"""
CALLS = """\
> hyp_call
> tail
> middle
> leaf
< leaf
> middle
> leaf
< leaf
< middle
< middle
< tail
< hyp_call
"""


def calls(traced) -> str:
    """The trace, a line each: ``> name`` for a call, ``< name`` for a return."""
    out = ""
    for text in traced.texts():
        kind, name, *_ = text.split()
        out += f"{'>' if kind == 'func' else '<'} {name.removeprefix('__kvm_nvhe_')}\n"
    return out


@pytest.mark.parametrize("config", [{}, {"PKVM_FTRACE": "y"}], ids=["as it is", "PKVM_FTRACE=y"])
def test_calls_and_returns_are_traced_whatever_the_build(c_module, plain, config: dict[str, str]) -> None:
    module = c_module(el2=NESTED, name="nested", config=config)
    traced = plain("16", [module], ON)
    assert calls(traced) == "> hyp_init\n< hyp_init\n"
    traced.system.call("hyp_call", 1)
    assert calls(traced) == CALLS


def test_a_module_built_for_it_is_patched(c_module, plain) -> None:
    module = c_module(el2=NESTED, name="nested", config={"PKVM_FTRACE": "y"})
    traced = plain("16", [module], "hyp_ftrace_filter=*middle hyp_event=func")
    loaded, hyp = traced.system.modules["nested"], traced.system.hyp

    def words(name: str) -> list[int]:
        code = hyp.read(loaded.el2_symbol(name), 12)
        return [int.from_bytes(code[at : at + 4], "little") for at in (0, 4, 8)]

    mov_x9_x30, movz_x10_1 = 0xAA1E03E9, 0xD280002A
    call = words("middle")[2]
    assert words("middle") == [mov_x9_x30, movz_x10_1, call]
    trampoline = branch_target(call, loaded.el2_symbol("middle") + 8)
    assert int.from_bytes(hyp.read(trampoline + 16, 4), "little") == 0xD61F0200
    assert words("leaf") == [mov_x9_x30, movz_x10_1, NOP]
    traced.write("set_ftrace_filter", "*leaf\n")
    traced.write("set_ftrace_notrace", "*middle\n")
    assert (words("leaf")[2] == NOP, words("middle")[2] == NOP) == (False, True)
    traced.disable("func")
    assert words("leaf")[2] == NOP
    traced.enable("func_ret")
    traced.system.call("hyp_call", 0)
    assert calls(traced) == "< leaf\n"


def test_the_host_cannot_have_anything_else_patched(c_module, plain) -> None:
    module = c_module(el2=NESTED, name="nested", config={"PKVM_FTRACE": "y"})
    traced = plain("16", [module], "hyp_ftrace_filter=")
    system = traced.system
    pa = system.kernel.pages.alloc_pages(0, zero=True)
    loaded = system.modules["nested"]
    system.machine.ram.write_u64(pa, loaded.symbol("__kvm_nvhe_leaf") + 4 | 1)
    before = system.hyp.read(loaded.el2_symbol("leaf"), 64)
    number = system.generation.hypercalls["sync_ftrace"]
    assert str(system.hvc(number, system.kernel.memory.linear_va(pa))).split()[1] == "x1=-EINVAL"
    assert system.hyp.read(loaded.el2_symbol("leaf"), 64) == before
    assert not system.hyp.ownership.check_consistency()


@pytest.mark.parametrize("config", [{}, {"PKVM_FTRACE": "y"}], ids=["as it is", "PKVM_FTRACE=y"])
def test_a_module_built_for_it_runs_where_there_is_no_function_tracing(c_module, plain, config: dict[str, str]) -> None:
    traced = plain("16", [c_module(el2=NESTED, name="nested", config=config)])
    assert traced.system.call("hyp_call", 2).x0 == 0


@pytest.mark.parametrize("generation", ["14", "15", "16"])
def test_every_generation_can_be_traced(c_module, plain, generation: str) -> None:
    module = c_module(el2=NESTED, name="nested", generation=generation)
    traced = plain(generation, [module], ON)
    calls(traced)
    traced.system.call("hyp_call", 1)
    assert calls(traced) == CALLS


def test_a_line_names_the_function_and_its_caller(c_module, plain) -> None:
    traced = plain("16", [c_module(el2=NESTED, name="nested")], "hyp_ftrace_filter=*leaf hyp_event=func,func_ret")
    traced.system.call("hyp_call", 0)
    assert traced.texts() == [
        "func     __kvm_nvhe_leaf [nested] <- __kvm_nvhe_middle [nested]",
        "func_ret __kvm_nvhe_leaf [nested]",
    ]


def test_filters_add_and_take_away(c_module, plain) -> None:
    traced = plain("16", [c_module(el2=NESTED, name="nested")], "hyp_ftrace_filter=nothing hyp_event=func")
    assert traced.read("set_ftrace_filter") == ""
    traced.write("set_ftrace_filter", "__kvm_nvhe_m*\n")
    traced.write("set_ftrace_filter", "*l?af\n")
    assert sorted(traced.read("set_ftrace_filter").split()) == ["__kvm_nvhe_leaf", "__kvm_nvhe_middle"]
    traced.write("set_ftrace_notrace", "*[k-n]eaf\n")
    assert traced.read("set_ftrace_filter") == "__kvm_nvhe_middle\n"
    traced.system.call("hyp_call", 0)
    assert calls(traced) == "> middle\n"
    with pytest.raises(FsError, match="EINVAL"):
        traced.write("set_ftrace_filter", "*unknown*\n")
    with pytest.raises(FsError, match="E2BIG"):
        traced.write("set_ftrace_notrace", "x" * 127)


@pytest.mark.parametrize("config", [{}, {"PKVM_FTRACE": "y"}], ids=["as it is", "PKVM_FTRACE=y"])
def test_deep_recursion_is_traced_without_the_innermost_returns(c_module, plain, config: dict[str, str]) -> None:
    traced = plain(
        "16", [c_module(el2=NESTED, name="nested", config=config)], "hyp_ftrace_filter=*middle hyp_event=func,func_ret"
    )
    traced.write("buffer_size_kb", "64\n")
    traced.off()
    traced.on()
    traced.system.call("hyp_call", 39)
    text = calls(traced)
    assert text.count("> middle") == 40
    assert text.count("< middle") == 32


def test_without_the_option_there_is_none_of_it(start) -> None:
    traced = start()
    assert "set_ftrace_filter" not in traced.system.fs.list(traced.root)
    assert "func" not in traced.system.fs.list(traced.path("events/hypervisor"))


def test_with_it_the_ids_are_those_of_a_kernel_that_has_it(start) -> None:
    traced = start(cmdline="hyp_ftrace_filter=")
    assert [traced.read(f"events/{name}/id") for name in ("__hyp_printk", "func", "func_ret", "host_hcall")] == [
        *("0\n", "1\n", "2\n", "3\n")
    ]
    assert traced.read("events/vault_close/id") == "13\n"


@pytest.mark.parametrize("config", [{}, {"PKVM_FTRACE": "y"}], ids=["as it is", "PKVM_FTRACE=y"])
def test_a_snapshot_in_a_traced_system_goes_back(c_module, plain, config: dict[str, str]) -> None:
    traced = plain("16", [c_module(el2=NESTED, name="nested", config=config)], ON)
    snapshot = traced.system.snapshot()
    traced.system.call("hyp_call", 1)
    first = traced.texts()
    traced.write("set_ftrace_notrace", "*\n")
    traced.system.restore(snapshot)
    traced.system.call("hyp_call", 1)
    assert traced.texts() == first


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("", "anything", True),
        ("*", "anything", True),
        ("a?c", "abc", True),
        ("a?c", "abbc", False),
        ("[!a]x", "bx", True),
        ("abc", "abcd", False),
    ],
)
def test_patterns_are_those_of_the_kernel(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


def test_a_module_built_for_function_tracing_brings_the_files_along(c_module) -> None:
    plain = pkvm_emu.boot("16", [c_module(el2=NESTED, name="nested")])
    assert "set_ftrace_filter" not in plain.fs.list(FILES)
    system = pkvm_emu.boot("16", [c_module(el2=NESTED, name="nested", config={"PKVM_FTRACE": "y"})])
    system.fs.write(f"{FILES}/set_ftrace_notrace", "*\n")
    system.fs.write(f"{FILES}/set_ftrace_filter", "*hyp_call\n")
    assert system.fs.read(f"{FILES}/set_ftrace_filter") == "__kvm_nvhe_hyp_call\n"
    system.fs.write(f"{FILES}/events/hypervisor/func/enable", "1\n")
    system.fs.write(f"{FILES}/tracing_on", "1\n")
    system.call("hyp_call", 1)
    assert [line.split()[3] for line in system.trace_pipe.read().splitlines()] == ["__kvm_nvhe_hyp_call"]
