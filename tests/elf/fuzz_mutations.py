"""Unsound modules made from sound ones: every mutation is one thing that a broken or hostile file may have.

A mutation gets the bytes of a module and a seeded source of choices, and returns other bytes. It knows the format, so that what
it breaks is reached: a flipped bit in an instruction tells little about a reader.
"""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_FIELDS = ("name", "type", "flags", "addr", "offset", "size", "link", "info", "align", "entsize")
_FORMATS = {
    "name": (0, "<I"),
    "type": (4, "<I"),
    "flags": (8, "<Q"),
    "addr": (16, "<Q"),
    "offset": (24, "<Q"),
    "size": (32, "<Q"),
    "link": (40, "<I"),
    "info": (44, "<I"),
    "align": (48, "<Q"),
    "entsize": (56, "<Q"),
}
SYMTAB, STRTAB, RELA, NOBITS = 2, 3, 4, 8
SYMBOL, RELOCATION = 24, 24
#: Numbers that readers get wrong.
NUMBERS = (
    0, 1, 2, 3, 4, 7, 8, 12, 15, 16, 23, 24, 25, 63, 64, 100, 255, 256, 4095, 4096, 4097, 0x7FFF, 0x8000, 0xFEFF, 0xFF00, 0xFFF1,
    0xFFF2, 0xFFFF, 0x1_0000, 1 << 20, (1 << 24) - 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFF8, 0xFFFF_FFFF, 1 << 32, 1 << 40,
    (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 8, (1 << 64) - 1,
)  # fmt: skip
MAGIC = b"~Module signature appended~\n"
TABLES = (
    ".altinstructions", "__jump_table", "__bug_table", ".hyp.reloc", "__ex_table", ".modinfo", "__versions", "__ksymtab",
    ".gnu.linkonce.this_module", ".hyp.data", ".hyp.rodata", ".note.gnu.build-id", "_hyp_events", ".hyp.printk_fmts",
    ".hyp.event_ids",
)  # fmt: skip


class Header(NamedTuple):
    """A section header, and where it is in the file."""

    at: int
    number: int
    title: str
    type: int
    offset: int
    size: int


def headers(data: bytes) -> list[Header]:
    """The section headers of a sound module, with names."""
    _, _, _, _, _, _, table, _, _, _, _, entry, count, names = _EHDR.unpack_from(data)
    rows = [_SHDR.unpack_from(data, table + entry * n) for n in range(count)]
    strings = rows[names][4]
    found = []
    for number, row in enumerate(rows):
        start = strings + row[0]
        title = data[start : data.index(b"\0", start)].decode("latin-1")
        found.append(Header(table + entry * number, number, title, row[1], row[4], row[5]))
    return found


def put(data: bytes, at: int, fmt: str, value: int) -> bytes:
    """``data`` with one number replaced; the value is cut to the field."""
    size = struct.calcsize(fmt)
    return data[:at] + (value & (1 << 8 * size) - 1).to_bytes(size, "little") + data[at + size :]


def without_debug(data: bytes) -> bytes:
    """The module with its debug sections emptied of meaning: reading source lines takes most of the time of a message."""
    for header in headers(data):
        if header.title.startswith((".debug_", ".rela.debug_")):
            data = put(data, header.at, "<I", 0)
            data = put(data, header.at + 4, "<I", 1)
    return data


def scribble_on_debug(data: bytes, seed: int) -> bytes:
    """The module with other bytes in its debug sections."""
    rng = random.Random(seed)
    found = [h for h in _filled(data) if h.title.startswith(".debug_")]
    for _ in range(rng.choice((1, 3, 20))):
        one = rng.choice(found)
        at = one.offset + rng.randrange(min(one.size, rng.choice((16, 200, 1 << 30))))
        data = put(data, at, "<B", rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256))))
    if rng.randrange(4) == 0:
        one = rng.choice(found)
        data = put(data, one.at + 8, "<Q", 0x800)
        data = (
            data[: one.offset] + struct.pack("<IIQQ", 1, 0, 1 << rng.choice((4, 30, 60)), 1) + data[one.offset + 24 :]
        )
    return data


