"""What a step does: one function an action, found by its name in the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkvm_emu.abi.errno import errno_name, errno_number
from pkvm_emu.errors import UsageError
from pkvm_emu.testing.recipe import find_file

if TYPE_CHECKING:
    from pkvm_emu.system import System

_MASK64 = (1 << 64) - 1


@dataclass(slots=True)
class Outcome:
    """What came of a step, by the names that expectations have for it."""

    values: dict[str, Any] = field(default_factory=dict)
    text: str | None = None
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """The system that steps are done on, and where the file is."""

    system: System
    directory: Path


Action = Callable[[Context, Mapping[str, Any]], Outcome]
ACTIONS: dict[str, Action] = {}


def action(name: str) -> Callable[[Action], Action]:
    """Register what does a step of this name."""

    def register(function: Action) -> Action:
        ACTIONS[name] = function
        return function

    return register


def perform(context: Context, table: Mapping[str, Any]) -> Outcome:
    """Do one step, on the CPU that it names."""
    (name,) = [name for name in ACTIONS if name in table]
    with context.system.on_cpu(table["cpu"]) if "cpu" in table and name != "power" else nullcontext():
        return ACTIONS[name](context, table)


def number(value: int | str) -> int:
    """A number of the file as an unsigned register: an integer, a string in any base, or an errno by name.

    >>> number("-EPERM") == (1 << 64) - 1
    True

    Raises:
        UsageError: none of these.
    """
    if isinstance(value, int):
        return value & _MASK64
    text = value.strip()
    try:
        if text.lstrip("-").startswith("E"):
            return -errno_number(text.lstrip("-")) & _MASK64
        return int(text.replace("_", ""), 0) & _MASK64
    except (KeyError, ValueError) as error:
        raise UsageError(f"{value!r} is neither a number nor an errno") from error


def address(system: System, value: int | str) -> int:
    """An address of the file: a number, or a symbol of a module at EL1 with an offset, by its physical address."""
    if isinstance(value, int):
        return value
    name, _, offset = value.partition("+")
    try:
        return int(value, 0)
    except ValueError:
        for module in system.modules.values():
            va = module.symbol(name.strip())
            if va is not None:
                return system.kernel.memory.to_pa(va) + (number(offset) if offset else 0)
    raise UsageError(f"{value!r} is neither an address nor a symbol of a loaded module")


def _registers(result: Any) -> Outcome:
    values = {f"x{index}": value for index, value in enumerate(result)}
    return Outcome({**values, "status": result.status}, summary=str(result))


def _arguments(table: Mapping[str, Any]) -> list[int]:
    return [number(value) for value in table.get("args", ())]


@action("hvc")
def _hvc(context: Context, table: Mapping[str, Any]) -> Outcome:
    system = context.system
    return _registers(system.hvc(system.function_id(table["hvc"]), *_arguments(table)))


@action("smc")
def _smc(context: Context, table: Mapping[str, Any]) -> Outcome:
    return _registers(context.system.smc(number(table["smc"]), *_arguments(table)))


@action("load")
def _load(context: Context, table: Mapping[str, Any]) -> Outcome:
    from pkvm_emu.kernel.modules import ModuleLoadError

    file = find_file(table["load"], (context.directory,), "module")
    parameters = [(name, str(value)) for name, value in table.get("parameters", {}).items()]
    try:
        module = context.system.load(file, parameters)
    except ModuleLoadError as error:
        return Outcome({"errno": errno_name(error.errno)}, summary=str(error))
    return Outcome({"errno": None}, summary=f"{module.name} is loaded")


@action("read")
def _read(context: Context, table: Mapping[str, Any]) -> Outcome:
    return _file_access(lambda: context.system.fs.read(table["read"]))


@action("write")
def _write(context: Context, table: Mapping[str, Any]) -> Outcome:
    return _file_access(lambda: str(context.system.fs.write(table["write"], table["text"])))


def _file_access(access: Callable[[], str]) -> Outcome:
    from pkvm_emu.kernel.fs.node import FsError

    try:
        text = access()
    except FsError as error:
        return Outcome({"errno": errno_name(-error.errno)}, text="", summary=str(error))
    return Outcome({"errno": None}, text=text, summary=repr(text))


@action("shell")
def _shell(context: Context, table: Mapping[str, Any]) -> Outcome:
    from pkvm_emu.shell.session import Session

    printed = bytearray()
    session = Session(context.system, printed.extend)
    try:
        status = session.run(table["shell"])
    finally:
        session.close()
    text = printed.decode("utf-8", "replace")
    return Outcome({"status": status}, text=text, summary=f"status {status}, printed {text!r}")


@action("host_read")
def _host_read(context: Context, table: Mapping[str, Any]) -> Outcome:
    host = context.system.host
    place = address(context.system, table["host_read"])
    return _access(host.read(place, table.get("size", 8), el=table.get("el", 1)))


@action("host_write")
def _host_write(context: Context, table: Mapping[str, Any]) -> Outcome:
    host, value = context.system.host, number(table["value"])
    place, size = address(context.system, table["host_write"]), table.get("size", 8)
    return _access(host.write(place, value & ((1 << 8 * size) - 1), size, el=table.get("el", 1)))


@action("host_execute")
def _host_execute(context: Context, table: Mapping[str, Any]) -> Outcome:
    place = address(context.system, table["host_execute"])
    return _access(context.system.host.execute(place, el=table.get("el", 1)))


def _access(access: Any) -> Outcome:
    fault = None if access.fault is None else str(access.fault)
    return Outcome({"value": access.value, "fault": fault}, summary=str(access))


@action("irq")
def _irq(context: Context, table: Mapping[str, Any]) -> Outcome:
    irq = context.system.irq
    handled = bool(irq.fire(irq.number(table["irq"])))
    return Outcome({"handled": handled}, summary="handled" if handled else "not handled")


@action("power")
def _power(context: Context, table: Mapping[str, Any]) -> Outcome:
    cpu, event = context.system.cpu(table["cpu"]), table["power"]
    if event in ("on", "off"):
        cpu.online = event == "on"
    else:
        getattr(cpu, event)()
    return Outcome({}, summary=repr(cpu))


@action("poke")
def _poke(context: Context, table: Mapping[str, Any]) -> Outcome:
    place = address(context.system, table["poke"])
    context.system.mmio.poke(place, number(table["value"]), table.get("size", 4))
    return Outcome({}, summary=f"{place:#x}")
