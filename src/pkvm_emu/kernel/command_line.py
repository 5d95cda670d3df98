"""The kernel command line: words, ``name=value`` parameters, and the module parameters among them."""

from __future__ import annotations

import shlex

from pkvm_emu.errors import UsageError

MAX_LENGTH = 2048
#: What the kernel reads before it knows the bootconfig (``early_param``).
_EARLY = ("kvm_arm.mode", "kvm_arm.protected_modules")


class CommandLine:
    """A kernel command line.

    Dashes and underscores in names mean the same, as in the kernel; of a repeated parameter the last one counts.

    >>> line = CommandLine("kvm-arm.mode=protected kvm_arm.protected_modules=a,,b foo.x=1 quiet")
    >>> line.get("kvm-arm.mode"), line.protected_modules, line.module_parameters("foo"), "quiet" in line
    ('protected', ['a', 'b'], [('x', '1')], True)

    Args:
        text: what the boot loader passes.
        extra: what bootconfig puts in front of it (``kernel.*`` keys). Early parameters are not looked up there.
        init_arguments: what bootconfig adds behind ``--`` (``init.*`` keys).

    Raises:
        UsageError: longer than COMMAND_LINE_SIZE (2048 bytes), or an open quote.
    """

    def __init__(self, text: str = "", extra: str = "", init_arguments: str = "") -> None:
        length = len(text.encode("utf-8", "surrogateescape"))
        if length >= MAX_LENGTH:
            raise UsageError(f"the kernel command line has {length} bytes; the kernel takes {MAX_LENGTH - 1}")
        separator = " " if " -- " in f" {text} " else " -- "
        self.text = " ".join(part for part in (extra, text) if part)
        if init_arguments:
            self.text += separator + init_arguments
        early = _split(text)
        self._late_only = _split(extra)
        self._parameters: list[tuple[str, str | None]] = [*self._late_only, *early]

    def get(self, name: str, default: str | None = None) -> str | None:
        """The value of the last ``name=value``; an empty string for a bare ``name``."""
        wanted = _normal(name)
        for known, value in reversed(self._visible(wanted)):
            if _normal(known) == wanted:
                return value or ""
        return default

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        wanted = _normal(name)
        return any(_normal(known) == wanted for known, _ in self._visible(wanted))

    @property
    def too_late(self) -> list[str]:
        """Early parameters that come from bootconfig, which the kernel reads after it has looked for them."""
        return [name for name, _ in self._late_only if _normal(name) in _EARLY]

    def _visible(self, name: str) -> list[tuple[str, str | None]]:
        return self._parameters[len(self._late_only) :] if name in _EARLY else self._parameters

    @property
    def protected_modules(self) -> list[str]:
        """The names in ``kvm-arm.protected_modules=``, empty ones left out."""
        return [name for name in (self.get("kvm-arm.protected_modules") or "").split(",") if name]

    def module_parameters(self, module: str) -> list[tuple[str, str | None]]:
        """``(parameter, value)`` of each ``module.parameter[=value]``, in order."""
        prefix = _normal(module) + "."
        return [(name[len(prefix) :], value) for name, value in self._parameters if _normal(name).startswith(prefix)]

    def __str__(self) -> str:
        return self.text


def _split(text: str) -> list[tuple[str, str | None]]:
    try:
        words = shlex.split(text, posix=True)
    except ValueError as error:
        raise UsageError(f"the kernel command line has an open quote: {text!r}") from error
    found: list[tuple[str, str | None]] = []
    for word in words:
        if word == "--":
            break
        name, equals, value = word.partition("=")
        found.append((name, value if equals else None))
    return found


def _normal(name: str) -> str:
    return name.replace("-", "_")
