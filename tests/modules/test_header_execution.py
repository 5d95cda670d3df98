"""Code compiled from the headers does the right thing when it runs: hypercalls, lists, locks, conversions."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import pytest
import unicorn
from header_snippets import A14, A16, Compile, Object
from unicorn import arm64_const as uc

TEXT, DATA, STACK = 0x10000, 0x40000, 0x80000
REGISTERS = [getattr(uc, f"UC_ARM64_REG_X{i}") for i in range(18)]
HVC, SMC, BRK = 0x16, 0x17, 0x3C


@dataclass
class Run:
    """One call of a function on a bare CPU; exceptions are recorded and answered with ``answer``."""

    built: Object
    answer: tuple[int, int, int, int] = (0, 0, 0, 0)
    exceptions: list[tuple[str, list[int]]] = field(default_factory=list)
    data: bytes = b""

    def call(self, function: str, *args: int, data: bytes = b"") -> int:
        cpu = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        for base in (TEXT, DATA, STACK):
            cpu.mem_map(base, 0x10000)
        text = self.built.sections[".text"]
        cpu.mem_write(TEXT, text)
        cpu.mem_write(DATA, data)
        cpu.reg_write(uc.UC_ARM64_REG_SP, STACK + 0x8000)
        cpu.reg_write(uc.UC_ARM64_REG_X30, TEXT + 0xFFF0)
        for register in REGISTERS:
            cpu.reg_write(register, 0xDEAD)
        for register, value in zip(REGISTERS, args):
            cpu.reg_write(register, value & (2**64 - 1))

        def step(cpu: unicorn.Uc, address: int, size: int, _: object) -> None:
            (word,) = struct.unpack("<I", cpu.mem_read(address, 4))
            name = {0xD4000002: "hvc", 0xD4000003: "smc", 0xD4210000: "brk 0x800"}.get(word)
            if name:
                self.exceptions.append((name, [cpu.reg_read(r) for r in REGISTERS]))
                if name != "brk 0x800":
                    for register, value in zip(REGISTERS, self.answer):
                        cpu.reg_write(register, value)
                    for register in REGISTERS[4:]:
                        cpu.reg_write(register, 0xBAD)
                cpu.reg_write(uc.UC_ARM64_REG_PC, address + 4)

        cpu.hook_add(unicorn.UC_HOOK_CODE, step)
        cpu.emu_start(TEXT + self.built.defined[function], TEXT + 0xFFF0, count=10000)
        self.data = bytes(cpu.mem_read(DATA, 0x1000))
        return int(cpu.reg_read(uc.UC_ARM64_REG_X0))


SMCCC = "#include <linux/arm-smccc.h>\n"
MODULE = "#include <asm/kvm_pkvm_module.h>\n"


@pytest.mark.parametrize("count", range(8))
@pytest.mark.parametrize("conduit", ["hvc", "smc"])
def test_a_call_takes_up_to_seven_arguments(compile_c: Compile, conduit: str, count: int) -> None:
    args = "".join(f"{i + 0x100}, " for i in range(count))
    built = compile_c(f"{SMCCC}void f(struct arm_smccc_res *r) {{ arm_smccc_1_1_{conduit}(0xc6000080, {args} r); }}\n")
    run = Run(built, (1, 2, 3, 4))
    run.call("f", DATA)
    [(name, registers)] = run.exceptions
    assert name == conduit
    assert registers[:8] == [0xC6000080, *(i + 0x100 for i in range(count)), *[0] * (7 - count)]
    assert struct.unpack_from("<4Q", run.data) == (1, 2, 3, 4)


def test_the_result_of_a_call_may_be_null(compile_c: Compile) -> None:
    built = compile_c(f"{SMCCC}int f(void) {{ arm_smccc_1_1_hvc(0x84000000, 5, NULL); return 7; }}\n")
    run = Run(built)
    assert run.call("f") == 7
    assert run.exceptions[0][1][:2] == [0x84000000, 5]


def test_a_call_with_all_registers_moves_x0_to_x17_both_ways(compile_c: Compile) -> None:
    built = compile_c(SMCCC + "void f(struct arm_smccc_1_2_regs *r) { arm_smccc_1_2_smc(r, r + 1); }\n")
    run = Run(built, (9, 8, 7, 6))
    run.call("f", DATA, data=struct.pack("<18Q", *range(100, 118)))
    assert run.exceptions[0][1] == list(range(100, 118))
    assert struct.unpack_from("<18Q", run.data, 144) == (9, 8, 7, 6, *[0xBAD] * 14)


CALL = MODULE + "unsigned long f(int id, u64 a) { return pkvm_el2_mod_call(id, a, 2); }\n"


def test_a_module_call_gives_x1(compile_c: Compile) -> None:
    run = Run(compile_c(CALL), (0, 0x1234, 0, 0))
    assert run.call("f", 130, 77) == 0x1234
    [(name, registers)] = run.exceptions
    assert (name, registers[:4]) == ("hvc", [0xC6000082, 77, 2, 0])


@pytest.mark.parametrize("status", [0xFFFF_FFFF_FFFF_FFFF, 0x1234])
def test_a_refused_module_call_warns_and_still_gives_x1(compile_c: Compile, status: int) -> None:
    run = Run(compile_c(CALL), (status, 0x77, 0, 0))
    assert run.call("f", 130, 1) == 0x77
    assert [name for name, _ in run.exceptions] == ["hvc", "brk 0x800"]


def test_the_smccc_form_gives_all_registers_and_does_not_warn(compile_c: Compile) -> None:
    built = compile_c(MODULE + "void f(struct arm_smccc_res *r) { *r = pkvm_el2_mod_call_smccc(128); }\n")
    run = Run(built, (0xFFFF_FFFF_FFFF_FFFF, 2, 3, 4))
    run.call("f", DATA)
    assert struct.unpack_from("<4Q", run.data) == (0xFFFF_FFFF_FFFF_FFFF, 2, 3, 4)
    assert [name for name, _ in run.exceptions] == ["hvc"]


def test_lists_link_and_unlink(compile_c: Compile) -> None:
    built = compile_c(
        """
        #include <linux/list.h>
        struct item { u64 value; struct list_head node; };
        u64 f(struct item *i) {
            LIST_HEAD(head); struct item *pos, *next; u64 digits = 0;
            for (int n = 0; n < 3; n++) { i[n].value = n + 1; list_add_tail(&i[n].node, &head); }
            i[3].value = 4; list_add(&i[3].node, &head);
            list_for_each_entry(pos, &head, node) digits = digits * 10 + pos->value;
            list_for_each_entry_safe(pos, next, &head, node) if (pos->value == 1) list_del(&pos->node);
            list_move(&i[2].node, &head);
            list_for_each_entry_reverse(pos, &head, node) digits = digits * 10 + pos->value;
            return digits;
        }
        """,
        A14,  # no out-of-line checks to supply
        level=2,
    )
    run = Run(built)
    assert run.call("f", DATA) == 4123243
    assert struct.unpack_from("<QQ", run.data, 8) == (0xDEAD000000000100, 0xDEAD000000000122)


CORRUPT = """
#include <linux/list.h>
bool __list_add_valid_or_report(struct list_head *n, struct list_head *p, struct list_head *x) { return ANSWER; }
bool __list_del_entry_valid_or_report(struct list_head *e) { return ANSWER; }
int f(struct list_head *l, int corrupt) {
    INIT_LIST_HEAD(&l[0]);
    list_add(&l[1], &l[0]);
    if (corrupt)
        WRITE_ONCE(l[0].prev, &l[2]);
    list_del(&l[1]);
    return l[0].next == &l[1];
}
"""


@pytest.mark.parametrize(("answer", "corrupt", "still_linked"), [(0, 0, 0), (0, 1, 1), (1, 1, 0)])
def test_only_a_corrupt_entry_asks_the_slow_path_whether_to_go_on(
    compile_c: Compile, answer: int, corrupt: int, still_linked: int
) -> None:
    built = compile_c(CORRUPT.replace("ANSWER", str(answer)), A16, level=2)
    assert Run(built).call("f", DATA, corrupt) == still_linked


def test_addresses_convert_both_ways(compile_c: Compile) -> None:
    built = compile_c(
        """
        #include <asm/memory.h>
        #undef memstart_addr
        #define memstart_addr ((s64)0x40000000)
        #define kimage_voffset 0xffffffc000000000ULL
        u64 to_phys(void *p) { return __pa(p); }
        void *to_virt(u64 phys) { return __va(phys); }
        """
    )
    assert Run(built).call("to_phys", 0xFFFFFF8000123000) == 0x40123000
    assert Run(built).call("to_phys", 0xFFFFFFC080200000) == 0x80200000
    assert Run(built).call("to_virt", 0x40123000) == 0xFFFFFF8000123000


def test_a_system_register_is_the_same_by_name_and_by_number(compile_c: Compile) -> None:
    built = compile_c(
        "#include <asm/sysreg.h>\n"
        "u64 by_name(void) { return read_sysreg(hpfar_el2); }\n"
        "u64 by_number(void) { return read_sysreg_s(SYS_HPFAR_EL2); }\n"
        "void write_name(u64 v) { write_sysreg(v, elr_el2); }\n"
        "void write_number(u64 v) { write_sysreg_s(v, SYS_ELR_EL2); }\n",
        level=2,
    )
    text = built.sections[".text"]
    words = struct.unpack(f"<{len(text) // 4}I", text)
    accesses = [word & ~0x1F for word in words if word >> 22 == 0b1101010100]
    hints = 0xD5032000
    read, read_s, write, write_s = (word for word in accesses if word & 0xFFFFF000 != hints)
    assert read == read_s == 0xD53C6080
    assert write == write_s == 0xD51C4020


@pytest.mark.parametrize("key", [*range(22), 1000])
def test_an_inline_search_finds_what_is_there(compile_c: Compile, key: int) -> None:
    source = """
#include <linux/bsearch.h>
static int compare(const void *key, const void *element) { return *(const u64 *)key < *(const u64 *)element ? -1 :
	*(const u64 *)key > *(const u64 *)element; }
u64 find(u64 *table, u64 key, u64 count)
{
	u64 *found = __inline_bsearch(&key, table, count, sizeof(u64), compare);

	return found ? found - table : -1ull;
}
"""
    table = [3, 5, 8, 13, 20]
    run = Run(compile_c(source, level=2))
    for count in range(len(table) + 1):
        expected = table.index(key) if key in table[:count] else (1 << 64) - 1
        assert run.call("find", DATA, key, count, data=struct.pack("<5Q", *table)) == expected
