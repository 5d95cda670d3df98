"""Bad modules: one clear line, the right class of error, and never a traceback or a hang."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import pkvm_emu
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.errors import InputError, ModuleError, PkvmEmuError, UsageError
from pkvm_emu.kernel.modules import ModuleLoadError
from pkvm_emu.machine import watchdog
from pkvm_emu.machine.core import Stuck
from pkvm_emu.machine.profile import MachineProfile

SMALL = MachineProfile(ram_size=64 << 20)
MODULE_FAILED, INPUT_WRONG = 1, 2


def refused(action: Callable[[], object], kind: type[PkvmEmuError], exit_code: int) -> str:
    """The message of the error that ``action`` ends with; one line, of the class, with the exit code."""
    with pytest.raises(PkvmEmuError) as error:
        action()
    assert isinstance(error.value, kind), repr(error.value)
    assert error.value.exit_code == exit_code
    text = str(error.value)
    assert text
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def parse(data: bytes) -> ModuleFile:
    return ModuleFile.parse(data, "broken.ko")


def boot(*modules: Path | ModuleFile, cmdline: str = "", android: str | None = None) -> pkvm_emu.System:
    return pkvm_emu.boot(android, list(modules), cmdline, SMALL)


def failure(*modules: Path | ModuleFile, cmdline: str = "") -> tuple[str, int]:
    """Reason and errno of the protected module that failed; the boot itself goes on."""
    system = boot(*modules, cmdline=cmdline)
    outcome = next(outcome for outcome in system.boot_report.outcomes if outcome.status == "failed")
    assert "\n" not in outcome.reason
    assert system.kernel.deprivileged
    assert not system.is_secure
    return outcome.reason, outcome.errno


# Files


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"#!/bin/sh\nexit 0\n" * 20, "ELF"),
        (b"\x7fELF", "truncated|too short|ELF"),
        (b"\x7fELF" + bytes(60), "ELF"),
    ],
    ids=["empty", "a script", "only the magic", "a header of zeros"],
)
def test_a_file_that_is_no_module(data: bytes, words: str) -> None:
    text = refused(lambda: parse(data), InputError, INPUT_WRONG)
    assert text.startswith("broken.ko: ")
    assert re.search(words, text), text


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    text = refused(lambda: boot(tmp_path / "missing.ko"), InputError, INPUT_WRONG)
    assert "missing.ko" in text
    assert str(tmp_path) in refused(lambda: boot(tmp_path), InputError, INPUT_WRONG)


@pytest.mark.parametrize(("machine", "name"), [(62, "x86-64"), (40, "Arm"), (243, "RISC-V")])
def test_a_module_for_another_machine(pkvm_driver, machine: int, name: str) -> None:
    data = bytearray(pkvm_driver("16").read_bytes())
    struct.pack_into("<H", data, 18, machine)
    text = refused(lambda: parse(bytes(data)), InputError, INPUT_WRONG)
    assert "AArch64" in text
    assert name.lower() in text.lower() or str(machine) in text


def test_an_executable_is_no_module(pkvm_driver) -> None:
    data = bytearray(pkvm_driver("16").read_bytes())
    struct.pack_into("<H", data, 16, 2)
    refused(lambda: parse(bytes(data)), InputError, INPUT_WRONG)


def test_a_module_that_is_cut_off_anywhere(pkvm_driver) -> None:
    data = pkvm_driver("16").read_bytes()
    for size in [*range(0, 200, 16), *range(200, len(data), len(data) // 40)]:
        refused(lambda size=size: parse(data[:size]), InputError, INPUT_WRONG)


def test_a_module_with_any_byte_of_its_tables_damaged_loads_or_is_refused(pkvm_driver) -> None:
    """Never another exception: a sample of the bytes of the ELF header, the section headers and the symbol table."""
    data = pkvm_driver("16").read_bytes()
    headers, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
    symtab = next(h for h in range(headers, headers + 64 * count, 64) if struct.unpack_from("<I", data, h + 4)[0] == 2)
    symbols = struct.unpack_from("<Q", data, symtab + 24)[0]
    messages: list[str] = []
    for place in [*range(16, 64), *range(headers, headers + 64 * count, 13), *range(symbols, symbols + 24 * 20, 5)]:
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        try:
            file = parse(bytes(damaged))
            _ = (file.name, file.modinfo, file.has_el2, file.hyp_sections, file.exports, file.this_module)
        except PkvmEmuError as error:
            messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)


# Generations


def with_vermagic(path: Path, old: bytes, new: bytes) -> ModuleFile:
    data = path.read_bytes()
    assert data.count(b"vermagic=" + old) == 1
    assert len(old) == len(new)
    return ModuleFile.parse(data.replace(b"vermagic=" + old, b"vermagic=" + new), path.name)


def test_an_unknown_kernel_in_the_vermagic_asks_for_the_generation(pkvm_driver) -> None:
    module = with_vermagic(pkvm_driver("16"), b"6.12", b"9.99")
    text = refused(lambda: boot(module), UsageError, INPUT_WRONG)
    assert "9.99" in text
    assert "--android" in text
    assert boot(module, android="16").is_secure


def test_modules_for_different_kernels_cannot_be_mixed_unasked(pkvm_driver) -> None:
    text = refused(lambda: boot(pkvm_driver("15"), pkvm_driver("16")), UsageError, INPUT_WRONG)
    assert "android15-6.6" in text
    assert "android16-6.12" in text


def test_an_unknown_generation_is_refused(pkvm_driver) -> None:
    assert "17" in refused(lambda: boot(pkvm_driver("16"), android="17"), UsageError, INPUT_WRONG)


def test_a_module_of_another_generation_is_noted_in_the_log(pkvm_driver) -> None:
    system = pkvm_emu.boot("15", [], profile=SMALL, deprivilege=False)
    with pytest.raises(ModuleError):
        system.load(pkvm_driver("16"))
    assert "built for android16-6.12" in system.dmesg


# Linking


def relocations(data: bytes, section: bytes) -> list[int]:
    """File offsets of the entries of a RELA section."""
    headers, count, names_index = (
        struct.unpack_from("<Q", data, 40)[0],
        *struct.unpack_from("<HH", data, 60),
    )
    names = struct.unpack_from("<Q", data, headers + 64 * names_index + 24)[0]
    for header in range(headers, headers + 64 * count, 64):
        start = names + struct.unpack_from("<I", data, header)[0]
        if data[start : data.index(b"\0", start)] == section:
            offset, size = struct.unpack_from("<QQ", data, header + 24)
            return list(range(offset, offset + size, 24))
    raise AssertionError(f"no {section!r}")


def with_relocation(path: Path, section: bytes, old: int, new: int) -> ModuleFile:
    """The first relocation of type ``old`` becomes one of type ``new``."""
    data = bytearray(path.read_bytes())
    place = next(p for p in relocations(bytes(data), section) if struct.unpack_from("<I", data, p + 8)[0] == old)
    struct.pack_into("<I", data, place + 8, new)
    return ModuleFile.parse(bytes(data), path.name)


CALL26, PREL16, ABS16 = 283, 262, 259


def test_an_unknown_relocation_names_its_type_and_place(pkvm_driver) -> None:
    module = with_relocation(pkvm_driver("16"), b".rela.init.text", CALL26, 999)
    text = refused(lambda: boot(module), PkvmEmuError, INPUT_WRONG)
    assert "unsupported relocation type 999" in text
    assert "init_module" in text or "pkvm_driver_init" in text


@pytest.mark.parametrize("kind", [PREL16, ABS16])
def test_a_relocation_that_does_not_fit_names_target_and_distance(pkvm_driver, kind: int) -> None:
    module = with_relocation(pkvm_driver("16"), b".rela.init.text", CALL26, kind)
    text = refused(lambda: boot(module), PkvmEmuError, INPUT_WRONG)
    assert "R_AARCH64_" in text
    assert "init.text" in text or "init" in text


NO_SUCH_EL2 = """
int __kvm_nvhe_somewhere_else(const struct pkvm_module_ops *ops);
static unsigned long token;
static int __init probe_init(void) { return pkvm_load_el2_module(__kvm_nvhe_somewhere_else, &token); }
module_init(probe_init);
"""


def test_an_el2_symbol_that_nobody_defines_fails_the_load(c_module) -> None:
    module = c_module(NO_SUCH_EL2, config={"KBUILD_MODPOST_WARN": "y"})
    reason, errno = failure(module)
    assert errno == -2
    assert "unknown symbol __kvm_nvhe_somewhere_else" in reason
    assert "no loaded module exports it" in reason
    assert "probe: Unknown symbol __kvm_nvhe_somewhere_else (err -2)" in boot(module).dmesg


UNSERVED = """
int vendor_secret_sauce(int a, unsigned long b, const char *c);
static noinline int use_it(void) { return vendor_secret_sauce(5, 0x77, "x"); }
static int __init probe_init(void) { return use_it() + 1; }
module_init(probe_init);
"""


def test_a_kernel_symbol_that_nobody_serves_stops_at_its_call(c_module) -> None:
    module = c_module(UNSERVED, None)
    text = refused(lambda: boot(module, android="16"), ModuleError, MODULE_FAILED)
    assert "vendor_secret_sauce()" in text
    assert "[probe]" in text
    assert "x0=0x5" in text
    assert "x1=0x77" in text


def test_a_symbol_that_is_linked_and_never_called_does_no_harm(c_module) -> None:
    source = UNSERVED.replace("return use_it() + 1;", "return token_is_set() ? use_it() : 0;").replace(
        "static int __init",
        "static volatile int zero;\nstatic int token_is_set(void) { return zero; }\nstatic int __init",
    )
    system = boot(c_module(source, None), android="16")
    assert system.is_secure
    assert list(system.kernel.symbols.unserved) == ["vendor_secret_sauce"]


# Init functions

FAILS = """
static int __init probe_init(void) { return RESULT; }
module_init(probe_init);
"""


@pytest.mark.parametrize(("result", "name", "errno"), [("-ENODEV", "-ENODEV", -19), ("-ENOMEM", "-ENOMEM", -12)])
def test_an_init_function_that_fails_is_reported_by_name(c_module, result: str, name: str, errno: int) -> None:
    reason, number = failure(c_module(FAILS.replace("RESULT", result), None))
    assert number == errno
    assert reason == f"probe: its init function returned {errno} ({name})"


ENDLESS = """
static noinline void spin(void) { for (;;) asm volatile(""); }
static int __init probe_init(void) { spin(); return 0; }
module_init(probe_init);
"""
ENDLESS_EL2 = """
int hyp_init(const struct pkvm_module_ops *ops) { for (;;) asm volatile(""); return 0; }
void hyp_call(pkvm_handler_regs_t *regs) { }
"""


@pytest.mark.parametrize("level", [1, 2])
def test_an_endless_loop_in_init_ends_with_the_function(c_module, monkeypatch, level: int) -> None:
    monkeypatch.setattr(watchdog, "_INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "_GRACE_INSTRUCTIONS", 100_000)
    module = c_module(ENDLESS, None) if level == 1 else c_module(el2=ENDLESS_EL2)
    text = refused(lambda: boot(module), Stuck, MODULE_FAILED)
    assert text.startswith("endless loop between ")
    assert ("spin+" if level == 1 else "__kvm_nvhe_hyp_init+") in text or "probe_init+" in text
    assert "[probe]" in text
    assert refused(lambda: boot(module), Stuck, MODULE_FAILED) == text


def test_a_module_without_an_init_function_loads_as_in_the_kernel(c_module) -> None:
    assert boot(c_module("int unused;\n", None)).modules["probe"].status == "live"


def test_two_modules_of_the_same_name_are_refused(pkvm_driver, tmp_path) -> None:
    other = tmp_path / "other.ko"
    other.write_bytes(pkvm_driver("16").read_bytes() + b" ")
    text = refused(lambda: boot(pkvm_driver("16"), other), UsageError, INPUT_WRONG)
    assert "are both called pkvm_driver" in text


LOADS_NOTHING = """
static unsigned long token;
static int __init probe_init(void) { return __pkvm_load_el2_module(THIS_MODULE, &token); }
module_init(probe_init);
"""


def test_a_module_without_el2_code_that_asks_for_its_load(c_module) -> None:
    text = refused(lambda: boot(c_module(LOADS_NOTHING, None)), ModuleError, MODULE_FAILED)
    assert "probe" in text
    assert "EL2" in text


def test_an_el1_null_pointer_is_an_oops_with_the_place(c_module) -> None:
    source = FAILS.replace("RESULT", "*(volatile int *)16")
    text = refused(lambda: boot(c_module(source, None)), ModuleError, MODULE_FAILED)
    assert text.startswith("Unable to handle kernel NULL pointer dereference at virtual address 0000000000000010")
    assert "probe_init" in text or "init_module" in text


def test_an_el2_bug_is_a_panic_with_the_place(c_module) -> None:
    el2 = """
