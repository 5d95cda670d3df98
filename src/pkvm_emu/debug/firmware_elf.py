"""The emulated hypervisor and kernel as ELF files: their firmware with its source lines, the ops, the stubs of kernel functions.

The firmware's lines are those of its assembly sources, which are installed with the package. Ops and kernel functions that Python
serves have no lines, so that a debugger's ``step`` goes over them.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from pkvm_emu.arch.insn import ERET, NOP, RET, branch_target, is_b, is_bl, is_brk, is_svc
from pkvm_emu.debug.cfi import FrameTable
from pkvm_emu.debug.elfimage import ImageSection, ImageSymbol, code_section, write_elf
from pkvm_emu.debug.firmware_frames import el1_frames, el2_frames, guest_frames
from pkvm_emu.debug.line_table import Function, LineUnit, Row, line_sections
from pkvm_emu.elf.elements import SHF_ALLOC, SHF_WRITE, SHT_NOBITS, STT_FUNC, STT_OBJECT
from pkvm_emu.firmware import image as firmware
from pkvm_emu.hyp.vms import FIRMWARE_OFFSET
from pkvm_emu.kernel import layout

if TYPE_CHECKING:
    from pkvm_emu.firmware.image import FirmwareImage
    from pkvm_emu.system import System

OP_PREFIX = "pkvm_ops_"
_RETURN = "return_to_python"
_LEAD = 4
#: What a return address in Python is called (return addresses are looked up by the byte before them, so the symbol
#: begins early), and what is the end of every backtrace.
PYTHON, OUTERMOST = "called_from_python", "pkvm_emu"
_STUB_CODE = 12
_VECTORS_SIZE = 0x800
#: What the sources are relative to where they are not installed.
_NO_DIRECTORY = "/pkvm-emu"
#: EL2's part of the image for guests; what guests themselves run follows.
_GUEST_TEXT_SIZE = 0x1000


def machine_elf() -> bytes:
    """A program without anything in it: debuggers want one, and do not look for libraries in it."""
    return write_elf([ImageSection(".comment", b"pkvm_emu\0", size=9)], [])


def hypervisor_elf(system: System) -> bytes:
    """The EL2 firmware (that for guests too) with its unwind rules, and a symbol ``pkvm_ops_<name>`` for each op."""
    image, base = firmware.load("el2"), system.hyp.entry("hyp_vectors")
    guest, guest_base = firmware.load("guest"), base + FIRMWARE_OFFSET
    frames = FrameTable()
    el2_frames(frames, base, image.code, image.symbols)
    guest_frames(frames, guest_base, guest.code, guest.symbols)
    ops = system.hyp.ops
    low = min(ops.stubs.values()) - 4
    high = max(ops.stubs.values()) + _STUB_CODE
    code = system.machine.ram.read(system.hyp.stage1.pa_of(low), high - low)
    data_size = len(image.code) - image.text_size
    sections = [
        code_section(".text", base, image.code[: image.text_size]),
        ImageSection(".data", b"", base + image.text_size, data_size, SHF_ALLOC | SHF_WRITE, SHT_NOBITS),
        code_section(".ops", low, code),
        code_section(".guests", guest_base, guest.code[:_GUEST_TEXT_SIZE]),
        *line_sections([_lines(image, base), _lines(guest, guest_base, _GUEST_TEXT_SIZE)]),
    ]
    symbols = _firmware_symbols(image, base)
    for symbol in _firmware_symbols(guest, guest_base):
        if symbol.value < guest_base + _GUEST_TEXT_SIZE:
            symbols.append(symbol)
    for name, address in ops.stubs.items():
        symbols.append(ImageSymbol(OP_PREFIX + name, address, _STUB_CODE))
        frames.add(address, _STUB_CODE, [])
    symbols.append(ImageSymbol("pkvm_module_ops", ops.address, 4096, STT_OBJECT))
    sections.append(_frame_section(frames))
    return write_elf(sections, symbols)


def kernel_elf(system: System) -> bytes:
    """The EL1 firmware with its unwind rules, and the kernel's symbols that modules have been linked to."""
    image, base = firmware.load("el1"), system.kernel.entry("el1_vectors")
    frames = FrameTable()
    el1_frames(frames, base, image.code, image.symbols)
    symbols = _firmware_symbols(image, base)
    kernel = system.kernel.symbols
    start = base - image.symbols["el1_vectors"] - layout.IMAGE_TEXT
    stubs, data = start + layout.IMAGE_STUBS, start + layout.IMAGE_DATA
    for name, address in kernel.addresses.items():
        is_code = stubs <= address < stubs + layout.IMAGE_STUBS_SIZE
        size = kernel.sizes.get(name, 8)
        if is_code:
            frames.add(address, size, [])
        symbols.append(ImageSymbol(name, address, size) if is_code else ImageSymbol(name, address, size, STT_OBJECT))
    sections = [
        code_section(".text", base, image.code),
        code_section(".stubs", stubs, b""),
        ImageSection(".data", b"", data, layout.IMAGE_DATA_SIZE, SHF_ALLOC | SHF_WRITE, SHT_NOBITS),
        _frame_section(frames),
        *line_sections([_lines(image, base)]),
    ]
    used = kernel.next_stub - stubs
    if used:
        code = system.machine.ram.read(system.kernel.memory.to_pa(stubs), used)
        sections[1] = code_section(".stubs", stubs, code)
    else:
        del sections[1]
    return write_elf(sections, symbols)


