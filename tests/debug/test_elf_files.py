"""The ELF files that debuggers read: where things are, which half they belong to, and how frames are unwound."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile
from harness import Harness, Server, run_gdb
from hypothesis import given
from hypothesis import strategies as st

from pkvm_emu.debug.cfi import sleb, uleb
from pkvm_emu.debug.elfimage import ImageSection, ImageSymbol, code_section, write_elf
from pkvm_emu.debug.firmware_elf import function_labels
from pkvm_emu.debug.libraries import Libraries
from pkvm_emu.debug.module_frames import ModuleFrames, _sleb, _uleb
from pkvm_emu.debug.session import Session
from pkvm_emu.debug.stops import Stop
from pkvm_emu.elf.elements import SHF_ALLOC, SHF_WRITE, SHT_NOBITS, STB_LOCAL
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.firmware import image as firmware
from pkvm_emu.hyp.vms import FIRMWARE_OFFSET
from pkvm_emu.kernel.command_line import CommandLine
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System, boot, choose_generation, run_boot

MODULE = (
    "filed",
    """
u64 counter = 3;
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs) { counter++; }
""",
)


def files(system: System) -> dict[str, ELFFile]:
    libraries = Libraries(system, "/pkvm-emu")
    found = {}
    for library in libraries.present():
        data = libraries.read(library.path)
        assert data
        found[library.path.rpartition("/")[2]] = ELFFile(io.BytesIO(data))
    return found


def symbols(file: ELFFile) -> dict[str, int]:
    return {symbol.name: symbol["st_value"] for symbol in file.get_section_by_name(".symtab").iter_symbols()}


def test_each_half_is_a_file_at_its_addresses(system: System) -> None:
    found = files(system)
    module = system.modules["filed"]
    el1, el2 = symbols(found["filed.el1.elf"]), symbols(found["filed.el2.elf"])
    assert el1["init_module"] == module.symbol("init_module")
    assert el2["hyp_call"] == el2["__kvm_nvhe_hyp_call"] == module.el2_symbol("hyp_call")
    assert "hyp_call" not in el1
    assert "init_module" not in el2
    for file in found.values():
        segment = file.get_segment(0)
        low, high = segment["p_vaddr"], segment["p_vaddr"] + segment["p_memsz"]
        for section in file.iter_sections():
            if section["sh_flags"] & SHF_ALLOC and section["sh_size"]:
                assert low <= section["sh_addr"] < section["sh_addr"] + section["sh_size"] <= high
                if section["sh_type"] != "SHT_NOBITS":
                    assert section["sh_offset"] - segment["p_offset"] == section["sh_addr"] - low


def test_a_source_line_has_its_address_in_its_half_only(system: System) -> None:
    module = system.modules["filed"]
    for name, inside in (
        ("filed.el1.elf", (module.layout.base, 1 << 64)),
        ("filed.el2.elf", (module.token, module.token + (1 << 20))),
    ):
        rows = 0
        dwarf = files(system)[name].get_dwarf_info()
        for unit in dwarf.iter_CUs():
            program = dwarf.line_program_for_CU(unit)
            sequence_start = 0
            for entry in program.get_entries():
                if entry.state is None:
                    continue
                sequence_start = sequence_start or entry.state.address
                if entry.state.address >= 0x1000:
                    assert inside[0] <= entry.state.address <= inside[1]
                    rows += 1
        assert rows > 3


def test_the_code_in_a_file_is_that_of_the_guest(newest: System) -> None:
    with Harness(newest) as harness:
        for name, file in files(newest).items():
            for section in file.iter_sections():
                # What runs guests is placed with the first guest.
                is_placed = "init" not in section.name and section.name != ".guests"
                if section["sh_flags"] & 4 and section["sh_type"] == "SHT_PROGBITS" and is_placed:
                    data = section.data()
                    assert harness.debugger.memory.read(section["sh_addr"], min(len(data), 64)) == data[:64], (
                        name,
                        section.name,
                    )


def test_ops_and_kernel_functions_are_symbols(system: System) -> None:
    found = files(system)
    hypervisor = symbols(found["hypervisor.elf"])
    for name, address in system.hyp.ops.stubs.items():
        assert hypervisor[f"pkvm_ops_{name}"] == address
    kernel = symbols(next(file for name, file in found.items() if name.startswith("kernel-")))
    assert kernel["__pkvm_load_el2_module"] == system.kernel.symbols.addresses["__pkvm_load_el2_module"]


def test_every_function_of_the_firmware_has_unwind_rules(newest: System) -> None:
    guests = newest.hyp.entry("hyp_vectors") + FIRMWARE_OFFSET
    for name, part, base in (
        ("hypervisor.elf", "el2", newest.hyp.entry("hyp_vectors")),
        ("hypervisor.elf", "guest", guests),
        ("kernel", "el1", newest.kernel.entry("el1_vectors")),
    ):
        file = next(file for path, file in files(newest).items() if path.startswith(name))
        covered = [
            (entry.header["initial_location"], entry.header["initial_location"] + entry.header["address_range"])
            for entry in file.get_dwarf_info().CFI_entries()
            if isinstance(entry, FDE)
        ]
        image = firmware.load(part)
        for label in function_labels(image):
            offset = image.symbols[label]
            is_guests_own = part == "guest" and offset >= image.symbols["guest_code"]
            other = ("user_", "secondary", "guest_vectors", "guest_unexpected")
            if offset >= image.text_size or is_guests_own or label.startswith(other):
                continue
            assert any(start <= base + offset < end for start, end in covered), label


def test_the_place_of_the_el2_half_is_foreseen(c_module: Callable[..., Path]) -> None:
    file = ModuleFile.load(c_module(el2=MODULE[1], name=MODULE[0], generation="android16-6.12"))
    system = System(choose_generation(16, [file]), CommandLine(""), MachineProfile())
    seen: list[tuple[int, int, int]] = []

    def look(session: Session, stop: Stop) -> None:
        debugger = session.debugger
        bases = [library.base for library in debugger.libraries.present() if library.path.endswith(".el2.elf")]
        for base in bases:
            seen.append((base, system.modules["filed"].token, len(debugger.memory.read(base, 16))))
            assert debugger.memory.level_of(base) == 2

    with Harness(system) as harness:
        harness.debugger.control.library_state = harness.debugger.libraries.state
        harness.script = [look] * 20
        run_boot(system, [file])
    token = system.modules["filed"].token
    assert seen[0] == (token, 0, 16)
    assert seen[-1] == (token, token, 16)


def test_a_stripped_module_has_symbols_and_rules(c_module: Callable[..., Path]) -> None:
    whole = ModuleFile.load(c_module(el2=MODULE[1], name=MODULE[0], generation="android16-6.12"))
    system = boot(16, [ModuleFile(whole.file_name, whole.object)])
    file = files(system)["filed.el2.elf"]
    assert symbols(file)["hyp_call"] == system.modules["filed"].el2_symbol("hyp_call")
    assert not [section.name for section in file.iter_sections() if section.name == ".debug_info"]
    starts = {
        entry.header["initial_location"] for entry in file.get_dwarf_info().CFI_entries() if isinstance(entry, FDE)
    }
    assert symbols(file)["hyp_call"] in starts


@pytest.mark.skipif(shutil.which("gdb-multiarch") is None, reason="gdb-multiarch is not installed")
def test_gdb_unwinds_a_stripped_module(c_module: Callable[..., Path], tmp_path: Path) -> None:
    source = """
