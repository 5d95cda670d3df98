"""Tracepoints and Android vendor hooks: who is registered where, and firing them from Python.

A probe lives where the kernel keeps it: in the array that ``struct tracepoint`` points at, in guest memory. A vendor hook is a
tracepoint; a restricted one (``android_rvh_*``) only differs in that its probes stay for ever. Sources: kernel/tracepoint.c,
include/linux/tracepoint-defs.h, drivers/android/vendor_hooks.c.
"""

from __future__ import annotations

import struct
from errno import EEXIST, EINVAL, ENOENT, ENOMEM
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.errors import UsageError
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.kernel.static_keys import set_count
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pkvm_emu.kernel.kernel import Kernel

PREFIX = "__tracepoint_"
DEFAULT_PRIORITY = 10
_ENTRY = struct.Struct("<QQixxxx")
_KEY, _STATIC_CALL_KEY, _ITERATOR = 8, 24, 40
#: ``probestub`` came with 6.6.
_FIRST_WITH_PROBESTUB = (6, 6)


class Probe(NamedTuple):
    """A registered probe: the function, what it gets first, its priority."""

    function: int
    data: int
    priority: int


class Registration(NamedTuple):
    """One probe of one hook, for reports: the hook, its probe, the probe's name."""

    hook: str
    probe: Probe
    name: str


@kernel_part
class Hooks(State):
    """The tracepoints of the kernel that somebody asked for, and those of modules.

    Attributes:
        fired: how often each hook was fired and had a probe.

    Args:
        kernel: whose tracepoints.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.hooks")
        self._kernel = kernel
        late = 8 if kernel.generation.kernel >= _FIRST_WITH_PROBESTUB else 0
        self._regfunc, self._unregfunc, self._funcs = 48 + late, 56 + late, 64 + late
        self.fired: StateDict[str, int] = StateDict(kernel.machine.journal, "kernel.hooks.fired")
        #: The arrays that are in use: they are ours to free.
        self.arrays: StateDict[int, int] = StateDict(kernel.machine.journal, "kernel.hooks.arrays")

    # Finding them

    def known(self) -> dict[str, int]:
        """All tracepoints by name: those of the kernel that somebody linked to or looked for, then those of modules."""
        addresses = self._kernel.symbols.addresses
        found = {name.removeprefix(PREFIX): va for name, va in addresses.items() if name.startswith(PREFIX)}
        for module in self._kernel.loader.modules.values():
            for symbol in module.file.symbols:
                if symbol.name.startswith(PREFIX) and symbol.in_section and not symbol.name.startswith(PREFIX + "ptr_"):
                    va = module.symbol(symbol.name)
                    if va is not None:
                        found.setdefault(symbol.name.removeprefix(PREFIX), va)
        return found

    def registered(self) -> list[Registration]:
        """Every probe of every hook, by name of the hook, in the order in which they are called."""
        return [
            Registration(name, probe, self._kernel.describe(probe.function))
            for name, address in sorted(self.known().items())
            for probe in self.probes(address)
        ]

    def name_of(self, tracepoint: int) -> str:
        """The name of a tracepoint."""
        return self._kernel.memory.read_cstr(self._kernel.memory.read_u64(tracepoint)).decode("latin-1")

    def probes(self, tracepoint: int) -> list[Probe]:
        """The probes of a tracepoint, in the order in which they are called."""
        array = self._kernel.memory.read_u64(tracepoint + self._funcs)
        return list(self._entries(array)) if array else []

    def _entries(self, array: int) -> Iterator[Probe]:
        while True:
            function, data, priority = _ENTRY.unpack(self._kernel.memory.read(array, _ENTRY.size))
            if not function:
                return
            yield Probe(function, data, priority)
            array += _ENTRY.size

    # Registering

    def add(self, tracepoint: int, probe: Probe, may_exist: bool = False) -> int:
        """Register a probe: behind those of the same priority.

        Returns:
            0, -EINVAL without a function, -EEXIST for one that is there with the same data (which warns), -ENOMEM.
        """
        kernel = self._kernel
        if not probe.function:
            warn(kernel, "kernel/tracepoint.c")
            return -EINVAL
        present = self.probes(tracepoint)
        if any(other[:2] == probe[:2] for other in present):
            if not may_exist:
                warn(kernel, "kernel/tracepoint.c")
            return -EEXIST
        register = kernel.memory.read_u64(tracepoint + self._regfunc)
        if not present and register:
            answer = kernel.call_s32(register)
            if answer < 0:
                return answer
        place = next((i for i, other in enumerate(present) if other.priority < probe.priority), len(present))
        return self._set(tracepoint, [*present[:place], probe, *present[place:]])

    def remove(self, tracepoint: int, function: int, data: int) -> int:
        """Take a probe away: 0, or -ENOENT (which warns)."""
        kernel = self._kernel
        present = self.probes(tracepoint)
        left = [probe for probe in present if probe[:2] != (function, data)]
        if len(left) == len(present):
            warn(kernel, "kernel/tracepoint.c")
            return -ENOENT
        unregister = kernel.memory.read_u64(tracepoint + self._unregfunc)
        if not left and unregister:
            kernel.call(unregister)
        return self._set(tracepoint, left)

    def _set(self, tracepoint: int, probes: list[Probe]) -> int:
        kernel, memory, slab = self._kernel, self._kernel.memory, self._kernel.part(Slab)
        array = 0
        if probes:
            data = b"".join(_ENTRY.pack(*probe) for probe in probes) + bytes(_ENTRY.size)
            array = slab.kmalloc(len(data)) or 0
            if not array:
                return -ENOMEM
            memory.write(array, data)
        before = memory.read_u64(tracepoint + self._funcs)
        memory.write_u64(tracepoint + self._funcs, array)
        call_key = memory.read_u64(tracepoint + _STATIC_CALL_KEY)
        if call_key:
            iterator = memory.read_u64(tracepoint + _ITERATOR)
            memory.write_u64(call_key, probes[0].function if len(probes) == 1 else iterator)
        set_count(kernel, tracepoint + _KEY, int(bool(probes)))
        if self.arrays.pop(before, None) is not None:
            slab.kfree(before)
        if array:
            self.arrays[array] = tracepoint
        return 0

    # Firing

    def fire(self, name: str, *args: int) -> int:
        """Let a tracepoint or vendor hook happen: its probes are called at EL1, in order.

        Args:
            name: of the hook, without ``__tracepoint_`` (``android_rvh_commit_creds``).
            args: what the hook's place in the kernel passes, up to seven values; each probe gets its own data in front.

        Returns:
            How many probes were called.

        Raises:
            UsageError: there is no such hook: nobody linked to it.
        """
        known = self.known()
        if name not in known:
            with_probes = ", ".join(sorted({entry.hook for entry in self.registered()})) or "none"
            raise UsageError(f"no module knows a tracepoint {name!r} (with probes: {with_probes})")
        if len(args) > 7:
            raise UsageError(f"{name}: a probe takes seven values at most, {len(args)} were given")
        return self._call(name, known[name], args)

    def happen(self, name: str, *args: int) -> None:
        """The kernel came to one of its own tracepoints: the same, where anybody knows it."""
        place = self._kernel.symbols.addresses.get(PREFIX + name)
        if place is not None:
            self._call(name, place, args)

    def _call(self, name: str, tracepoint: int, args: tuple[int, ...]) -> int:
        probes = self.probes(tracepoint)
        for probe in probes:
            self._kernel.call(probe.function, probe.data, *args)
        if probes:
            self.fired[name] = self.fired.get(name, 0) + 1
        return len(probes)
