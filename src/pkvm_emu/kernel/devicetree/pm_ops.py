"""``struct dev_pm_ops``: which of its functions are the runtime callbacks.

The structure is nothing but function pointers, so a kernel built with structure randomisation has them in another order, and so
have the modules built for it. The names of the functions tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

#: include/linux/pm.h
_MEMBERS = (
    *(
        "prepare",
        "complete",
        "suspend",
        "resume",
        "freeze",
        "thaw",
        "poweroff",
        "restore",
        "suspend_late",
        "resume_early",
    ),
    *("freeze_late", "thaw_early", "poweroff_late", "restore_early", "suspend_noirq", "resume_noirq", "freeze_noirq"),
    *("thaw_noirq", "poweroff_noirq", "restore_noirq", "runtime_suspend", "runtime_resume", "runtime_idle"),
)
#: Members that put a device to sleep, and those that wake it; the others do neither.
_SLEEPS, _WAKES = ("suspend", "freeze", "poweroff"), ("resume", "thaw", "restore")


class RuntimeCallbacks(NamedTuple):
    """The runtime callbacks of a driver: kernel VAs, 0 for one that it does not have."""

    suspend: int
    resume: int
    idle: int


def runtime_callbacks(kernel: Kernel, operations: int) -> RuntimeCallbacks:
    """Read them out of the ``struct dev_pm_ops`` at ``operations``.

    The declared order holds unless a function stands where its name says that it cannot belong: a ``..._resume`` where devices
    are put to sleep, say. Then it is the functions that are named for runtime PM, else those that stand in one place only (those
    for system sleep stand in three), else the only ones there are.
    """
    slots = [kernel.memory.read_u64(operations + 8 * index) for index in range(len(_MEMBERS))]
    declared = RuntimeCallbacks(*slots[_MEMBERS.index("runtime_suspend") :])
    names = {at: kernel.describe(at).partition("+")[0] for at in set(slots) if at}
    if not any(_is_misplaced(member, names[at]) for member, at in zip(_MEMBERS, slots, strict=True) if at):
        return declared
    return RuntimeCallbacks(
        _choose(slots, names, "suspend"), _choose(slots, names, "resume"), _choose(slots, names, "idle")
    )


def _is_misplaced(member: str, name: str) -> bool:
    wakes, sleeps = "resume" in name, "suspend" in name
    if wakes == sleeps:
        return False
    stem = member.removeprefix("runtime_").partition("_")[0]
    return stem not in (_WAKES if wakes else _SLEEPS)


def _choose(slots: list[int], names: dict[int, str], word: str) -> int:
    fitting = [at for at in slots if at and word in names[at]]
    for chosen in (
        [at for at in fitting if "runtime" in names[at] or "rpm" in names[at]],
        [at for at in fitting if slots.count(at) == 1],
        sorted(set(fitting)),
    ):
        if len(set(chosen)) == 1:
            return chosen[0]
    return 0