Mutation = Callable[[bytes, random.Random], bytes]
MUTATIONS: dict[str, Mutation] = {}


def mutation(function: Mutation) -> Mutation:
    """Make a function one of the mutations."""
    MUTATIONS[function.__name__] = function
    return function


def _number(rng: random.Random, data: bytes) -> int:
    choice = rng.randrange(4)
    if choice == 0:
        return rng.choice(NUMBERS)
    if choice == 1:
        return max(0, len(data) + rng.randrange(-64, 64))
    if choice == 2:
        return rng.randrange(len(data) or 1)
    return rng.choice(NUMBERS) + rng.randrange(-9, 9)


def _filled(data: bytes, kind: int | None = None) -> list[Header]:
    return [h for h in headers(data) if h.size and h.type != NOBITS and kind in (None, h.type)]


@mutation
def truncate(data: bytes, rng: random.Random) -> bytes:
    """The file ends early, at a boundary that means something, or one byte beside it."""
    places = [0, 1, 4, 16, 52, 63, 64, len(data) - 1, rng.randrange(len(data))]
    for header in headers(data):
        places += [header.at, header.at + 32, header.offset, header.offset + header.size]
    return data[: max(0, rng.choice(places) + rng.choice((-1, 0, 0, 1)))]


@mutation
def header_field(data: bytes, rng: random.Random) -> bytes:
    """A field of the ELF header: class, byte order, type, machine, table offset, entry size, count, string section."""
    at, fmt = rng.choice(
        [(n, "<B") for n in range(16)]
        + [(16, "<H"), (18, "<H"), (20, "<I"), (40, "<Q"), (52, "<H"), (58, "<H"), (60, "<H"), (62, "<H")] * 3
    )
    return put(data, at, fmt, _number(rng, data))


@mutation
def extended_numbering(data: bytes, rng: random.Random) -> bytes:
    """Section count and string section are said to be in section 0."""
    if rng.randrange(2):
        data = put(data, 60, "<H", 0)
    if rng.randrange(2):
        data = put(data, 62, "<H", 0xFFFF)
    first = headers_at(data)
    data = put(data, first + 32, "<Q", rng.choice((*NUMBERS, 40)))
    return put(data, first + 40, "<I", rng.choice((*NUMBERS, 5)))


def headers_at(data: bytes) -> int:
    """File offset of the section headers."""
    return int.from_bytes(data[40:48], "little")


