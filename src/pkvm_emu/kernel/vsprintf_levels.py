"""The log-level prefix of a printk message (include/linux/kern_levels.h): byte 0x01, then a digit or `c`."""

from __future__ import annotations

from typing import NamedTuple

SOH = "\x01"
LEVEL_NAMES = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
"""Index is the level."""


class PrintkText(NamedTuple):
    """A printk message without its prefix.

    level: 0 (emerg) to 7 (debug), None when the message gives none and the default level applies;
    text: the message; continued: KERN_CONT, it goes on from the message before it.
    """

    level: int | None
    text: str
    continued: bool


def parse_printk_level(text: str) -> PrintkText:
    """Split the prefixes off a formatted message. The first digit counts when several follow one another
    (kernel/printk/printk.c).
    """
    level: int | None = None
    continued = False
    position = 0
    while text.startswith(SOH, position):
        code = text[position + 1 : position + 2]
        if code == "c":
            continued = True
        elif code and code in "01234567":
            level = int(code) if level is None else level
        else:
            break
        position += 2
    return PrintkText(level, text[position:], continued)
