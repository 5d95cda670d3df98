"""How shipped modules are put together, and that they run so: doubled section names, moved structs, signatures, far calls."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import pkvm_emu
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.system import System

from .conftest import GENERATIONS, SMALL

each_generation = pytest.mark.parametrize("generation", GENERATIONS)
MIB = 1 << 20
MAGIC = b"~Module signature appended~\n"

LOADER = """
static int __init probe_init(void)
{
	int ret = pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);
	return ret ? ret : pkvm_register_el2_mod_call(__kvm_nvhe_hyp_call, token) < 0;
}
module_init(probe_init);
"""
ADDER = """
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	x[0] = 0; x[1] += x[2];
}
"""


def boot(*modules: Path | ModuleFile) -> System:
    system = pkvm_emu.boot(modules=list(modules), profile=SMALL)
    assert [outcome.status for outcome in system.boot_report.outcomes] == ["loaded"] * len(modules), system.dmesg
    return system


# Relocation sections


@each_generation
def test_two_relocation_sections_of_one_name_are_told_apart_by_what_they_patch(build, generation: str) -> None:
    """Up to 6.6 the EL2 half's is called ``.rela.text`` in what ships; here it gets that name."""
    el1 = 'noinline void say(int n) { pr_info("said %d\\n", n); }\n' + LOADER.replace(
        "int ret =", "say(7);\n\tint ret ="
    )
    el2 = "static u64 base = 100;\n" + ADDER.replace("x[1] += x[2];", "base++; x[1] += x[2] + base;")
    file = ModuleFile.parse(rename_section(build(el1, el2, generation).read_bytes(), ".hyp.text", ".text"), "probe.ko")
    doubled = [file.sections[part.target].name for part in file.relocation_sections if part.name == ".rela.text"]
    assert sorted(doubled) == [".hyp.text", ".text"]
    system = boot(file)
    assert "said 7" in system.dmesg
    assert system.call("hyp_call", 3, 4).x1 == 108


def rename_section(data: bytes, patched: str, like: str) -> bytes:
    """The file with the relocation section for ``patched`` called as that for ``like`` is."""
    table, count, names = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 60)
    strings = struct.unpack_from("<Q", data, table + 64 * names + 24)[0]
    rows = [struct.unpack_from("<IIQQQQIIQQ", data, table + 64 * number) for number in range(count)]

    def title(number: int) -> bytes:
        start = strings + rows[number][0]
        return data[start : data.index(b"\0", start)]

    by_target = {title(row[7]): number for number, row in enumerate(rows) if row[1] == 4}
    header = table + 64 * by_target[patched.encode()]
    return data[:header] + struct.pack("<I", rows[by_target[like.encode()]][0]) + data[header + 4 :]


@each_generation
def test_relocations_of_tables_in_el2_data_are_rebased(build, generation: str) -> None:
    source = """
static u64 one = 11, two = 22;
static u64 *const table[] = { &one, &two };
static u64 **volatile moving = (u64 **)&table[1];
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	x[0] = 0; x[1] = *table[x[1] & 1] * 100 + **moving;
}
"""
    system = boot(build(LOADER, source, generation))
    assert [system.call("hyp_call", n).x1 for n in (0, 1)] == [1122, 2222]


# struct module


@each_generation
@pytest.mark.parametrize("offset", [0x28, 0x1D8, 0x330], ids=hex)
def test_arch_hyp_is_found_wherever_the_kernels_configuration_puts_it(build, generation: str, offset: int) -> None:
    """A build with RANDSTRUCT: the module's code, not the stock layout, says where ``arch.hyp`` is."""
    source = f"""
static int __init probe_init(void)
{{
	char *hyp = (char *)&__this_module + {offset};
	unsigned long base;
	int ret;

	*(void **)(hyp + offsetof(struct pkvm_el2_module, init)) = __kvm_nvhe_hyp_init;
	ret = __pkvm_load_el2_module(&__this_module, &token);
	if (ret)
		return ret;
#ifdef PKVM_EMU_HYP_EVENTS
	base = *(unsigned long *)(hyp + offsetof(struct pkvm_el2_module, sections));
#else
	base = *(unsigned long *)(hyp + offsetof(struct pkvm_el2_module, text));
#endif
	return __pkvm_register_el2_call(token + (unsigned long)__kvm_nvhe_hyp_call - base) < 0;
}}
module_init(probe_init);
"""
    assert boot(build(source, ADDER, generation)).call("hyp_call", 30, 12).x1 == 42


# Sections


