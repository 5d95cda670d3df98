"""kCFI type ids: the 32-bit word in front of a function, computed from its C prototype.

With ``-fsanitize=kcfi`` an indirect call compares the word at ``target - 4`` with the id of the prototype it was
compiled for. The id is the low half of xxHash64 over the Itanium-mangled function type; kernels built with
``-fsanitize-cfi-icall-experimental-normalize-integers`` (android16) mangle integers by size and sign.
Type aliases are those of the kernel on arm64 (``u64`` is unsigned long long, ``size_t`` unsigned long); all tagged
types mangle alike.

>>> hex(kcfi_type_id("int (void)"))
'0x36b1c5a6'
>>> hex(kcfi_type_id("int (void)", normalised=True))
'0x6fbb3035'
>>> mangle("void (*)(struct user_pt_regs *)")
'PFvP12user_pt_regsE'
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import cast

_MASK = (1 << 64) - 1
_P1, _P2, _P3, _P4, _P5 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)

# C spelling -> Itanium letter.
_BUILTIN = {
    "void": "v",
    "bool": "b",
    "_Bool": "b",
    "char": "c",
    "signed char": "a",
    "unsigned char": "h",
    "short": "s",
    "unsigned short": "t",
    "int": "i",
    "unsigned int": "j",
    "unsigned": "j",
    "long": "l",
    "unsigned long": "m",
    "long long": "x",
    "unsigned long long": "y",
    "u8": "h",
    "s8": "a",
    "u16": "t",
    "s16": "s",
    "u32": "j",
    "s32": "i",
    "u64": "y",
    "s64": "x",
    "size_t": "m",
    "ssize_t": "l",
    "phys_addr_t": "y",
    "dma_addr_t": "y",
    "resource_size_t": "y",
    "gfp_t": "j",
    "pkvm_handle_t": "j",
    "uintptr_t": "m",
}
# Itanium letter -> vendor type of the normalised form.
_NORMALISED = {
    "b": "u2u8",
    "c": "u2u8",
    "a": "u2i8",
    "h": "u2u8",
    "s": "u3i16",
    "t": "u3u16",
    "i": "u3i32",
    "j": "u3u32",
    "l": "u3i64",
    "m": "u3u64",
    "x": "u3i64",
    "y": "u3u64",
}
_TOKEN = re.compile(r"\.\.\.|[A-Za-z_]\w*|[*(),]")
_WORDS = frozenset(["void", "bool", "_Bool", "char", "short", "int", "long", "signed", "unsigned"])


class PrototypeError(ValueError):
    """The text is no C prototype that can be mangled."""


# A type: ("base", letter or name), ("ptr", type), ("const", type) or ("func", result, parameters, variadic).
_Type = tuple[object, ...]


class _Parser:
    """Recursive descent over the declarator syntax; parameter names are skipped."""

    tokens: list[str]

    def __init__(self, text: str) -> None:
        if _TOKEN.sub("", text).strip():
            raise PrototypeError(f"not a C prototype: {text!r}")
        self.text = text
        self.tokens = [*_TOKEN.findall(text), ""]
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at]

    def take(self, expected: str | None = None) -> str:
        token = self.tokens[self.at]
        if expected is not None and token != expected:
            raise PrototypeError(f"{expected!r} expected, {token or 'the end'!r} found in {self.text!r}")
        if not token and expected is None:
            raise PrototypeError(f"the prototype {self.text!r} ends too early")
        self.at += 1
        return token

    def declaration(self) -> _Type:
        """Specifiers, then a declarator."""
        return self.declarator(self.specifiers())

    def specifiers(self) -> _Type:
        const, words, tag = False, [], ""
        while True:
            token = self.peek()
            if token in ("const", "volatile"):
                const |= self.take() == "const"
            elif token in ("struct", "union", "enum"):
                self.take()
                tag = self.take()
            elif token in _WORDS and not tag:
                words.append(self.take())
            elif not words and not tag and token and token not in "*(),":
                words.append(self.take())
                if words[0] not in _BUILTIN:
                    tag = words[0]
            else:
                break
        if not words and not tag:
            raise PrototypeError(f"a type is missing before {self.peek() or 'the end'!r} in {self.text!r}")
        base: _Type = ("base", tag) if tag else ("builtin", self.builtin(words))
        return ("const", base) if const else base

    def builtin(self, words: list[str]) -> str:
        name = " ".join(sorted(words, key=lambda word: word not in ("unsigned", "signed")))
        name = re.sub(r"\b(long|short) int\b", r"\1", name)
        name = re.sub(r"^signed (?!char)", "", name)
        letter = _BUILTIN.get(name)
        if letter is None:
            raise PrototypeError(f"unknown type {name!r} in {self.text!r}")
        return letter

    def declarator(self, base: _Type) -> _Type:
        while self.peek() == "*":
            self.take()
            base = ("ptr", base)
            while self.peek() in ("const", "restrict"):
                if self.take() == "const":
                    base = ("const", base)
        if self.peek() == "(" and self.tokens[self.at + 1] == "*":
            # (*name)(parameters): the pointers in the parentheses bind to the function type that follows.
            self.take("(")
            stars = 0
            while self.peek() == "*":
                self.take()
                stars += 1
            if self.peek() not in ("(", ")"):
                self.take()
            self.take(")")
            base = self.function(base)
            for _ in range(stars):
                base = ("ptr", base)
            return base
        if self.peek() and self.peek() not in "(),":
            self.take()
        return self.function(base) if self.peek() == "(" else base

    def function(self, result: _Type) -> _Type:
        self.take("(")
        parameters: list[_Type] = []
        variadic = False
        while self.peek() != ")":
            if self.peek() == "...":
                self.take()
                variadic = True
            else:
                # Qualifiers of a parameter itself are no part of the function's type.
                parameter = self.declaration()
                if parameter[0] == "const":
                    parameter = cast(_Type, parameter[1])
                parameters.append(("ptr", parameter) if parameter[0] == "func" else parameter)
            if self.peek() != ")":
                self.take(",")
        self.take(")")
        if parameters == [("builtin", "v")]:
            parameters = []
        return ("func", result, tuple(parameters), variadic)


def _normalise(node: _Type) -> _Type:
    """The type with every integer replaced by the vendor type of its size and sign.

    This comes before mangling because equal vendor types substitute each other (u64 and size_t become one type).
    """
    if node[0] == "builtin" and node[1] in _NORMALISED:
        return ("vendor", _NORMALISED[str(node[1])])
    if node[0] in ("ptr", "const"):
        return (node[0], _normalise(cast(_Type, node[1])))
    if node[0] == "func":
        parameters = tuple(_normalise(p) for p in cast(tuple[_Type, ...], node[2]))
        return ("func", _normalise(cast(_Type, node[1])), parameters, node[3])
    return node


def _sequence(index: int) -> str:
    """Itanium numbering of substitutions: nothing, 0 to 9, A to Z, 10, 11, …"""
    if index == 0:
        return ""
    text, rest = "", index - 1
    while True:
        rest, digit = divmod(rest, 36)
        text = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[digit] + text
        if not rest:
            return text


class _Mangler:
    """Itanium type mangling with substitutions, as far as C needs it."""

    def __init__(self) -> None:
        self.seen: list[_Type] = []

    def mangle(self, node: _Type) -> str:
        if node[0] == "builtin":
            return str(node[1])
        if node in self.seen:
            return f"S{_sequence(self.seen.index(node))}_"
        text = self.fresh(node)
        self.seen.append(node)
        return text

    def fresh(self, node: _Type) -> str:
        kind = node[0]
        if kind == "vendor":
            return str(node[1])
        if kind == "base":
            name = str(node[1])
            return f"{len(name)}{name}"
        if kind in ("ptr", "const"):
            return ("P" if kind == "ptr" else "K") + self.mangle(cast(_Type, node[1]))
        body = self.mangle(cast(_Type, node[1]))
        body += "".join(self.mangle(p) for p in cast(tuple[_Type, ...], node[2])) or "v"
        return f"F{body}{'z' if node[3] else ''}E"


def mangle(prototype: str, *, normalised: bool = False) -> str:
    """Itanium mangling of a C type or prototype (``int (u64 pfn, bool)``, ``void (*)(char)``).

    Raises:
        PrototypeError: the text cannot be parsed, or names a type that is neither built in, nor a known alias.
    """
    parser = _Parser(prototype)
    node = parser.declaration()
    parser.take("")
    return _Mangler().mangle(_normalise(node) if normalised else node)


@lru_cache(maxsize=512)
def kcfi_type_id(prototype: str, *, normalised: bool = False) -> int:
    """The kCFI id of a function with this prototype.

    Args:
        prototype: ``result (parameters)``, parameter names allowed. A bare unknown name is taken for a struct
            typedef; enums are written ``enum name``.
        normalised: the kernel normalises integers (android16).

    Raises:
        PrototypeError: the text cannot be parsed.
    """
    text = "_ZTS" + mangle(prototype, normalised=normalised) + (".normalized" if normalised else "")
    return xxh64(text.encode()) & 0xFFFFFFFF


def _rotl(value: int, bits: int) -> int:
    return (value << bits | value >> 64 - bits) & _MASK


def _round(acc: int, lane: int) -> int:
    return _rotl((acc + lane * _P2) & _MASK, 31) * _P1 & _MASK


def xxh64(data: bytes) -> int:
    """xxHash64 of ``data`` with seed 0."""
    length, at = len(data), 0
    if length >= 32:
        lanes = [(_P1 + _P2) & _MASK, _P2, 0, -_P1 & _MASK]
        while at <= length - 32:
            for i in range(4):
                lanes[i] = _round(lanes[i], int.from_bytes(data[at + 8 * i : at + 8 * i + 8], "little"))
            at += 32
        acc = sum(_rotl(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)) & _MASK
        for lane in lanes:
            acc = ((acc ^ _round(0, lane)) * _P1 + _P4) & _MASK
    else:
        acc = _P5
    acc = acc + length & _MASK
    while at + 8 <= length:
        acc = (_rotl(acc ^ _round(0, int.from_bytes(data[at : at + 8], "little")), 27) * _P1 + _P4) & _MASK
        at += 8
    if at + 4 <= length:
        acc = (_rotl(acc ^ int.from_bytes(data[at : at + 4], "little") * _P1 & _MASK, 23) * _P2 + _P3) & _MASK
        at += 4
    for byte in data[at:]:
        acc = _rotl(acc ^ byte * _P5 & _MASK, 11) * _P1 & _MASK
    acc = (acc ^ acc >> 33) * _P2 & _MASK
    acc = (acc ^ acc >> 29) * _P3 & _MASK
    return acc ^ acc >> 32
