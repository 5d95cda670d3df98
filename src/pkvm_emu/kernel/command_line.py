"""The kernel command line: words, ``name=value`` parameters, and the module parameters among them."""

from __future__ import annotations

import shlex

from pkvm_emu.errors import UsageError

MAX_LENGTH = 2048


class CommandLine:
    """A kernel command line.

    Dashes and underscores in names mean the same, as in the kernel; of a repeated parameter the last one counts.

    >>> line = CommandLine("kvm-arm.mode=protected kvm_arm.protected_modules=a,,b foo.x=1 quiet")
    >>> line.get("kvm-arm.mode"), line.protected_modules, line.module_parameters("foo"), "quiet" in line
    ('protected', ['a', 'b'], [('x', '1')], True)

    Raises:
        UsageError: longer than COMMAND_LINE_SIZE (2048 bytes), or an open quote.
    """

    def __init__(self, text: str = "") -> None:
        if len(text.encode()) >= MAX_LENGTH:
            raise UsageError(
                f"the kernel command line has {len(text.encode())} bytes; the kernel takes {MAX_LENGTH - 1}"
            )
        self.text = text
        try:
            words = shlex.split(text, posix=True)
        except ValueError as error:
            raise UsageError(f"the kernel command line has an open quote: {text!r}") from error
        self._parameters: list[tuple[str, str | None]] = []
        for word in words:
            if word == "--":
                break
            name, equals, value = word.partition("=")
            self._parameters.append((name, value if equals else None))

    def get(self, name: str, default: str | None = None) -> str | None:
        """The value of the last ``name=value``; an empty string for a bare ``name``."""
        wanted = _normal(name)
        for known, value in reversed(self._parameters):
            if _normal(known) == wanted:
                return value or ""
        return default

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and any(_normal(known) == _normal(name) for known, _ in self._parameters)

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


def _normal(name: str) -> str:
    return name.replace("-", "_")
