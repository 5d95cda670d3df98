"""What a run did with devices: accesses to registers by window, and the IOMMU driver; for ``run``, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pkvm_emu.hyp.iommu_report import iommu_facts

if TYPE_CHECKING:
    from pkvm_emu.devices.access_log import Access
    from pkvm_emu.system import System

#: Registers of one window that the summary names.
_LISTED = 12


class _Tally:
    """The accesses of one register."""

    def __init__(self) -> None:
        self.reads = 0
        self.writes = 0
        self.last: Access | None = None

    def add(self, access: Access) -> None:
        if access.is_write:
            self.writes += access.times
        else:
            self.reads += access.times
        self.last = access


def _tally(system: System) -> dict[str, dict[str, _Tally]]:
    found: dict[str, dict[str, _Tally]] = {}
    for access in system.mmio.log:
        found.setdefault(access.window, {}).setdefault(access.register, _Tally()).add(access)
    return found


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# The UART


def uart_lines(system: System) -> Iterator[str]:
    """What was sent through the board's UART: the serial driver of a module, or its own output. Nothing where nothing was."""
    if system.devices.uart is not None:
        # Serial drivers end a line with LF and CR, in this order or the other.
        for text in system.devices.uart.output.replace("\r", "").splitlines():
            yield "  " + "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def uart_text(system: System) -> str:
    """The same for JSON: every character."""
    return system.devices.uart.output if system.devices.uart is not None else ""


# Registers


def mmio_lines(system: System, every: bool) -> Iterator[str]:
    """The accesses to registers: a summary by window, or ``every`` access. Nothing where there was none."""
    if every:
        for access in system.mmio.log:
            yield f"  {system.mmio.describe(access)}"
        return
    for name, registers in _tally(system).items():
        reads, writes = (sum(getattr(one, what) for one in registers.values()) for what in ("reads", "writes"))
        levels = sorted({access.el for access in system.mmio.log if access.window == name})
        yield f"  {name}: {_counted(reads, 'read')}, {_counted(writes, 'write')}, from {' and '.join(f'EL{el}' for el in levels)}"
        for register, one in list(registers.items())[:_LISTED]:
            assert one.last is not None
            fields = system.mmio.fields(one.last)
            times = ", ".join(_counted(n, what) for n, what in ((one.reads, "read"), (one.writes, "write")) if n)
            place = system.symbols.describe(one.last.pc, one.last.el)
            shown = f"{one.last.value:#x}{f' [{fields}]' if fields else ''}"
            yield f"    {register:<16} {times}, last {shown} by {place}"
        if len(registers) > _LISTED:
            yield f"    and {len(registers) - _LISTED} more (--mmio-log lists every access)"


def mmio_dict(system: System) -> dict[str, Any]:
    """The windows that were accessed, and every access in order."""
    windows = []
    for name, registers in _tally(system).items():
        first = next(iter(registers.values())).last
        assert first is not None
        window = system.mmio.window_at(first.address)
        windows.append(
            {
                "name": name,
                "start": None if window is None else window.start,
                "size": None if window is None else window.end - window.start,
                "model": None if window is None or window.model is None else type(window.model).__name__,
                "registers": [
                    {
                        "name": register,
                        "reads": one.reads,
                        "writes": one.writes,
                        "last": one.last.value if one.last else None,
                    }
                    for register, one in registers.items()
                ],
            }
        )
    return {"windows": windows, "accesses": [_access_dict(system, access) for access in system.mmio.log]}


def _access_dict(system: System, access: Access) -> dict[str, Any]:
    line = system.symbols.line(access.pc, access.el)
    return {
        **access._asdict(),
        "fields": system.mmio.fields(access),
        "place": system.symbols.describe(access.pc, access.el),
        "file": None if line is None else line.file,
        "line": None if line is None else line.line,
    }


# The IOMMU driver


def iommu_lines(system: System) -> Iterator[str]:
    """What the IOMMU core did. Nothing where no driver was initialised."""
    for driver in iommu_dict(system)["drivers"]:
        yield f"  driver: {driver['table']}" + (", follows the host's stage-2" if driver["follows"] else "")
        calls = ", ".join(f"{name} {count}" for name, count in driver["callbacks"].items())
        yield f"    callbacks entered: {calls or 'none'}"
        for domain in driver["domains"]:
            yield f"    domain {domain['id']}: {_counted(domain['references'], 'reference')}"
        for device in driver["devices"]:
            text = ", ".join(f"{key} {value}" for key, value in device.items())
            yield f"    device: {text}"
        for number, is_off in driver["power_domains"].items():
            yield f"    power domain {number}: {'off' if is_off else 'on'}"


def iommu_dict(system: System) -> dict[str, Any]:
    """The drivers that the IOMMU core initialised: functions entered with counts, domains, devices, power domains."""
    return {"drivers": iommu_facts(system.hyp, lambda va: system.symbols.describe(va, 2))}
