"""What Tab offers: commands, module names, hypercalls, paths of the emulated system."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pkvm_emu.kernel.fs import Directory
from pkvm_emu.shell.command import COMMANDS

if TYPE_CHECKING:
    from pkvm_emu.shell.interpreter import Shell


def completions(shell: Shell, line: str) -> list[str]:
    """The words that could stand at the end of ``line``, sorted.

    Args:
        shell: whose system and working directory count.
        line: the text before the cursor.
    """
    current = re.split(r"[;|&(]", line)[-1].lstrip()
    words = re.split(r"\s+", current)
    prefix = re.split(r"[<>]", words[-1])[-1]
    if len(words) == 1 and not re.search(r"[<>]", current):
        return sorted(f"{name} " for name in COMMANDS if name.startswith(prefix))
    command = words[0]
    names: list[str] = []
    if command == "modprobe":
        names = list(shell.modules)
    elif command == "rmmod":
        names = list(shell.system.modules)
    elif command == "hvc" and len(words) == 2:
        names = [name for module in shell.system.modules.values() for name in module.hypercalls]
    if names:
        return sorted(f"{name} " for name in names if name.startswith(prefix))
    return _paths(shell, prefix)


def _paths(shell: Shell, prefix: str) -> list[str]:
    head, slash, start = prefix.rpartition("/")
    directory = shell.fs.find(shell.absolute(head + slash or "."))
    if not isinstance(directory, Directory):
        return []
    found = []
    for name in sorted(directory.entries()):
        if name.startswith(start):
            is_directory = isinstance(directory.lookup(name), Directory)
            found.append(f"{head}{slash}{name}{'/' if is_directory else ' '}")
    return found
