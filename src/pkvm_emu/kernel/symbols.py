"""Linking kernel symbols: exported functions become stubs in the image, exported variables get their place in its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pkvm_emu.arch.insn import hvc, ret
from pkvm_emu.elf.imports import ImportUse
from pkvm_emu.errors import EmulatorError
from pkvm_emu.kernel import layout, registry
from pkvm_emu.kernel.guest_access import access_oops
from pkvm_emu.kernel.service_failure import FAILURES, service_failure
from pkvm_emu.kernel.sync import Parked, TryAgain
from pkvm_emu.kernel.unserved import UnservedPlaces, UnservedSymbol
from pkvm_emu.kernel.vsprintf_env import GuestFault
from pkvm_emu.machine.calling import bind
from pkvm_emu.machine.core import SERVICE_IMMEDIATE, Service
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

STUB_SIZE = 16


__all__ = ["KernelSymbols", "UnservedSymbol"]
#: ``struct static_key``
_KEY_SIZE = 16


class KernelSymbols(State):
    """The kernel's exports, as far as somebody asked for them.

    A stub is 16 bytes: a kCFI type id, ``hvc``, ``ret``, padding; the symbol's address is that of the ``hvc``. Stubs are made in
    the order in which symbols are first linked, so their addresses depend on the modules and nothing else.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.symbols")
        self._kernel = kernel
        #: Functions served in this kernel only; they come before those of the registry.
        self._own: dict[str, registry.KernelFunction] = {}
        self._failing: dict[str, Callable[[], int | None]] = {}
        self._own_variables: dict[str, registry.KernelVariable] = {}
        self._image = kernel.memory.layout.kimage_vaddr
        self.next_stub = self._image + layout.IMAGE_STUBS
        self.next_data = self._image + layout.IMAGE_DATA
        self.next_percpu = self._image + layout.IMAGE_PERCPU
        self.addresses: StateDict[str, int] = StateDict(kernel.machine.journal, "kernel.symbols.addresses")
        self.sizes: StateDict[str, int] = StateDict(kernel.machine.journal, "kernel.symbols.sizes")
        #: Symbols that were linked to a stub which stops the run when it is called.
        self.unserved: StateDict[str, int] = StateDict(kernel.machine.journal, "kernel.symbols.unserved")
        #: Static keys that nobody knows more of than that, and whether they have got the state that modules were compiled for.
        self.plain_keys: StateDict[str, bool] = StateDict(kernel.machine.journal, "kernel.symbols.keys")
        self._places = UnservedPlaces(kernel)
        #: Symbols of modules that are not there, linked to Python: the name of the module that Python stands in for.
        self.companions: StateDict[str, str] = StateDict(kernel.machine.journal, "kernel.symbols.companions")

    def serves(self, name: str) -> bool:
        """Whether there is Python behind ``name``."""
        return self._function(name) is not None or self._variable(name) is not None

    def companion(self, name: str, depends: Sequence[str] = ()) -> str | None:
        """The module that ``name`` comes from on a device, where Python serves it in that module's place.

        Args:
            name: the symbol.
            depends: what the importing module says it depends on: the one of several companions that it means.
        """
        function = self._function(name)
        if function is None or not function.companions:
            return None
        known = {candidate.replace("-", "_"): candidate for candidate in function.companions}
        named = (known[word.replace("-", "_")] for word in depends if word.replace("-", "_") in known)
        return next(named, function.companions[0])

    @property
    def unserved_places(self) -> UnservedPlaces:
        """Where the symbols are that nothing serves and nobody calls."""
        return self._places

    def resolve(self, name: str, use: ImportUse = ImportUse.CALL) -> int:
        """The address of an exported symbol; makes its stub or its storage on first use.

        A name that nothing serves gets one too: a stub, and calling it stops the run with its name, caller and arguments; or
        a place that is not mapped, so that looking at it stops the run with its name.

        Args:
            name: the symbol.
            use: what the module that asks does with it.
        """
        address = self.addresses.get(name)
        if address is not None:
            return address
        variable = self._variable(name)
        function = self._function(name) if variable is None else None
        if variable is not None:
            address = self._place_variable(variable)
        elif function is not None:
            nargs, call = bind(function.function, self._kernel)
            address = self._place_stub(name, nargs, self._guarded(name, call), in_hook=not function.runs_guest)
        elif use is ImportUse.STATIC_KEY:
            address = self._place_variable(registry.KernelVariable(name, _KEY_SIZE, lambda kernel: bytes(_KEY_SIZE)))
            self.plain_keys[name] = False
        else:
            place = self._places.place(name) if use is ImportUse.ADDRESS else None
            address = place or self._place_stub(name, 8, self._stop_at(name), in_hook=True)
            self.unserved[name] = address
        self.addresses[name] = address
        return address

    def provide(self, name: str, function: Callable[..., Any], runs_guest: bool = False) -> None:
        """Serve ``name`` by ``function`` from now on in this kernel only."""
        self.provide_function(registry.KernelFunction(name, function, runs_guest))

    def provide_function(self, function: registry.KernelFunction) -> None:
        """Serve a function in this kernel only (``--kernel FILE``)."""
        self._own[function.name] = function
        self._own_variables.pop(function.name, None)

    def provide_variable(self, variable: registry.KernelVariable) -> None:
        """Serve a variable in this kernel only (``--kernel FILE``)."""
        self._own_variables[variable.name] = variable
        self._own.pop(variable.name, None)

    def let_fail(self, name: str, fails: Callable[[], int | None] | None) -> None:
        """Ask ``fails`` before each call of ``name``: what it answers (not None) is the result. None: ask nobody any more."""
        self._failing.pop(name, None)
        if fails is not None:
            self._failing[name] = fails

    def _function(self, name: str) -> registry.KernelFunction | None:
        return self._own.get(name) or registry.find_function(name)

    def _variable(self, name: str) -> registry.KernelVariable | None:
        """The variable of that name; None where the user serves a function by it."""
        if name in self._own:
            return None
        own = self._own_variables.get(name)
        if own is not None or registry.find_function(name) is not None:
            return own
        return registry.find_variable(name)

    @property
    def provided(self) -> dict[str, registry.KernelFunction]:
        """What is served in this kernel only, by name. It is no part of snapshots."""
        return dict(self._own)

    def replace_provided(self, functions: dict[str, registry.KernelFunction]) -> None:
        """Serve these in this kernel only, and no others."""
        self._own = dict(functions)

    def read_variable(self, name: str) -> int:
        """The first eight bytes of an exported variable, as a number."""
        return self._kernel.memory.read_u64(self.resolve(name))

    def _place_stub(self, name: str, nargs: int, call: Callable[..., Any], in_hook: bool) -> int:
        start = self.next_stub
        if start + STUB_SIZE > self._image + layout.IMAGE_STUBS + layout.IMAGE_STUBS_SIZE:
            raise EmulatorError(f"no room for a stub of {name}: too many kernel symbols are in use")
        kernel = self._kernel
        words = (0, hvc(SERVICE_IMMEDIATE), ret(), 0)
        kernel.machine.ram.write(kernel.memory.to_pa(start), b"".join(word.to_bytes(4, "little") for word in words))
        self.next_stub = start + STUB_SIZE
        address = start + 4
        kernel.machine.core.add_service(address, Service(name, 1, nargs, call, in_hook))
        self.sizes[name] = 8
        return address

    def _place_variable(self, variable: registry.KernelVariable) -> int:
        if variable.section == "percpu":
            return self._place_percpu(variable)
        address = (self.next_data + 63) & ~63
        self.next_data = address + variable.size
        if self.next_data > self._image + layout.IMAGE_DATA + layout.IMAGE_DATA_SIZE:
            raise EmulatorError(f"no room for {variable.name} in the kernel's data")
        # The address has to be known before the contents are made: a variable may point at itself.
        self.addresses[variable.name] = address
        self.sizes[variable.name] = variable.size
        contents = variable.initial(self._kernel)
        self._kernel.memory.write(address, contents[: variable.size])
        return address

    def _place_percpu(self, variable: registry.KernelVariable) -> int:
        address = (self.next_percpu + 15) & ~15
        self.next_percpu = address + variable.size
        first = self._image + layout.IMAGE_PERCPU
        if self.next_percpu > first + layout.PERCPU_SIZE:
            raise EmulatorError(f"no room for {variable.name} in the per-CPU areas")
        self.sizes[variable.name] = variable.size
        contents = variable.initial(self._kernel)
        for cpu in range(self._kernel.machine.profile.cpus):
            copy = contents[cpu * variable.size : (cpu + 1) * variable.size]
            self._kernel.memory.write(address + cpu * layout.PERCPU_SIZE, copy)
        return address

    def _guarded(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, with a wait turned into another try and an address that it cannot access into the oops of a device."""

        def guarded(*registers: int) -> Any:
            fails = self._failing.get(name)
            answer = fails() if fails is not None else None
            if answer is not None:
                return answer
            try:
                return call(*registers)
            except TryAgain:
                self._call_again()
                return None
            except Parked:
                self._call_again()
                raise
            except GuestFault as fault:
                raise self._places.argument_of(fault.va, name) or access_oops(self._kernel, name, fault) from fault
            except FAILURES as error:
                raise service_failure(self._kernel, name, registers, error) from error

        return guarded

    def _call_again(self) -> None:
        """Put the PC back to the stub, so that going on makes the same call."""
        engine = self._kernel.machine.engine
        engine.write("pc", engine.read("pc") - 4)

    def _stop_at(self, name: str) -> Callable[..., None]:
        def stop(*registers: int) -> None:
            raise self._places.call_of(name, self._kernel.machine.engine.read("x30") - 4)

        return stop