def _lines(image: FirmwareImage, base: int, size: int | None = None) -> LineUnit:
    """The lines of the first ``size`` bytes of an image; what stands for Python has none."""
    directory = firmware.source_directory()
    root = _NO_DIRECTORY if directory is None else str(directory.parent)
    end = len(image.code) if size is None else size
    entry = image.symbols.get(_RETURN, end)
    rows = [
        Row(base + row.offset, f"firmware/{row.file}", row.line)
        for row in image.rows
        if row.offset < end and not entry - _LEAD <= row.offset < entry + 8
    ]
    starts = {row.address for row in rows}
    functions = [
        Function(symbol.name, symbol.value, symbol.size)
        for symbol in _firmware_symbols(image, base)
        if symbol.type == STT_FUNC and symbol.value in starts
    ]
    return LineUnit(f"firmware/{image.name}.S", root, rows, functions)


def function_labels(image: FirmwareImage) -> set[str]:
    """The labels that begin functions: what is called or jumped to from elsewhere, or follows the end of other code."""
    words = [int.from_bytes(image.code[at : at + 4], "little") for at in range(0, image.text_size, 4)]
    # An image begins with its vectors, which reach everything else by branches.
    ends = [0, _VECTORS_SIZE] + [4 * index + 4 for index, word in enumerate(words) if word in (RET, ERET)]
    targets = ((at, branch_target(words[at // 4], at)) for at in range(0, image.text_size, 4))
    branches = [(at, target) for at, target in targets if target is not None]
    called = {target for at, target in branches if is_bl(words[at // 4])}
    jumped = {target for at, target in branches if bisect_right(ends, target) != bisect_right(ends, at)}
    local = {target for at, target in branches} - jumped
    instructions = {row.offset for row in image.rows}
    found = set()
    for name, offset in image.symbols.items():
        if offset not in instructions:
            continue
        before = words[offset // 4 - 1] if 0 < offset < image.text_size else RET
        # Code that falls through to a label belongs to one function with it, whoever else jumps there.
        follows_end = before in (RET, ERET, NOP, 0) or is_b(before)
        follows_end = follows_end or is_brk(before) is not None or is_svc(before) is not None
        if offset in called or name == _RETURN or offset in ends or (follows_end and offset not in local):
            found.add(name)
    return found


def _frame_section(frames: FrameTable) -> ImageSection:
    return ImageSection(".debug_frame", bytes(frames.data), size=len(frames.data), align=8)


def _firmware_symbols(image: FirmwareImage, base: int) -> list[ImageSymbol]:
    """Labels as functions (code) or objects (data), each up to the next."""
    functions, instructions = function_labels(image), {row.offset for row in image.rows}
    ordered = sorted(
        (offset, name)
        for name, offset in image.symbols.items()
        if not name.endswith("_end") and (offset not in instructions or name in functions)
    )
    symbols = []
    for position, (offset, name) in enumerate(ordered):
        end = ordered[position + 1][0] if position + 1 < len(ordered) else len(image.code)
        if end == image.symbols.get(_RETURN):
            end -= _LEAD
        size = end - offset
        if name not in functions:
            symbols.append(ImageSymbol(name, base + offset, size, STT_OBJECT))
        elif name == _RETURN:
            symbols.append(ImageSymbol(PYTHON, base + offset - _LEAD, 4 + _LEAD))
            symbols.append(ImageSymbol(OUTERMOST, base + offset + 4, 4))
        else:
            symbols.append(ImageSymbol(name, base + offset, size))
    return symbols
