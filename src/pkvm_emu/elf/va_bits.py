"""For how many address bits a module was compiled: VA_BITS of its kernel, read off the constants in its EL1 code.

``PAGE_OFFSET`` is -2^VA_BITS, and every ``virt_to_phys``, ``phys_to_virt`` and ``virt_to_page`` is inlined:

* ``virt_to_phys`` adds 2^VA_BITS, and shifts the sum right by VA_BITS - 1 to see whether it lies in the linear map.
* ``phys_to_virt`` ORs -2^VA_BITS, or adds it.
* ``virt_to_page`` and ``is_vmalloc_addr`` use the start of the vmemmap and the end of the linear map, -2^(VA_BITS - 1).
* KASAN builds with inlined checks add the offset of the shadow.

Sources: ``arch/arm64/include/asm/memory.h`` of 5.15 to 6.12, ``arch/arm64/Kconfig`` (KASAN_SHADOW_OFFSET).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from struct import unpack_from
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.arch.constants import MadeConstant, lsr_immediate, made_constants

if TYPE_CHECKING:
    from pkvm_emu.elf.elements import Section
    from pkvm_emu.elf.object_file import ObjectFile

KNOWN_VA_BITS = (39, 48)
_TOP = 1 << 64
#: How far the test of a linear-map address may be from the subtraction, and either from the load of memstart_addr, in words.
_NEAR = 32
#: KASAN_SHADOW_OFFSET: value, VA_BITS, and the byte that makes the shadow say "accessible".
_SHADOWS = {
    0xDFFF_FFC0_0000_0000: (39, 0x00),
    0xDFFF_8000_0000_0000: (48, 0x00),
    0xEFFF_FFC0_0000_0000: (39, 0xFF),
    0xEFFF_8000_0000_0000: (48, 0xFF),
}
_GENERIC_SHIFT, _TAGS_SHIFT = 3, 4


class VaBits(NamedTuple):
    """The address bits that a module was compiled for.

    Attributes:
        bits: 39 or 48.
        reason: the constant and the place that tell.
    """

    bits: int
    reason: str


class InlinedShadow(NamedTuple):
    """The KASAN shadow that code reads by itself: ``(address >> shift) + offset``.

    Attributes:
        offset: KASAN_SHADOW_OFFSET.
        shift: 3 (generic) or 4 (software tags).
        va_bits: of the kernel with that offset.
        accessible: a shadow byte that lets every access through.
    """

    offset: int
    shift: int
    va_bits: int
    accessible: int


class _Evidence(NamedTuple):
    bits: int
    is_strong: bool
    section: int
    offset: int
    what: str


def _weak_constants() -> dict[int, tuple[int, str]]:
    table = {}
    for bits in KNOWN_VA_BITS:
        table[_TOP - (1 << bits)] = (bits, "PAGE_OFFSET")
        table[_TOP - (1 << bits - 1)] = (bits, "PAGE_END")
        table[_TOP - (1 << bits - 6)] = (bits, "VMEMMAP_START")
        table[_TOP - (1 << 30) - (1 << bits - 7)] = (bits, "VMEMMAP_START")
    return table


_WEAK = _weak_constants()
_NEGATED = {1 << bits: bits for bits in KNOWN_VA_BITS}


def detect_va_bits(file: ObjectFile) -> VaBits | None:
    """The address bits that the EL1 code of a module computes with; None where it does not say, or says two things.

    What stands beside a use of ``memstart_addr``, or is the whole pattern of ``virt_to_phys``, counts before single constants.
    """
    evidence = [found for section in _el1_code(file) for found in _evidence(file, section)]
    evidence = [found for found in evidence if found.is_strong] or evidence
    votes = Counter(found.bits for found in evidence).most_common()
    if not votes or (len(votes) > 1 and votes[0][1] == votes[1][1]):
        return None
    first = next(found for found in evidence if found.bits == votes[0][0])
    return VaBits(first.bits, f"{first.what} at {file.describe(first.section, first.offset)}")


def detect_inlined_shadow(file: ObjectFile) -> InlinedShadow | None:
    """The KASAN shadow that the code of a module was compiled to read; None where checks are calls, or there are none."""
    for section in _el1_code(file):
        for constant in made_constants(_words(section)):
            known = _SHADOWS.get(constant.value)
            if known is not None:
                shift = _GENERIC_SHIFT if known[1] == 0 else _TAGS_SHIFT
                return InlinedShadow(constant.value, shift, *known)
    return None


def _el1_code(file: ObjectFile) -> Iterator[Section]:
    return (part for part in file.sections if part.is_code and part.is_alloc and not part.name.startswith(".hyp."))


def _words(section: Section) -> tuple[int, ...]:
    return unpack_from(f"<{len(section.data) // 4}I", section.data)


def _evidence(file: ObjectFile, section: Section) -> Iterator[_Evidence]:
    words = _words(section)
    physical = [
        entry.offset // 4
        for entry in file.relocations_of(section.index)
        if file.symbols[entry.symbol].name == "memstart_addr"
    ]
    for constant in made_constants(words):
        index, value = constant.position, constant.value
        is_near = any(abs(index - place) <= _NEAR for place in physical)
        if value in _WEAK:
            bits, name = _WEAK[value]
            yield _Evidence(bits, is_near, section.index, index * 4, f"{name} {value:#x}")
        elif value in _NEGATED and not constant.is_or and (is_near or _is_tested(words, constant)):
            bits = _NEGATED[value]
            yield _Evidence(bits, True, section.index, index * 4, f"virt_to_phys with PAGE_OFFSET {_TOP - value:#x}")
        elif value in _SHADOWS:
            yield _Evidence(_SHADOWS[value][0], True, section.index, index * 4, f"KASAN shadow offset {value:#x}")


def _is_tested(words: tuple[int, ...], constant: MadeConstant) -> bool:
    """Whether a shift by VA_BITS - 1 follows, as ``virt_to_phys`` makes it."""
    wanted = constant.value.bit_length() - 2
    return any(lsr_immediate(word) == wanted for word in words[constant.position : constant.position + _NEAR])
