"""``monitor help``."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from pkvm_emu.debug.monitor.registry import COMMANDS, expect, monitor
from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.debug.session import Session


@monitor("help", "[COMMAND]", "list the commands, or say all about one")
def help_command(_session: Session, words: list[str]) -> str:
    """Without a name: the commands, one line each. With a name: what it takes and what it does."""
    expect(words, 0, 1, "help [COMMAND]")
    if not words:
        width = max(len(f"{command.name} {command.arguments}") for command in COMMANDS.values())
        lines = [f"{f'{c.name} {c.arguments}':{width}}  {c.summary}" for _, c in sorted(COMMANDS.items())]
        return "\n".join(lines) + "\n"
    command = COMMANDS.get(words[0])
    if command is None:
        raise UsageError(f"no monitor command {words[0]!r}; monitor help lists the commands")
    text = inspect.getdoc(command.function) or ""
    return f"monitor {command.name} {command.arguments}\n{command.summary}\n\n{text}\n"
