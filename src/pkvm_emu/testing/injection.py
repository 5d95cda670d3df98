"""Failure injection: the n-th call of an op fails with an errno that the op never had, and what the module makes of it.

>>> with injected(system, [Injection.parse("host_share_hyp=2:EPERM")]):
...     system.call("hyp_page_protect", 0x48000)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import errno_name, errno_number
from pkvm_emu.abi.ops import OpsTable, ops_table
from pkvm_emu.errors import UsageError
from pkvm_emu.machine.core import ServiceResult
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.hyp.op_calls import OpCall
    from pkvm_emu.system import System

_TEXT = re.compile(r"^((?:kernel:|hvc:)?[A-Za-z_0-9]+)=([0-9]+|\*)(?::(?:-?(E[A-Z0-9]+)|NULL))?$")
#: What an op that returns an int fails with unless the user says otherwise.
DEFAULT_ERRNO = "ENOMEM"
#: Arithmetic and look-ups, which give something whatever happens.
_NEVER_FAIL = frozenset(
    (
        "alloc_module_va",
        "fixmap_map",
        "hyp_alloc_errno",
        "hyp_alloc_missing_donations",
        "hyp_smp_processor_id",
        "hyp_va",
        "kern_hyp_va",
        "memcpy",
        "memset",
    )
)


@dataclass(frozen=True, slots=True)
class Injection:
    """One failure.

    Attributes:
        op: the op; ``kernel:NAME``: a function that the kernel exports; ``hvc:NAME``: a hypercall of the hypervisor's own.
        call: which of its calls fails, from 1; 0: each of them.
        errno: the positive errno; ops that return a pointer fail with NULL.
    """

    op: str
    call: int
    errno: int

    @classmethod
    def parse(cls, text: str) -> Injection:
        """``OP=N:ERRNO``, ``OP=N`` (with ENOMEM, or NULL), ``OP=*:ERRNO`` (each call).

        Raises:
            UsageError: something else.
        """
        found = _TEXT.match(text)
        if found is None:
            raise UsageError(f"--inject {text}: write OP=N:ERRNO, for example host_share_hyp=2:EPERM (N may be *)")
        name, number, errno = found.groups()
        if number == "0":
            raise UsageError(f"--inject {text}: calls are counted from 1")
        try:
            value = errno_number(errno or DEFAULT_ERRNO)
        except KeyError as error:
            raise UsageError(f"--inject {text}: there is no errno {errno}") from error
        return cls(name, 0 if number == "*" else int(number), value)

    def __str__(self) -> str:
        return f"{self.op}={self.call or '*'}:{errno_name(self.errno)}"


def failing_ops(table: OpsTable) -> dict[str, bool]:
    """The ops that can fail: whether they do it with NULL (else with an errno)."""
    kinds = {}
    for slot in table.slots:
        returned = slot.prototype.partition("(")[0].strip()
        if slot.name not in _NEVER_FAIL and (returned == "int" or "*" in returned):
            kinds[slot.name] = "*" in returned
    return kinds


class Injector(State):
    """Makes ops of one system fail.

    Args:
        system: whose ops.
        injections: what fails.

    Attributes:
        counts: calls so far, by op.
        done: failures that were made.
    """

    def __init__(self, system: System, injections: Iterable[Injection]) -> None:
        super().__init__(system.machine.journal)
        self._by_op: dict[str, list[Injection]] = {}
        self._fails_with_null = failing_ops(ops_table(system.generation.layout))
        self._undo: list[Callable[[], None]] = []
        for injection in injections:
            if ":" in injection.op:
                self._by_op.setdefault(injection.op, []).append(injection)
                self._attach(system, injection.op)
                continue
            if injection.op not in self._fails_with_null:
                raise UsageError(
                    f"--inject {injection}: {injection.op} is no op of {system.generation.name} that can fail "
                    f"(there are {', '.join(sorted(self._fails_with_null))})"
                )
            self._by_op.setdefault(injection.op, []).append(injection)
        self.counts: StateDict[str, int] = StateDict(system.machine.journal)
        self.done = 0

    def before_op(self, call: OpCall) -> ServiceResult:
        """Fail it, if its time has come."""
        return self._answer(call.name, self._fails_with_null.get(call.name, False))

    def _answer(self, name: str, with_null: bool) -> int | None:
        count = self.counts[name] = self.counts.get(name, 0) + 1
        for injection in self._by_op.get(name, ()):
            if injection.call in (0, count):
                self.done += 1
                return 0 if with_null else -injection.errno
        return None

    def _attach(self, system: System, name: str) -> None:
        """Let a function of the kernel, in all its variants, or a hypercall of the hypervisor be asked for."""
        where, _, plain = name.partition(":")
        if where == "hvc":
            known = system.generation.hypercalls
            if plain not in known:
                raise UsageError(f"--inject {name}: {system.generation.name} has no hypercall {plain} of its own")
            system.hyp.traps.let_fail(plain, lambda: self._answer(name, False))
            self._undo.append(lambda: system.hyp.traps.let_fail(plain, None))
            return
        symbols = system.kernel.symbols
        variants = _variants(plain)
        if not variants:
            raise UsageError(f"--inject {name}: no function that the kernel exports has this name")
        for variant in variants:
            symbols.let_fail(variant, lambda: self._answer(name, "alloc" in plain))
        self._undo += [partial(symbols.let_fail, variant, None) for variant in variants]

    def detach(self) -> None:
        """Functions of the kernel and hypercalls do not fail any more."""
        for undo in self._undo:
            undo()

    def after_op(self, call: OpCall, result: ServiceResult) -> None:
        """Nothing to do."""


#: Functions that the macros of a header call under a name of their own.
_ALIASES = {"kmalloc": ("kmem_cache_alloc_trace",), "kzalloc": ("kmem_cache_alloc_trace",)}


def _variants(name: str) -> list[str]:
    """The exported functions that a call of ``name`` in C ends in: ``kmalloc`` is ``__kmalloc``, ``kmalloc_trace``, ..."""
    from pkvm_emu.kernel import registry

    if registry.find_function(name) is None:
        # Finding one imports the file that serves its family.
        for likely in (f"__{name}", f"{name}_noprof", f"{name}_trace"):
            registry.find_function(likely)
    stem = "kmalloc" if name == "kzalloc" else name
    known = [each for each in registry.FUNCTIONS if each.lstrip("_") == stem or each.lstrip("_").startswith(f"{stem}_")]
    known += [alias for alias in _ALIASES.get(name, ()) if registry.find_function(alias) is not None]
    return sorted(each for each in known if "size_roundup" not in each)


def inject(system: System, injections: Sequence[Injection]) -> Injector:
    """Let ops of a system fail from now on.

    Raises:
        UsageError: an op that the generation does not have, or that cannot fail.
    """
    injector = Injector(system, injections)
    system.hyp.ops.observe(injector)
    return injector


@contextmanager
def injected(system: System, injections: Sequence[Injection]) -> Iterator[Injector]:
    """Let ops of a system fail while the block runs."""
    injector = inject(system, injections)
    try:
        yield injector
    finally:
        system.hyp.ops.forget(injector)
        injector.detach()
