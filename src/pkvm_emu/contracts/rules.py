"""The contracts as a table: name, rule, what it takes to watch it, and how bad a breach is unless the user says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from pkvm_emu.errors import UsageError


class Level(Enum):
    """What a breach is."""

    OFF = "off"
    WARNING = "warning"
    ERROR = "error"


class Group(Enum):
    """What has to be watched: ops and the borders of EL2, which costs next to nothing, or every load and store."""

    OPS = "ops"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Contract:
    """One contract.

    Attributes:
        name: what options and reports call it.
        rule: what the module has to do, in one sentence without a full stop.
        why: what goes wrong on a device.
        group: what it takes to watch it.
        level: how bad a breach is.
    """

    name: str
    rule: str
    why: str
    group: Group = Group.OPS
    level: Level = Level.ERROR


CONTRACTS: Mapping[str, Contract] = {
    contract.name: contract
    for contract in (
        Contract(
            "fixmap-unpaired",
            "fixmap_unmap() follows every fixmap_map() before the next one and before EL2 is left; fixblock_map() likewise",
            "the CPU has one slot: a second map replaces the first, and what stays mapped can be reached by the next user",
        ),
        Contract(
            "share-without-pin",
            "a page that the module shares with host_share_hyp() is pinned with pin_shared_mem() before it is used",
            "another CPU of the host can unshare it meanwhile, and EL2 faults at the next access",
        ),
        Contract(
            "pin-left-behind",
            "a hypercall unpins what it pinned before it returns",
            "the host can never unshare or donate the page again",
            level=Level.WARNING,
        ),
        Contract(
            "early-mapping-left",
            "linear_map_early() is undone by linear_unmap_early() before the host is deprivileged",
            "deprivileging finds a mapping of a page that EL2 does not own: a hypervisor BUG",
        ),
        Contract(
            "mod-prot-without-handler",
            "host_stage2_mod_prot() that takes a permission away goes with a permission-fault handler",
            "every access of the host that is not allowed any more ends in an abort for it",
            level=Level.WARNING,
        ),
        Contract(
            "slots-exhausted",
            "handlers and hypercalls are registered while there are slots",
            "nothing is ever unregistered: this and every later module goes without",
        ),
        Contract(
            "page-left-mapped",
            "a page that goes back to the host is mapped nowhere at EL2, and a call that fails gives back what it took",
            "EL2 reads and writes memory that the host uses for something else, or keeps memory for ever",
        ),
        Contract(
            "hyp-address-leak",
            "no address of EL2 goes to the host, neither in a result nor in memory that it can read",
            "the address undoes the randomisation of EL2's address space",
        ),
        Contract(
            "heap-out-of-bounds",
            "memory of hyp_alloc() is used within the size that was asked for",
            "the neighbouring block or the allocator's own header is overwritten",
            Group.MEMORY,
        ),
        Contract(
            "heap-use-after-free",
            "memory is not used after hyp_free()",
            "it belongs to somebody else by then, or to nobody",
            Group.MEMORY,
        ),
        Contract(
            "double-fetch",
            "bytes that the host can write are read once in a call",
            "the host changes them between the check and the use",
            Group.MEMORY,
        ),
        Contract(
            "instruction-budget",
            "a call to EL2 executes no more instructions than the budget",
            "EL2 is not preemptible: the CPU does nothing else meanwhile",
            Group.MEMORY,
        ),
    )
}

DEFAULT_BUDGET = 1_000_000


@dataclass(frozen=True)
class Selection:
    """Which contracts are watched, and how bad their breaches are.

    Attributes:
        levels: by name; what is not there is off.
        budget: instructions for one call.
    """

    levels: Mapping[str, Level]
    budget: int = DEFAULT_BUDGET

    @classmethod
    def of_groups(cls, *groups: Group) -> Selection:
        """All contracts of some groups, as bad as the table says."""
        return cls({name: contract.level for name, contract in CONTRACTS.items() if contract.group in groups})

    @classmethod
    def parse(cls, text: str, base: Selection | None = None) -> Selection:
        """A selection from words with commas between them.

        Args:
            text: ``ops`` (without memory), ``memory`` (all of them), ``off``, ``NAME=error|warning|off``, ``budget=N``.
            base: what the words change; None: the contracts about ops.

        Raises:
            UsageError: a word that is none of these.

        >>> Selection.parse("memory,double-fetch=off").level("double-fetch")
        <Level.OFF: 'off'>
        """
        chosen = base or cls.of_groups(Group.OPS)
        for word in filter(None, (part.strip() for part in text.split(","))):
            chosen = chosen._with(word)
        return chosen

    def _with(self, word: str) -> Selection:
        if word == "off":
            return replace(self, levels={})
        if word == "ops":
            return replace(Selection.of_groups(Group.OPS), budget=self.budget)
        if word in ("memory", "all"):
            return replace(Selection.of_groups(Group.OPS, Group.MEMORY), budget=self.budget)
        name, equals, value = word.partition("=")
        if name == "budget" and value.isdecimal() and int(value):
            return replace(self, budget=int(value))
        if name not in CONTRACTS or not equals or value not in [level.value for level in Level]:
            raise UsageError(
                f"contracts: {word!r} is none of ops, memory, off, budget=N, NAME=error|warning|off "
                f"(names: {', '.join(CONTRACTS)})"
            )
        return replace(self, levels={**self.levels, name: Level(value)})

    def level(self, name: str) -> Level:
        """How bad a breach of a contract is."""
        return self.levels.get(name, Level.OFF)

    def watches(self, group: Group) -> bool:
        """Whether a contract of this group is watched."""
        return any(level is not Level.OFF and CONTRACTS[name].group is group for name, level in self.levels.items())


OPS_ONLY = Selection.of_groups(Group.OPS)
EVERYTHING = Selection.of_groups(Group.OPS, Group.MEMORY)
