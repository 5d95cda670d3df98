"""Boot configuration: the key-value text that a boot loader appends to the initramfs (Android: ``androidboot.*``).

Source: Documentation/admin-guide/bootconfig.rst, ``lib/bootconfig.c``, ``fs/proc/bootconfig.c``, ``init/main.c``.
"""

from __future__ import annotations

import re

from pkvm_emu.elf.elements import printable
from pkvm_emu.errors import InputError

#: XBC_DATA_MAX, XBC_NODE_MAX and XBC_KEYLEN_MAX.
DATA_MAX, KEYS_MAX, KEY_MAX = 32768 - 1, 8192, 256
_TRAILER = b"#BOOTCONFIG\n"
_TRAILER_SIZE = len(_TRAILER) + 8
_DEPTH_MAX = 16
_TOKEN = re.compile(
    r"""[ \t\r]*(?:\#[^\n]*)?(?:(?P<end>[\n;])|(?P<brace>[{}])|(?P<op>[:+]?=)|(?P<comma>,)
    |"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<word>[^ \t\r\n;{}=,\#"'+:]+|[+:]))""",
    re.VERBOSE,
)
_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


class BootConfig:
    """Keys and their values, in order.

    >>> config = BootConfig.parse("androidboot.hardware = akita; kernel { quiet; foo.x = 1, 2 }")
    >>> config.values["androidboot.hardware"], config.command_line("kernel")
    (['akita'], 'quiet foo.x=1 foo.x=2')
    """

    def __init__(self) -> None:
        self.values: dict[str, list[str]] = {}

    @classmethod
    def parse(cls, text: str | bytes, name: str = "bootconfig") -> BootConfig:
        """Parse a bootconfig text.

        Raises:
            InputError: where it breaks the format, or is larger than the kernel takes.
        """
        if isinstance(text, bytes):
            text = text.rstrip(b"\0").decode("utf-8", "replace")
        if len(text) > DATA_MAX:
            raise InputError(f"{name}: {len(text)} bytes; the kernel takes {DATA_MAX}")
        config = cls()
        _Parser(text, name, config.values).run()
        return config

    def command_line(self, root: str, always_quoted: bool = False) -> str:
        """What the keys below ``root`` (``kernel``, ``init``) add to the command line.

        Args:
            root: first part of the keys.
            always_quoted: put every value in quotes, as kernels before 6.11 do; else only one with white space.
        """
        words = []
        for key, values in self.values.items():
            short = key.removeprefix(f"{root}.")
            if short == key:
                continue
            if not values:
                words.append(short)
            for value in values:
                quote = '"' if always_quoted or re.search(r"[ \t\r\n]", value) else ""
                words.append(f"{short}={quote}{value}{quote}")
        return " ".join(words)

    def proc_text(self) -> str:
        """``/proc/bootconfig``, without the comment about the boot loader's command line."""
        lines = []
        for key, values in self.values.items():
            texts = [f"'{value}'" if '"' in value else f'"{value}"' for value in values]
            lines.append(key + " = " + (", ".join(texts) or '""') + "\n")
        return "".join(lines)

    @property
    def node_count(self) -> int:
        """Nodes of the kernel's tree: each word of the keys once, and each value."""
        words = {
            tuple(parts[: count + 1])
            for key in self.values
            for parts in [key.split(".")]
            for count in range(len(parts))
        }
        return len(words) + sum(len(values) for values in self.values.values())

    def __len__(self) -> int:
        return len(self.values)


def split_trailer(data: memoryview, name: str) -> tuple[memoryview, memoryview]:
    """Cut the bootconfig that a boot loader has appended off an initramfs: the archives, and the text (or nothing).

    Raises:
        InputError: a trailer whose size or checksum is wrong.
    """
    # The boot loader may pad behind the magic, and the kernel looks up to three bytes back.
    for padding in range(4):
        end = len(data) - padding
        if end >= _TRAILER_SIZE and bytes(data[end - len(_TRAILER) : end]) == _TRAILER:
            break
    else:
        return data, memoryview(b"")
    tail = bytes(data[end - _TRAILER_SIZE : end])
    size, checksum = int.from_bytes(tail[:4], "little"), int.from_bytes(tail[4:8], "little")
    start = end - _TRAILER_SIZE - size
    if start < 0 or size > DATA_MAX + 4:
        raise InputError(f"{name}: bootconfig size {size} is wrong")
    text = data[start : start + size]
    if sum(text) & 0xFFFF_FFFF != checksum:
        raise InputError(f"{name}: bootconfig checksum failed")
    return data[:start], text