@mutation
def section_field(data: bytes, rng: random.Random) -> bytes:
    """A field of one or a few section headers."""
    rows = headers(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, fmt = _FORMATS[rng.choice(_FIELDS)]
        data = put(data, rng.choice(rows).at + at, fmt, _number(rng, data))
    return data


@mutation
def overlap(data: bytes, rng: random.Random) -> bytes:
    """A section lies over another one, or over the headers."""
    one, other = rng.choice(headers(data)), rng.choice(_filled(data))
    start = rng.choice((0, 16, headers_at(data), other.offset, other.offset + other.size // 2, other.offset - 1))
    return put(data, one.at + 24, "<Q", start)


@mutation
def terabytes_of_nothing(data: bytes, rng: random.Random) -> bytes:
    """A section without bytes in the file that takes absurdly much memory."""
    one = rng.choice(headers(data))
    data = put(data, one.at + 4, "<I", NOBITS)
    data = put(data, one.at + 8, "<Q", rng.choice((2, 3, 6, 7)))
    return put(data, one.at + 32, "<Q", rng.choice((1 << 27, 1 << 28, 1 << 30, 1 << 42, 1 << 63, (1 << 64) - 1)))


@mutation
def alignment(data: bytes, rng: random.Random) -> bytes:
    """Alignments that are no powers of two, or larger than memory."""
    for one in rng.sample(headers(data), 3):
        data = put(
            data, one.at + 48, "<Q", rng.choice((3, 6, 1 << 12, 1 << 21, 1 << 22, 1 << 31, 1 << 62, 1 << 63, 4095))
        )
    return data


@mutation
def symbol_field(data: bytes, rng: random.Random) -> bytes:
    """Fields of symbols: name, type and binding, section, value, size."""
    table = _filled(data, SYMTAB)[0]
    for _ in range(rng.choice((1, 2, 8))):
        at, fmt = rng.choice(((0, "<I"), (4, "<B"), (5, "<B"), (6, "<H"), (8, "<Q"), (16, "<Q")))
        entry = table.offset + SYMBOL * rng.randrange(table.size // SYMBOL)
        data = put(data, entry + at, fmt, _number(rng, data))
    return data


@mutation
def relocation_field(data: bytes, rng: random.Random) -> bytes:
    """Relocations: offset out of the section, unknown type, bad symbol, absurd addend."""
    table = rng.choice(_filled(data, RELA))
    for _ in range(rng.choice((1, 2, 8))):
        at, fmt = rng.choice(((0, "<Q"), (8, "<I"), (12, "<I"), (16, "<Q")))
        entry = table.offset + RELOCATION * rng.randrange(max(1, table.size // RELOCATION))
        data = put(data, entry + at, fmt, rng.randrange(1100) if at == 8 else _number(rng, data))
    return data


@mutation
def relocation_elsewhere(data: bytes, rng: random.Random) -> bytes:
    """A table of relocations is for another section, or one more than there is."""
    table = rng.choice(_filled(data, RELA))
    return put(data, table.at + 44, "<I", rng.choice((*range(len(headers(data)) + 2), 1 << 31)))


@mutation
def metadata(data: bytes, rng: random.Random) -> bytes:
    """Tables that the loader walks get other numbers; what they name lies elsewhere then."""
    found = [h for h in _filled(data) if h.title in TABLES]
    for _ in range(rng.choice((1, 2, 6))):
        one = rng.choice(found)
        at = one.offset + rng.randrange(one.size)
        width = rng.choice(("<B", "<H", "<I", "<Q"))
        if at + struct.calcsize(width) <= len(data):
            data = put(data, at, width, _number(rng, data))
    return data


@mutation
def metadata_size(data: bytes, rng: random.Random) -> bytes:
    """A table of the loader's is cut, empty, or has no bytes."""
    one = rng.choice([h for h in _filled(data) if h.title in TABLES])
    if rng.randrange(3) == 0:
        return put(data, one.at + 4, "<I", NOBITS)
    return put(data, one.at + 32, "<Q", rng.choice((0, 1, 3, 4, 8, 11, one.size - 1, max(0, one.size - 8))))


@mutation
def without_relocations(data: bytes, rng: random.Random) -> bytes:
    """A table keeps its raw numbers: all references are 0, or point at what was there."""
    one = rng.choice(_filled(data, RELA))
    return put(data, one.at + 4, "<I", 1)


@mutation
def texts_without_end(data: bytes, rng: random.Random) -> bytes:
    """Strings without NULs, in string tables, .modinfo and formats."""
    found = [
        h for h in _filled(data) if h.type == STRTAB or h.title in (".modinfo", ".hyp.printk_fmts", ".rodata.str1.1")
    ]
    one = rng.choice(found)
    fill = bytes([rng.choice((0x41, 0xFF, 0x0A, 0x1B))])
    return data[: one.offset] + fill * one.size + data[one.offset + one.size :]


@mutation
def module_information(data: bytes, rng: random.Random) -> bytes:
    """.modinfo says strange things."""
    found = [h for h in headers(data) if h.title == ".modinfo"]
    if not found:
        return data
    texts = (
        b"name=\n\x1b[31m", b"name=../../x", b"vermagic=999.999.999-android99-\xff", b"vermagic=6.12", b"depends=a,a,,probe,b",
        b"name=", b"=", b"parm=", b"parmtype=a:int", b"import_ns=\xff\xfe", b"license=", b"alias=of:N*T*C",
    )  # fmt: skip
    text = b"\0".join(rng.sample(texts, 4))
    one = found[0]
    return data[: one.offset] + text[: one.size].ljust(one.size, b"\0") + data[one.offset + one.size :]


@mutation
def compressed(data: bytes, rng: random.Random) -> bytes:
    """A section claims to be compressed, and to become enormous."""
    one = rng.choice([h for h in _filled(data) if h.size >= 24] or _filled(data))
    flags = int.from_bytes(data[one.at + 8 : one.at + 16], "little") | 0x800
    data = put(data, one.at + 8, "<Q", flags)
    chdr = struct.pack(
        "<IIQQ", rng.choice((1, 2, 9)), 0, rng.choice((1 << 20, 1 << 40, (1 << 64) - 1)), rng.choice((1, 3))
    )
    return data[: one.offset] + chdr[: one.size] + data[one.offset + min(24, one.size) :]


@mutation
def signature(data: bytes, rng: random.Random) -> bytes:
    """A signature block with lengths that do not fit, or on nothing."""
    body = bytes(rng.randrange(64))
    lengths = rng.choice(((0, 0, 0), (255, 255, 1 << 31), (0, 0, len(body)), (0, 0, len(data)), (1, 2, (1 << 32) - 1)))
    information = struct.pack(">BBBBB3xI", 0, 0, rng.choice((0, 1, 2, 77)), lengths[0], lengths[1], lengths[2])
    image = rng.choice((data, data[:100], b""))
    return image + body + rng.choice((information, information[:5], b"")) + MAGIC


@mutation
def names(data: bytes, rng: random.Random) -> bytes:
    """Sections change their names, so that one is there twice or a needed one is missing."""
    rows = headers(data)
    for _ in range(rng.choice((1, 2, 3))):
        one, other = rng.sample(rows, 2)
        data = put(data, one.at, "<I", int.from_bytes(data[other.at : other.at + 4], "little"))
    return data


@mutation
def other_format(data: bytes, rng: random.Random) -> bytes:
    """Not a module at all."""
    heads = (
        b"",
        b"\x7fELF",
        b"!<arch>\n",
        b"\x1f\x8b",
        b"BC\xc0\xde",
        b"MZ",
        b"\xfd7zXZ\0",
        b"#!/bin/sh\n",
        b"\0" * 64,
        b"\xff" * 200,
    )
    return rng.choice(heads) + rng.choice((b"", data[64:128]))


@mutation
def noise(data: bytes, rng: random.Random) -> bytes:
    """Bytes anywhere."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 4, 32, 256))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


@mutation
def splice(data: bytes, rng: random.Random) -> bytes:
    """A stretch is missing, doubled, or moved."""
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice((1, 8, 64, 1000)))
    return rng.choice(
        (data[:start] + data[end:], data[:end] + data[start:], data[:start] + data[end:] + data[start:end])
    )


class Case(NamedTuple):
    """A mutant, and how to make it again."""

    seed: int
    kind: str
    data: bytes


def mutate(data: bytes, seed: int) -> Case:
    """One mutant of ``data``; the same for the same seed. Now and then two mutations are on top of each other."""
    rng = random.Random(seed)
    kinds = list(MUTATIONS)
    kind = kinds[seed % len(kinds)]
    result = MUTATIONS[kind](data, rng)
    if rng.randrange(8) == 0:
        second = rng.choice(kinds)
        # The first may have left nothing that the second could read.
        with contextlib.suppress(struct.error, ValueError, IndexError, OverflowError):
            result, kind = MUTATIONS[second](result, rng), f"{kind}+{second}"
    return Case(seed, kind, result)


def mutants(data: bytes, first: int, count: int) -> Iterator[Case]:
    """``count`` mutants with the seeds from ``first`` on."""
    for seed in range(first, first + count):
        yield mutate(data, seed)