int hyp_init(const struct pkvm_module_ops *ops) { asm volatile("brk #0x800"); return 0; }
void hyp_call(pkvm_handler_regs_t *regs) { }
"""
    text = refused(lambda: boot(c_module(el2=el2)), ModuleError, MODULE_FAILED)
    assert "BUG" in text
    assert "__kvm_nvhe_hyp_init" in text


# Memory


def test_a_module_that_does_not_fit_into_memory_is_enomem(c_module) -> None:
    big = "static volatile char big[48 << 20];\n" + FAILS.replace("RESULT", "big[zero]").replace(
        "static int __init", "static volatile long zero;\nstatic int __init"
    )
    module = c_module(big, None)
    reason, errno = failure(module)
    assert errno == -12
    assert re.search(r"no memory for .*-ENOMEM", reason)
    # The same module loads where there is memory.
    assert pkvm_emu.boot("16", [module], profile=MachineProfile(ram_size=256 << 20)).is_secure


@pytest.mark.parametrize("generation", ["14", "15", "16"])
def test_a_mebibyte_of_hyp_bss_is_mapped_and_zero(c_module, generation: str) -> None:
    el2 = """
static char big[1 << 20];
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs, sum = 0, i;
	for (i = 0; i < sizeof(big); i += 4096) { sum += big[i]; big[i] = 1; }
	x[0] = 0;
	x[1] = sum;
}
"""
    system = boot(c_module(el2=el2, generation=generation))
    assert [system.call("hyp_call").x1 for _ in range(2)] == [0, 256]
    assert system.is_secure
    module = system.modules["probe"]
    bss = module.file.section(".hyp.bss")
    assert bss is not None
    assert bss.size >= 1 << 20
    last = module.layout.placements[bss.index] + (1 << 20) - 4096
    assert system.kernel.access("host_load64", last)[1] is not None


def test_the_error_of_a_late_load_has_the_errno(c_module) -> None:
    with boot(android="16") as system, pytest.raises(ModuleLoadError) as error:
        system.load(c_module(FAILS.replace("RESULT", "-EBUSY"), None))
    assert (error.value.errno, error.value.exit_code) == (-16, MODULE_FAILED)


@pytest.mark.parametrize("count", [0, -1])
def test_a_budget_of_no_instruction_is_refused(count: int) -> None:
    text = refused(lambda: pkvm_emu.boot(max_insns=count), UsageError, INPUT_WRONG)
    assert text == f"max_insns={count}: at least one instruction has to be executed"