class _Parser:
    def __init__(self, text: str, name: str, values: dict[str, list[str]]) -> None:
        self._text = text
        self._name = name
        self._values = values
        self._position = 0
        self._prefixes: list[str] = []

    def run(self) -> None:
        while True:
            kind, text = self._token()
            if kind == "eof":
                break
            if kind == "end":
                continue
            if kind == "brace" and text == "}":
                if not self._prefixes:
                    raise self._error("an unexpected closing brace")
                self._prefixes.pop()
                continue
            if kind != "word" or not _KEY.fullmatch(text):
                raise self._error(f"{printable(text)!r} is no key")
            self._statement(text)
        if self._prefixes:
            raise self._error("a brace is not closed")

    def _statement(self, word: str) -> None:
        key = f"{self._prefixes[-1]}.{word}" if self._prefixes else word
        if len(key) >= KEY_MAX:
            raise self._error("a key is too long")
        before = self._position
        kind, text = self._token()
        if kind == "brace" and text == "{":
            if len(self._prefixes) >= _DEPTH_MAX:
                raise self._error("braces are nested too deeply")
            self._prefixes.append(key)
        elif kind == "op":
            self._assign(key, text, self._value_list())
        elif kind in ("end", "eof") or (kind == "brace" and text == "}"):
            self._position = before
            self._set(key, [])
        else:
            raise self._error(f"{printable(text)!r} after the key {key}")

    def _assign(self, key: str, operator: str, values: list[str]) -> None:
        if operator == "+=":
            values = [*self._values.get(key, []), *values]
        elif operator == "=" and self._values.get(key):
            raise self._error(f"the value of {key} is redefined")
        self._set(key, values)

    def _set(self, key: str, values: list[str]) -> None:
        self._values[key] = values
        if len(self._values) > KEYS_MAX:
            raise self._error("too many keys")

    def _value_list(self) -> list[str]:
        values = []
        while True:
            values.append(self._value())
            before = self._position
            kind, text = self._token()
            if kind == "comma":
                # An array may go on in the next line.
                while True:
                    here = self._position
                    if self._token()[0] != "end":
                        self._position = here
                        break
                continue
            if kind not in ("end", "eof") and (kind, text) != ("brace", "}"):
                raise self._error(f"{printable(text)!r} after a value")
            self._position = before
            return values

    def _value(self) -> str:
        quoted = re.compile(r"[ \t\r]*(?:\"([^\"]*)\"|'([^']*)')").match(self._text, self._position)
        if quoted:
            self._position = quoted.end()
            return quoted[1] if quoted[1] is not None else quoted[2]
        plain = re.compile(r"[ \t\r]*([^\n;,}#]*)").match(self._text, self._position)
        assert plain is not None
        self._position = plain.end()
        return plain[1].rstrip()

    def _token(self) -> tuple[str, str]:
        found = _TOKEN.match(self._text, self._position)
        if found is None:
            rest = re.compile(r"[ \t\r]*(?:\#[^\n]*)?").match(self._text, self._position)
            assert rest is not None
            if rest.end() == len(self._text):
                self._position = rest.end()
                return "eof", ""
            raise self._error(f"{printable(self._text[rest.end()])!r} is not expected")
        self._position = found.end()
        kind = found.lastgroup or "word"
        return kind, found[kind]

    def _error(self, what: str) -> InputError:
        line = self._text.count("\n", 0, self._position) + 1
        return InputError(f"{self._name}: bad bootconfig, line {line}: {what}")
