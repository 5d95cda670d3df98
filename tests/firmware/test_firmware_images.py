"""The shipped firmware is what the sources say, and everything that it asks Python for is answered."""

from __future__ import annotations

import json
import platform
import re
from importlib.resources import files
from pathlib import Path

import pytest

import pkvm_emu
from pkvm_emu.arch.insn import is_hvc
from pkvm_emu.errors import EmulatorError
from pkvm_emu.firmware import image as firmware
from pkvm_emu.firmware.assemble import assemble, main, read_source
from pkvm_emu.machine.profile import MachineProfile

SOURCES = Path(__file__).parents[2] / "firmware"
NAMES = sorted(path.stem for path in SOURCES.glob("*.S"))
VECTOR_LABEL = {"el1": "el1_vectors", "el2": "hyp_vectors", "guest": "guest_vectors"}
HAS_KEYSTONE_WHEEL = platform.machine() in ("x86_64", "AMD64")


@pytest.fixture(autouse=True)
def _assembler(request: pytest.FixtureRequest) -> None:
    if "assembled" in request.fixturenames and not HAS_KEYSTONE_WHEEL:
        pytest.importorskip("keystone")


@pytest.fixture(scope="module")
def assembled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All sources, assembled now."""
    output = tmp_path_factory.mktemp("images")
    main([str(SOURCES), str(output)])
    return output


def test_every_source_has_an_image_and_every_image_a_source() -> None:
    shipped = {entry.name.removesuffix(".json") for entry in files(firmware.__package__).joinpath("images").iterdir()}
    assert shipped == set(NAMES)
    assert {"el1", "el2"} <= shipped


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_image_is_what_the_source_assembles_to(assembled: Path, name: str) -> None:
    shipped = json.loads(files(firmware.__package__).joinpath("images", f"{name}.json").read_text())
    fresh = json.loads((assembled / f"{name}.json").read_text())
    assert fresh["words"].split() == shipped["words"].split(), f"firmware/{name}.S changed: assemble it again"
    assert fresh == shipped


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_whole_pages_and_every_label_lies_in_it(name: str) -> None:
    image = firmware.load(name)
    assert len(image.code) % 4096 == 0
    assert image.text_size % 4096 == 0
    assert all(0 <= offset <= len(image.code) for offset in image.symbols.values())
    assert image.symbols["image_end"] == len(image.code)


@pytest.mark.parametrize("name", NAMES)
def test_the_vectors_are_aligned_and_each_slot_holds_instructions(name: str) -> None:
    image = firmware.load(name)
    base = image.symbols[VECTOR_LABEL[name]]
    assert base % 2048 == 0
    for slot in range(16):
        first = int.from_bytes(image.code[base + slot * 128 : base + slot * 128 + 4], "little")
        # A branch away, the service of the slot, or (host synchronous) a push of two registers.
        assert first >> 26 == 0b000101 or is_hvc(first) == 0x8000 or (slot == 8 and first == 0xA9BF07E0), slot


def test_the_el1_vector_labels_are_128_bytes_apart_in_the_architectures_order() -> None:
    symbols = firmware.load("el1").symbols
    wanted = [
        f"vector_{source}_{kind}"
        for source in ("el1t", "el1h", "el0", "el0_32")
        for kind in ("sync", "irq", "fiq", "serror")
    ]
    assert [symbols[label] - symbols["el1_vectors"] for label in wanted] == [128 * slot for slot in range(16)]


def labels_of_services(name: str) -> dict[str, int]:
    """Labels whose first instruction is a service HVC."""
    image = firmware.load(name)
    return {
        label: offset
        for label, offset in image.symbols.items()
        if offset + 4 <= image.text_size
        and (is_hvc(int.from_bytes(image.code[offset : offset + 4], "little")) or 0) & 0x8000
    }


def test_every_op_label_of_the_source_is_a_service() -> None:
    text = read_source(SOURCES / "el2.S")
    named = set(re.findall(r"^(op_\w+):", text, re.MULTILINE))
    assert named
    assert named <= labels_of_services("el2").keys()


#: What only tracing installs.
OPTIONAL = {"op_enter", "op_leave"}


@pytest.mark.parametrize("generation", ["14", "15", "16"])
def test_every_service_label_has_somebody_behind_it(generation: str) -> None:
    system = pkvm_emu.boot(generation, profile=MachineProfile(ram_size=64 << 20))
    services = system.machine.core.services
    for name, owner, level in (("el1", system.kernel, 1), ("el2", system.hyp, 2)):
        labels = labels_of_services(name)
        assert labels
        for label in labels:
            # el1_vectors is the same place as its first slot.
            service = services.get(owner.entry(label) + 4)
            if service is None and label in OPTIONAL:
                assert system.hyp.data_pa("config_tracing")
                assert system.machine.ram.read_u32(system.hyp.data_pa("config_tracing")) == 0
                continue
            assert service is not None, f"{name}: {label} is asked for and nobody answers"
            assert service.el == level, label


def test_no_service_instruction_lies_outside_of_a_label() -> None:
    for name in NAMES:
        image = firmware.load(name)
        places = set(image.symbols.values())
        for offset in range(0, image.text_size, 4):
            immediate = is_hvc(int.from_bytes(image.code[offset : offset + 4], "little"))
            if immediate is not None and immediate & 0x8000:
                assert offset in places, f"{name}+{offset:#x}"


# The assembler


@pytest.mark.usefixtures("assembled")
def test_local_labels_and_macros_are_expanded() -> None:
    code, labels = assemble(
        """
.macro ADD_TO register, amount
        add     \\register, \\register, #\\amount
.endm
start:  mov     x0, #0          // a comment: with a colon
1:      ADD_TO x0, 2
        cbz     x1, 1f
        b       1b
1:      mrs     x2, TPIDR_EL2
        msr     VBAR_EL1, x3
end:    ret
image_end:
"""
    )
    words = [int.from_bytes(code[i : i + 4], "little") for i in range(0, len(code), 4)]
    assert words == [0xD2800000, 0x91000800, 0xB4000041, 0x17FFFFFE, 0xD53CD042, 0xD518C003, 0xD65F03C0]
    assert labels == {"start": 0, "end": 24, "image_end": 28}


def test_parts_are_read_in_the_order_in_which_they_are_included(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "b.S").write_text("b: ret\n")
    (tmp_path / "whole" / "a.S").write_text('a: ret\n.include "deep/c.S"\n')
    (tmp_path / "whole" / "deep").mkdir()
    (tmp_path / "whole" / "deep" / "c.S").write_text("c: ret\n")
    source = tmp_path / "whole.S"
    source.write_text('start: nop\n    .include "whole/b.S"\n.include "whole/a.S"\nimage_end:\n')
    assert re.findall(r"^(\w+):", read_source(source), re.MULTILINE) == ["start", "b", "a", "c", "image_end"]
    source.write_text('.include "whole/d.S"\n')
    with pytest.raises(EmulatorError, match=r"whole\.S includes whole/d\.S, which is not there"):
        read_source(source)


def test_every_part_of_a_source_is_included_once() -> None:
    for name in NAMES:
        parts = sorted(path.relative_to(SOURCES).as_posix() for path in (SOURCES / name).glob("*.S"))
        included = re.findall(r'^\s*\.include "([^"]+)"', (SOURCES / f"{name}.S").read_text(), re.MULTILINE)
        assert sorted(included) == parts


@pytest.mark.usefixtures("assembled")
def test_text_that_is_no_assembly_is_refused_in_one_line() -> None:
    with pytest.raises(EmulatorError, match="keystone refuses the firmware"):
        assemble("start: frobnicate x0\nimage_end:\n")
