"""Ops and exported kernel symbols: what Python performs for the guest, with arguments and results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.hyp import registry as hyp_registry
from pkvm_emu.hyp.op_table import FIRMWARE_OPS
from pkvm_emu.kernel import registry as kernel_registry
from pkvm_emu.kernel.vsprintf_env import GuestFault
from pkvm_emu.machine.calling import signature_of
from pkvm_emu.tracing.timeline.recorder import Open
from pkvm_emu.tracing.timeline.records import Arguments, Level, Value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pkvm_emu.machine.core import Service, ServiceResult
    from pkvm_emu.tracing.timeline.recorder import Timeline

_OP_PREFIX, _OP_SUFFIX = "ops->", "()"
_TEXT_LIMIT = 120
_MASKS = {"u32": (1 << 32) - 1, "u16": (1 << 16) - 1, "u8": (1 << 8) - 1, "bool": 1}
_SIGNED_BITS = {"s64": 64, "s32": 32, "s8": 8}
_LARGEST_ERRNO = 4095
#: Arguments of the ops that are firmware, which have no Python to ask.
_OF_FIRMWARE_OPS = {
    "putc": ("c",),
    "puts": ("s",),
    "putx64": ("x",),
    "memset": ("dst", "value", "count"),
    "memcpy": ("dst", "src", "count"),
}

Parameters = tuple[tuple[str, str], ...]


class ServiceListener:
    """Records services as slices."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._kernel = timeline.system.kernel
        self._engine = timeline.system.machine.engine
        self._parameters: dict[tuple[int, str], Parameters | None] = {}

    def begins(self, service: Service, registers: Sequence[int]) -> None:
        """A service is called."""
        level, name, parameters = self._recorded(service)
        if name is None:
            return
        category = "op" if level is Level.EL2 else "symbol"
        self._timeline.begin(
            level,
            name,
            Open(category, service.name),
            self._arguments(parameters, registers),
            pc=self._engine.read("x30") - 4,
            before_step=True,
        )
        if self._is_firmware(service):
            # What follows is guest code, up to the return.
            self._timeline.end_at(self._engine.read("x30"))

    def ends(self, service: Service, result: ServiceResult) -> None:
        """A service has been performed."""
        level = Level.EL2 if service.el == 2 else Level.EL1
        row = self._timeline.row(level)
        if row and row[-1].key == service.name and not self._is_firmware(service):
            self._timeline.end(level, _results(result))

    @staticmethod
    def _is_firmware(service: Service) -> bool:
        # The kernel has a memset() too.
        return service.el == 2 and service.name in FIRMWARE_OPS

    def _recorded(self, service: Service) -> tuple[Level, str | None, Parameters]:
        """Row and name of a service that is shown, and its parameters; no name for one of the emulator's own."""
        if service.el == 2:
            if self._is_firmware(service):
                names = _OF_FIRMWARE_OPS[service.name]
                return Level.EL2, service.name, tuple((name, "u64") for name in names)
            if not service.name.startswith(_OP_PREFIX):
                return Level.EL2, None, ()
            name = service.name.removeprefix(_OP_PREFIX).removesuffix(_OP_SUFFIX)
            return Level.EL2, name, self._parameters_of(2, name) or ()
        if service.name not in self._kernel.symbols.addresses:
            return Level.EL1, None, ()
        return Level.EL1, service.name, self._parameters_of(1, service.name) or ()

    def _parameters_of(self, el: int, name: str) -> Parameters | None:
        if (el, name) not in self._parameters:
            served = hyp_registry.OPS.get(name) if el == 2 else kernel_registry.find_function(name)
            found: Parameters | None = None
            if served is not None:
                signature = signature_of(served.function)
                found = tuple(zip(signature.names, signature.kinds, strict=True))
            self._parameters[el, name] = found
        return self._parameters[el, name]

    def _arguments(self, parameters: Parameters, registers: Sequence[int]) -> Arguments:
        found: list[tuple[str, Value]] = []
        for (name, kind), value in zip(parameters, registers, strict=False):
            if kind == "varargs":
                break
            found.append((name.lstrip("_"), self._value(kind, value)))
        return tuple(found)

    def _value(self, kind: str, value: int) -> Value:
        if kind in _MASKS:
            return value & _MASKS[kind]
        if kind in _SIGNED_BITS:
            sign = 1 << _SIGNED_BITS[kind] - 1
            return (value & (sign << 1) - 1 ^ sign) - sign
        if kind == "cstr" and value:
            try:
                return self._kernel.read_cstr(value, _TEXT_LIMIT).decode("utf-8", "replace")
            except GuestFault:
                return value
        return value


def _results(result: ServiceResult) -> Arguments:
    if result is None:
        return ()
    if isinstance(result, tuple):
        return tuple((f"x{index}", signed_result(value)) for index, value in enumerate(result))
    return (("result", signed_result(result)),)


def signed_result(value: int) -> int:
    """A register as a result: small negative numbers (errnos) with their sign."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= (1 << 64) - _LARGEST_ERRNO else value
