"""Commands that no real shell has: hypercalls, SMCs, and help."""

from __future__ import annotations

from pkvm_emu.errors import UsageError
from pkvm_emu.shell.command import COMMANDS, CommandError, Context, command


def _numbers(words: list[str], limit: int) -> list[int]:
    if len(words) > limit:
        raise CommandError(f"at most {limit} arguments (x1 to x{limit})", 2)
    try:
        return [int(word, 0) & (1 << 64) - 1 for word in words]
    except ValueError:
        bad = next(word for word in words if not _is_number(word))
        raise CommandError(f"{bad}: not a number", 2) from None


def _is_number(word: str) -> bool:
    try:
        int(word, 0)
    except ValueError:
        return False
    return True


@command("hvc", "ID|NAME [ARG...]", "make a hypercall")
def hvc(context: Context) -> int:
    """A hypercall by number (0 to 0xffff, or a whole SMCCC id) or by the name of its EL2 function.

    Prints x0 in words and x1 to x3; the status is 0 when x0 is SMCCC_RET_SUCCESS.
    """
    if not context.arguments:
        raise CommandError("usage: hvc ID|NAME [ARG...]", 2)
    function, *rest = context.arguments
    values = _numbers(rest, 7)
    if _is_number(function):
        result = context.system.hvc(int(function, 0), *values)
    else:
        try:
            result = context.system.call(function, *values)
        except UsageError as error:
            raise CommandError(str(error), 2) from None
    context.out(f"{result}\n")
    return 0 if result.is_success else 1


@command("smc", "ID [ARG...]", "make an SMC")
def smc(context: Context) -> int:
    """An SMC from EL1; the hypervisor traps it. Prints as ``hvc`` does."""
    if not context.arguments:
        raise CommandError("usage: smc ID [ARG...]", 2)
    function, *values = _numbers(context.arguments, 8)
    result = context.system.smc(function, *values)
    context.out(f"{result}\n")
    return 0 if result.is_success else 1


@command("reboot", "[-p] [COMMAND]", "restart the system: notifiers, handlers, PSCI")
def reboot(context: Context) -> int:
    """End the system by a restart (``-p``: by switching off). Nothing runs afterwards."""
    found, words = context.options("p")
    context.system.reboot("poweroff" if "p" in found else "restart", " ".join(words))
    return 0


@command("poweroff", "", "switch the system off")
def poweroff(context: Context) -> int:
    """End the system by switching off."""
    context.system.reboot("poweroff")
    return 0


@command("halt", "", "stop the system")
def halt(context: Context) -> int:
    """End the system by stopping its CPU."""
    context.system.reboot("halt")
    return 0


@command("uname", "[-amnrsv]", "name the kernel")
def uname(context: Context) -> int:
    """The kernel's name, release and machine."""
    from pkvm_emu.kernel.fs.procfs import kernel_release

    found, _ = context.options("amnrsvo")
    texts = {
        "s": "Linux",
        "n": "(none)",
        "r": kernel_release(context.system.kernel),
        "v": "#1 SMP PREEMPT",
        "m": "aarch64",
    }
    chosen = [key for key in texts if key in found or "a" in found] or ["s"]
    context.out(" ".join(texts[key] for key in chosen) + "\n")
    return 0


@command("help", "[COMMAND...]", "list the commands")
def show_help(context: Context) -> int:
    """What each command is for."""
    chosen = context.arguments or sorted(COMMANDS)
    for name in chosen:
        info = COMMANDS.get(name)
        if info is None:
            return context.error(f"no command is called {name}")
        context.out(f"{f'{info.name} {info.usage}'.strip():<44} {info.summary}\n")
    return 0
