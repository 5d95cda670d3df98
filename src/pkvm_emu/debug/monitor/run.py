"""What runs: ``break hvc``, ``call``, ``libraries``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.debug.flow import Act
from pkvm_emu.debug.monitor.registry import expect, monitor, number
from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.debug.session import Session

_HCALL_BASE = 0xC600_0000


@monitor("break", "hvc [ID|NAME|off]", "stop before each hypercall, at its handler, and after it")
def break_hypercall(session: Session, words: list[str]) -> str:
    """``break hvc`` stops at all hypercalls, ``break hvc 128`` or ``break hvc HANDLER`` at one, ``break hvc off`` at none. A
    hypercall stops three times: at the HVC at EL1, at the first instruction of its handler at EL2 (or where Python is about to
    answer one of the hypervisor's own), and after the return at EL1.
    """
    expect(words, 1, 2, "break hvc [ID|NAME|off]")
    if words[0] != "hvc":
        raise UsageError("usage: monitor break hvc [ID|NAME|off]")
    stops = session.debugger.hypercalls
    if len(words) == 1:
        stops.enable(None)
    elif words[1] == "off":
        stops.enable(frozenset())
    else:
        stops.enable(frozenset((_function_id(session, words[1]),)))
    return f"{stops.describe()}\n"


def _function_id(session: Session, text: str) -> int:
    system = session.debugger.system
    try:
        return system.function_id(int(text, 0))
    except ValueError:
        pass
    known = system.generation.hypercalls
    short = text.removeprefix("__pkvm_").removeprefix("__kvm_")
    if short in known:
        return _HCALL_BASE | known[short]
    return system.function_id(text)


@monitor("call", "NAME[:ARG,...]", "let the host make a hypercall once what runs now has ended")
def call(session: Session, words: list[str]) -> str:
    """The call is made when the guest goes on and has nothing left to do: set breakpoints, then continue. Its result is printed by
    the command that serves, and by ``monitor results``.
    """
    expect(words, 1, 1, "call NAME[:ARG,...]")
    debugger = session.debugger
    name, _, rest = words[0].partition(":")
    arguments = [number(debugger, text) for text in rest.split(",")] if rest else []
    if len(arguments) > 7:
        raise UsageError(f"{name}: a hypercall takes seven arguments at most")
    function: str | int = int(name, 0) if name[:1].isdigit() else name
    system = debugger.system
    debugger.flow.acts.append(
        Act(f"call {words[0]}", lambda: f"{words[0]} = {system.hvc(system.function_id(function), *arguments)}")
    )
    return f"{words[0]} is made after {debugger.flow.acts[-2].name if len(debugger.flow.acts) > 1 else 'nothing'}\n"


@monitor("results", "", "what the calls so far returned, and what is still to be done")
def results(session: Session, words: list[str]) -> str:
    """One line for the boot and for each call."""
    expect(words, 0, 0, "results")
    flow = session.debugger.flow
    lines = []
    for index, act in enumerate(flow.acts):
        status = "done" if index < flow.position else "running" if index == flow.position else "to be done"
        lines.append(f"{act.name}: {flow.output.get(index, status)}")
    return "\n".join(lines) + "\n"


@monitor("libraries", "", "write the ELF files with symbols to the directory, and list them")
def libraries(session: Session, words: list[str]) -> str:
    """gdb loads them over the connection by itself; lldb takes them with ``target modules add FILE``."""
    expect(words, 0, 0, "libraries")
    from pkvm_emu.debug.debugger import VIRTUAL_DIRECTORY

    found = session.debugger.libraries
    if str(found.directory) == VIRTUAL_DIRECTORY:
        return "".join(f"{library.path} at {library.base:#x}\n" for library in found.present())
    return "".join(f"{path}\n" for path in found.write())