static noinline u64 deep(u64 value) { __asm__ volatile("" ::: "x19", "x20", "x30", "memory"); return value + 1; }
static noinline u64 deeper(u64 value)
{
	u64 room[8];
	room[value & 7] = deep(value);
	__asm__ volatile("" :: "r"(room) : "memory");
	return room[0] + deep(3);
}
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs) { u64 *x = (u64 *)regs; x[0] = 0; x[1] = deeper(x[1]); }
"""
    path = c_module(el2=source, name="bare", generation="android16-6.12")
    strip = tmp_path / "bare.ko"
    strip.write_bytes(path.read_bytes().replace(b".debug_", b".xxxxx_"))
    with Server(str(strip), "--call", "hyp_call:1") as server:
        text = run_gdb(server.port, ["break *deep", "continue", "stepi 4", "bt", "kill"], tmp_path)
    assert [line.split(" in ")[1].split(" ")[0] for line in text.splitlines() if line.startswith("#") and " in " in line][:4] == [
        "deep", "deeper", "hyp_call", "handle_host_hcall",
    ]  # fmt: skip


@given(st.integers(0, (1 << 64) - 1))
def test_unsigned_leb_is_read_back(value: int) -> None:
    assert _uleb(uleb(value), 0) == (value, len(uleb(value)))


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_signed_leb_is_read_back(value: int) -> None:
    assert _sleb(sleb(value), 0) == (value, len(sleb(value)))


@given(st.binary(max_size=120))
def test_rules_that_cannot_be_read_are_left_out(data: bytes) -> None:
    for address in (None, 0x1000):
        ModuleFrames(2, 48).add_section(data, address)


def test_a_written_file_is_read_back() -> None:
    sections = [
        ImageSection(".debug_x", b"debug", size=5),
        code_section(".text", 0x2000, b"\x1f\x20\x03\xd5" * 4),
        ImageSection(".bss", b"", 0x1000, 0x100, SHF_ALLOC | SHF_WRITE, SHT_NOBITS),
    ]
    written = write_elf(
        sections,
        [ImageSymbol("there", 0x2004, 4), ImageSymbol("local", 0x1000, 0, bind=STB_LOCAL), ImageSymbol("free", 0x9000)],
    )
    file = ELFFile(io.BytesIO(written))
    assert file["e_entry"] == 0
    assert [section.name for section in file.iter_sections()][1:4] == [".bss", ".text", ".debug_x"]
    assert file.get_section_by_name(".debug_x").data() == b"debug"
    assert symbols(file) == {"": 0, "local": 0x1000, "there": 0x2004, "free": 0x9000}
    assert file.get_section_by_name(".symtab").get_symbol(3)["st_shndx"] == "SHN_ABS"
