"""`%p` and those extensions that name kernel objects: symbols, resources, device-tree nodes, flags (lib/vsprintf.c,
pointer()).

Object layouts read here (struct resource) are the same in all three generations.
"""

from __future__ import annotations

import re
import struct

from pkvm_emu.kernel.vsprintf_env import DeviceNode, FormatEnv
from pkvm_emu.kernel.vsprintf_spec import (
    ERROR_POINTERS,
    SPECIAL,
    ZEROPAD,
    Spec,
    bad_pointer,
    dereferencing,
    error_text,
    extension,
    fixed_hex,
    guest_bytes,
    guest_string,
    number,
    pad,
    raw_pointer,
    string,
)

_SYMBOL = re.compile(r"(?P<name>.*)\+0x(?P<offset>[0-9a-f]+)/(?P<rest>0x[0-9a-f]+)(?P<module> \[.*\])?", re.DOTALL)
_HEX = Spec(SPECIAL)

_RESOURCE = struct.Struct("<QQ8xQ")
"""start, end, (name), flags"""
_RESOURCE_TYPES = (
    (0x100, "io  ", Spec(SPECIAL | ZEROPAD, 6), 16),
    (0x200, "mem ", Spec(SPECIAL | ZEROPAD, 10), 16),
    (0x400, "irq ", Spec(), 10),
    (0x800, "dma ", Spec(), 10),
    (0x1000, "bus ", Spec(ZEROPAD, 2), 16),
)
_RESOURCE_UNKNOWN = (0, "??? ", Spec(SPECIAL | ZEROPAD, 10), 16)
_RESOURCE_UNSET = 0x2000_0000
_RESOURCE_WORDS = ((0x10_0000, " 64bit"), (0x2000, " pref"), (0x20_0000, " window"), (0x1000_0000, " disabled"))

_NODE_FLAGS = ((1, "D"), (2, "d"), (3, "P"), (4, "B"))
_FLAG_SIZES = {"p": 8, "v": 8, "g": 4, "t": 4}