@each_generation
def test_el2_sections_of_size_0_take_no_room_and_do_no_harm(build, generation: str) -> None:
    """Only text: no data, no constants, no relocations of the hypervisor's kind."""
    module = build(LOADER, ADDER, generation)
    file = ModuleFile.load(module)
    reloc = file.section(".hyp.reloc")
    assert reloc is not None
    assert reloc.size == 0
    system = boot(module)
    assert system.call("hyp_call", 1, 1).x1 == 2


@each_generation
def test_a_mebibyte_of_bss_is_there_page_by_page(build, generation: str) -> None:
    source = f"""
static u64 room[{MIB} / 8];
int hyp_init(const struct pkvm_module_ops *ops) {{ return 0; }}
void hyp_call(pkvm_handler_regs_t *regs)
{{
	u64 *x = (u64 *)regs, old = room[x[1]];
	room[x[1]] = x[2]; x[0] = 0; x[1] = old;
}}
"""
    system = boot(build(LOADER, source, generation))
    for index in (0, 511, 512, MIB // 16, MIB // 8 - 1):
        assert system.call("hyp_call", index, index + 1).x1 == 0
    assert [system.call("hyp_call", n, 0).x1 for n in (511, MIB // 8 - 1)] == [512, MIB // 8]


@each_generation
def test_what_el1_writes_to_el2_variables_before_the_load_is_what_el2_reads(build, generation: str) -> None:
    el1 = """
extern u64 __kvm_nvhe_from_bss, __kvm_nvhe_from_data, __kvm_nvhe_kept;
static int __init probe_init(void)
{
	int ret;

	__kvm_nvhe_from_bss = 0x1234;
	__kvm_nvhe_from_data += 1;
	ret = pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);
	return ret ? ret : pkvm_register_el2_mod_call(__kvm_nvhe_hyp_call, token) < 0;
}
module_init(probe_init);
"""
    el2 = """
u64 from_bss, from_data = 40, kept = 7;
int hyp_init(const struct pkvm_module_ops *ops) { return from_bss == 0x1234 ? 0 : -EINVAL; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	x[0] = 0; x[1] = from_bss; x[2] = from_data; x[3] = kept;
}
"""
    system = boot(build(el1, el2, generation))
    assert system.call("hyp_call")[1:] == (0x1234, 41, 7)


# Calls


@each_generation
def test_calls_of_the_kernel_beyond_the_reach_of_a_branch_go_through_veneers(build, generation: str) -> None:
    el1 = LOADER.replace("int ret =", 'pr_info("from afar\\n");\n\tint ret =')
    system = boot(build(el1, ADDER, generation))
    assert "from afar" in system.dmesg
    module = system.modules["probe"]
    printk = system.kernel.symbols.addresses["_printk"]
    # The module area begins further from the kernel's text than a BL reaches.
    assert printk - module.layout.base > 1 << 27
    area = next(area for area in module.layout.veneers if area.region == "init.text")
    assert area.size


@each_generation
def test_a_switch_is_compiled_to_a_table_of_jumps_at_both_levels(build, generation: str) -> None:
    body = "".join(f"case {n}: return {n * n + 3}; " for n in range(3, 40, 3)) + "default: return 1;"
    el1 = f"static noinline u64 choose(u64 n) {{ switch (n) {{ {body} }} }}\n"
    el1 += LOADER.replace(
        "int ret =", 'pr_info("chose %llu %llu\\n", choose(token + 9), choose(token + 39));\n\tint ret ='
    )
    el2 = f"static noinline u64 choose(u64 n) {{ switch (n) {{ {body} }} }}\n" + ADDER.replace(
        "x[1] += x[2];", "x[1] = choose(x[1]);"
    )
    flags = "-fjump-tables -mllvm -min-jump-table-entries=3"
    system = boot(build(el1, el2, generation, el1_flags=flags, el2_flags=flags))
    assert "chose 84 1524" in system.dmesg
    assert [system.call("hyp_call", n).x1 for n in (3, 36, 39, 40)] == [12, 1299, 1524, 1]


# Signatures


@each_generation
def test_a_signed_module_loads_and_the_signature_is_reported(build, generation: str) -> None:
    body = b"\x30\x82" + bytes.fromhex("0609608648016503040203") + bytes(40)
    block = struct.pack(">BBBBB3xI", 0, 0, 2, 0, 0, len(body))
    data = build(LOADER, ADDER, generation).read_bytes()
    file = ModuleFile.parse(data + body + block + MAGIC, "probe.ko")
    assert file.signature is not None
    assert (file.signature.id_type, file.signature.hash_name) == ("PKCS#7", "sha512")
    assert boot(file).call("hyp_call", 2, 2).x1 == 4
