"""``monitor snap``: keep the state of a stop, and go back to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.debug.monitor.registry import expect, monitor
from pkvm_emu.debug.packets.registry import Go
from pkvm_emu.debug.stops import Resume
from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.debug.session import Session


@monitor("snap", "save|load|list [NAME]", "keep the state of this stop under a name, or go back to one")
def snap(session: Session, words: list[str]) -> str | Go:
    """Memory, registers and everything the hypervisor and the kernel know. A state can be gone back to for as long as the
    run from Python in which it was kept has not returned (the same hypercall, the same init function), and with a history
    until something is changed from the debugger; after ``load`` the debugger has to forget what it knows of registers:
    ``maint flush register-cache`` (gdb), ``process status`` (lldb).
    """
    expect(words, 1, 2, "snap save|load|list [NAME]")
    saved = session.debugger.saved_states
    name = words[1] if len(words) == 2 else "1"
    if words[0] == "list":
        return saved.describe()
    if words[0] == "save":
        saved.save(name)
        return f"state {name!r} is kept\n"
    if words[0] == "load":
        request = saved.load(name)
        if request is not None:
            session.arrival = f"back at state {name!r}"
            return Go(Resume(back=request))
        return f"back at state {name!r}: {session.debugger.describe_cpu(session.cpu)}\n"
    raise UsageError("usage: monitor snap save|load|list [NAME]")