def hashed_pointer(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%p` and every unknown extension: a hash in place of the address. NULL and error pointers carry no secret and
    print as they are.
    """
    if va == 0 or va >= ERROR_POINTERS:
        return raw_pointer(va, spec)
    return raw_pointer(env.hash_pointer(va), spec)


def _named_or_hashed(name: str | None, va: int, spec: Spec, env: FormatEnv) -> str:
    return string(guest_bytes(name), spec) if name is not None else hashed_pointer(va, "", spec, env)


@extension("x")
def plain_address(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%px`: the address itself."""
    return raw_pointer(va, spec)


@extension("K")
def restricted_pointer(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%pK`: what kptr_restrict lets through."""
    if env.kptr_restrict == 0:
        return hashed_pointer(va, letters, spec, env)
    return raw_pointer(va if env.kptr_restrict == 1 else 0, spec)


@extension("e")
def error_pointer(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%pe`: `-EINVAL` for an error pointer (its number if it has no name), else as `%p`."""
    if va < ERROR_POINTERS:
        return hashed_pointer(va, letters, spec, env)
    error = (1 << 64) - va
    name = env.errno_name(error)
    return string(f"-{name}", spec) if name is not None else number(-error, spec, signed=True)


def _symbolize(va: int, env: FormatEnv) -> str | None:
    text = env.symbolize(va)
    return None if text is None else guest_bytes(text)


@extension("Ss")
def symbol(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%pS` name+0xoffset/0xsize [module], `%ps` the same without offset and size; an address that no symbol covers
    in hex.
    """
    text = _symbolize(va, env)
    if text is None:
        return string(f"{va:#x}", spec)
    match = _SYMBOL.fullmatch(text) if letters[0] == "s" else None
    return string(match["name"] + (match["module"] or "") if match else text, spec)


@extension("B")
def backtrace_symbol(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%pB`: as `%pS` for a return address. The call before it is looked up, since a call that never returns may end
    its function.
    """
    match = _SYMBOL.fullmatch(_symbolize(va - 1, env) or "") if va else None
    if match is None:
        return string(f"{va:#x}", spec)
    offset = int(match["offset"], 16) + 1
    return string(f"{match['name']}+{offset:#x}/{match['rest']}{match['module'] or ''}", spec)


@extension("uk")
def probed_string(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%pks`, `%pus`: as `%s`."""
    return guest_string(va, spec, env) if letters[1:2] == "s" else error_text("(einval)", spec)


@dereferencing("a")
def address_value(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%pa`, `%pap`, `%pad`: the phys_addr_t or dma_addr_t at the pointer."""
    return fixed_hex(int.from_bytes(env.read(va, 8), "little"), 8)


@dereferencing("Rr")
def resource(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%pR` [mem 0x...-0x... 64bit pref], `%pr` the same with the flags as a number."""
    start, end, flags = _RESOURCE.unpack(env.read(va, _RESOURCE.size))
    kind = next((row for row in _RESOURCE_TYPES if flags & row[0]), _RESOURCE_UNKNOWN)
    _, name, layout, base = kind
    decode = letters[0] == "R" and kind is not _RESOURCE_UNKNOWN
    if decode and flags & _RESOURCE_UNSET:
        span = "size " + number((end - start + 1) & ((1 << 64) - 1), layout, base)
    else:
        span = number(start, layout, base)
        if start != end:
            span += "-" + number(end, layout, base)
    if decode:
        tail = "".join(word for mask, word in _RESOURCE_WORDS if flags & mask)
    else:
        tail = " flags " + number(flags, _HEX, 16)
    return string(f"[{name}{span}{tail}]", spec)


@dereferencing("G")
def flags(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%pGp`, `%pGg`, `%pGv`, `%pGt`: the flag word at the pointer, by the names that the surroundings know."""
    kind = letters[1:2]
    size = _FLAG_SIZES.get(kind)
    if size is None:
        return error_text("(%pG?)", spec)
    value = int.from_bytes(env.read(va, size), "little")
    rest = value
    words = []
    for mask, name in env.flag_names(kind):
        if rest and rest & mask == mask:
            words.append(guest_bytes(name))
            rest &= ~mask
    if rest:
        words.append(f"{rest:#x}")
    names = "|".join(words)
    return f"{value:#x}({names})" if kind in "pt" else names


@dereferencing("d")
def dentry(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%pd`, `%pd2` to `%pd4`: the last names of a dentry's path."""
    return _named_or_hashed(env.dentry_path(va, _components(letters)), va, spec, env)


@dereferencing("D")
def file(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%pD`: the same for an open file."""
    return _named_or_hashed(env.file_path(va, _components(letters)), va, spec, env)


def _components(letters: str) -> int:
    return int(letters[1]) if letters[1:2] in ("2", "3", "4") else 1


@dereferencing("g")
def block_device(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%pg`: sda1."""
    return _named_or_hashed(env.block_device_name(va), va, spec, env)


@dereferencing("C")
def clock(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%pC`, `%pCn`: a clock's name."""
    return _named_or_hashed(env.clock_name(va), va, spec, env)


@extension("O")
def device_node(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%pOF[fnpPFcC]`: parts of a device-tree node joined by colons, the full name by default."""
    if letters[1:2] != "F":
        return error_text("(%pO?)", spec)
    bad = bad_pointer(va)
    if bad is not None:
        return error_text(bad, spec)
    node = env.of_node(va)
    if node is None:
        return hashed_pointer(va, letters, spec, env)
    known = re.match("[fnpPFcC]*", letters[2:])
    wanted = known.group() if known else ""
    return pad(":".join(_node_part(node, part, spec) for part in wanted or "f"), spec)


def _node_part(node: DeviceNode, part: str, spec: Spec) -> str:
    full_name = guest_bytes(node.full_name)
    last = full_name.rpartition("/")[2] or "/"
    compatible = [guest_bytes(name) for name in node.compatible]
    cut = Spec(precision=spec.precision)
    if part == "f":
        return full_name
    if part == "n":
        return last.partition("@")[0]
    if part == "p":
        return str(node.phandle & 0xFFFF_FFFF)
    if part == "P":
        return string(last, cut)
    if part == "F":
        return string("".join(name if node.flags >> bit & 1 else "-" for bit, name in _NODE_FLAGS), cut)
    if part == "c":
        return string(compatible[0], cut) if compatible else ""
    return ",".join(f'"{string(name, cut)}"' for name in compatible)


@extension("f")
def firmware_node(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%pfw` the full name of a firmware node, `%pfwP` its last part."""
    if letters[1:2] != "w":
        return error_text("(%pf?)", spec)
    bad = bad_pointer(va)
    if bad is not None:
        return error_text(bad, spec)
    node = env.fwnode(va)
    if node is None:
        return hashed_pointer(va, letters, spec, env)
    return pad(_node_part(node, "P" if letters[2:3] == "P" else "f", spec), spec)
