"""Thousands of broken modules, made from sound ones of each generation: each is loaded, or refused with one line."""

from __future__ import annotations

import os
import socket
from collections import Counter
from pathlib import Path

import pytest

import pkvm_emu
from pkvm_emu.elf.dwarf import SourceLines
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.machine.profile import MachineProfile

from .fuzz_harness import Refused, attempt, bounded, load, read
from .fuzz_mutations import MUTATIONS, Case, mutants, mutate, scribble_on_debug, without_debug

KERNELS = ("android14-5.15", "android14-6.1", "android15-6.6", "android16-6.12")
#: A mutant whose code runs wild comes to its end soon.
INSTRUCTIONS = 100_000
MUTANTS = 48 * len(MUTATIONS)

#: An EL1 half with what loaders walk: parameters, WARN, a table of functions, an export, init data.
EL1 = """
#include <linux/bug.h>
#include <linux/moduleparam.h>
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_hyp_call(pkvm_handler_regs_t *regs);
static unsigned long token;
static int level = 3;
module_param(level, int, 0644);
static int twice(int x) { return x * 2; }
static int thrice(int x) { return x * 3; }
static int (*const table[])(int) = { twice, thrice };
int seed_export(int n) { return table[n & 1](n); }
EXPORT_SYMBOL_GPL(seed_export);
static int __init probe_init(void)
{
	int ret = pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);

	WARN_ON(level > 100);
	pr_info("level %d, %d\\n", level, seed_export(level));
	return ret ? ret : pkvm_register_el2_mod_call(__kvm_nvhe_hyp_call, token) < 0;
}
module_init(probe_init);
"""
EL2 = """
static const struct pkvm_module_ops *o;
static u64 counts[4] = { 1, 2, 3, 4 };
static u64 *const where[] = { counts, counts + 1 };
static u64 room[600];
int hyp_init(const struct pkvm_module_ops *ops) { o = ops; o->memset(room, 7, sizeof(room)); return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;

	if (x[1] == 99)
		asm volatile("brk #0x800");
	x[0] = 0;
	x[1] = *where[x[1] & 1] + room[3];
	o->puts("called");
}
"""


@pytest.fixture(scope="module", params=KERNELS)
def seed(request, c_module) -> tuple[str, bytes]:
    return request.param, without_debug(_build(c_module, request.param))


def _build(c_module, kernel: str) -> bytes:
    return c_module(EL1, EL2, name="seed", generation=kernel).read_bytes()


def test_broken_modules_are_loaded_or_refused_with_one_line(seed: tuple[str, bytes]) -> None:
    kernel, data = seed
    system = pkvm_emu.boot(kernel, profile=MachineProfile(ram_size=64 << 20), deprivilege=False)
    system.machine.core.instruction_budget = INSTRUCTIONS
    fresh = system.snapshot()
    outcomes: Counter[str] = Counter()
    reasons = set()
    for case in mutants(data, 1000 * KERNELS.index(kernel), MUTANTS):
        with bounded(case):
            file = read(case.data)
            result = file if isinstance(file, Refused) else load(system, file)
            system.restore(fresh)
        outcomes["loaded" if result == "loaded" else "refused"] += 1
        reasons.add(result[:40])
    # Both kinds, and many ways of being refused: the mutations reach what they are aimed at.
    assert outcomes["loaded"] > MUTANTS // 10
    assert outcomes["refused"] > MUTANTS // 3
    assert len(reasons) > 60


def test_a_mutant_is_the_same_for_the_same_seed(seed: tuple[str, bytes]) -> None:
    _, data = seed
    assert all(mutate(data, n) == mutate(data, n) for n in range(len(MUTATIONS)))
    assert sum(mutate(data, n).data != data for n in range(100)) > 90


def test_the_seeds_themselves_load(seed: tuple[str, bytes]) -> None:
    kernel, data = seed
    system = pkvm_emu.boot(kernel, profile=MachineProfile(ram_size=64 << 20), deprivilege=False)
    file = read(data)
    assert not isinstance(file, Refused)
    assert load(system, file) == "loaded"


def test_a_file_that_ends_at_any_byte_of_its_last_table_is_refused(seed: tuple[str, bytes]) -> None:
    _, data = seed
    for size in range(len(data) - 1, len(data) - 700, -1):
        assert isinstance(attempt(lambda size=size: ModuleFile.parse(data[:size], "cut.ko")), Refused)


def test_numbers_of_sections_beyond_the_header_are_refused_by_name(seed: tuple[str, bytes]) -> None:
    _, data = seed
    table = int.from_bytes(data[40:48], "little")
    count = int.from_bytes(data[60:62], "little")
    moved = bytearray(data)
    moved[60:62] = bytes(2)
    moved[table + 32 : table + 40] = count.to_bytes(8, "little")
    assert "extended numbering" in str(attempt(lambda: ModuleFile.parse(bytes(moved), "many.ko")))


def test_broken_debug_information_takes_the_lines_away_and_nothing_else(c_module) -> None:
    data = _build(c_module, KERNELS[-1])
    sound = ModuleFile.parse(data, "seed.ko")
    places = [
        (s.shndx, s.value) for s in sound.symbols if s.in_section and s.name in ("init_module", "__kvm_nvhe_hyp_call")
    ]
    known = [SourceLines(sound).lookup(*place) for place in places]
    assert all(line is not None and line.line for line in known)
    different = 0
    for seed in range(60):
        with bounded(Case(seed, "debug", b"")):
            file = ModuleFile.parse(scribble_on_debug(data, seed), "mutant.ko")
            lines = SourceLines(file)
            found = [attempt(lambda place=place, lines=lines: lines.lookup(*place)) for place in places]
            different += found != known
    assert different > 10


@pytest.mark.parametrize(
    "kind", ["directory", "fifo", "socket", "device", "missing", "loop", "empty", "unreadable name"]
)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, monkeypatch, kind: str) -> None:
    path = tmp_path / "thing.ko"
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "socket":
            # Names of sockets are short.
            monkeypatch.chdir(tmp_path)
            with socket.socket(socket.AF_UNIX) as opened:
                opened.bind("thing.ko")
        case "device":
            path = Path("/dev/zero")
        case "loop":
            path.symlink_to(path)
        case "empty":
            path.touch()
        case "unreadable name":
            path = Path("a\0b.ko")
    assert isinstance(attempt(lambda: ModuleFile.load(path)), Refused)


def test_a_sparse_file_of_terabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.ko"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert "the limit is 256 MiB" in str(attempt(lambda: ModuleFile.load(path)))
