"""The UART and the clock of the default board, reached from both levels, and what a snapshot brings back of them."""

from __future__ import annotations

import pytest

import pkvm_emu
from pkvm_emu.devices.standard import RTC_BASE, UART_BASE
from pkvm_emu.machine.profile import MachineProfile

DATA, FLAGS, ID = 0x00, 0x18, 0xFE0
SMALL = 64 << 20


@pytest.fixture
def system() -> pkvm_emu.System:
    return pkvm_emu.boot(16, [], "", MachineProfile(ram_size=SMALL))


@pytest.mark.parametrize(
    ("base", "identification"),
    [
        (UART_BASE, (0x11, 0x10, 0x14, 0x00, 0x0D, 0xF0, 0x05, 0xB1)),
        (RTC_BASE, (0x31, 0x10, 0x04, 0x00, 0x0D, 0xF0, 0x05, 0xB1)),
    ],
    ids=["PL011", "PL031"],
)
@pytest.mark.parametrize("el", [0, 1])
def test_identification_registers(system, base: int, identification: tuple[int, ...], el: int) -> None:
    assert tuple(system.host.read(base + ID + 4 * n, 4, el=el).value for n in range(8)) == identification


def test_the_uart_keeps_what_is_sent_and_is_always_ready(system) -> None:
    for character in b"ok\n":
        assert system.host.write(UART_BASE + DATA, character, 4).ok
    assert system.devices.uart.output == "ok\n"
    # UARTFR: transmitter and receiver are empty, nothing is busy or full.
    assert system.host.read(UART_BASE + FLAGS, 4).value == 0x90


def test_a_snapshot_takes_the_output_back(system) -> None:
    before = system.snapshot()
    system.host.write(UART_BASE + DATA, ord("x"), 1)
    assert system.devices.uart.output == "x"
    system.restore(before)
    assert system.devices.uart.output == ""


def test_the_clock_counts_from_what_was_loaded(system) -> None:
    assert system.host.read(RTC_BASE, 4).value == 0
    system.host.write(RTC_BASE + 8, 1_700_000_000, 4)
    assert system.host.read(RTC_BASE, 4).value == 1_700_000_000


def test_the_host_has_touched_the_uart_when_the_boot_is_over(system) -> None:
    """The whole gap below RAM is mapped then, as far as blocks of 1 GiB go."""
    leaf = system.hyp.ownership.host_stage2_get_leaf(RTC_BASE)
    assert (leaf.level, leaf.descriptor) == (1, 0x40_0000_0000_04FD)


def test_before_deprivilege_nothing_outside_ram_is_mapped() -> None:
    system = pkvm_emu.boot(16, [], "", MachineProfile(ram_size=SMALL), deprivilege=False)
    assert system.hyp.ownership.host_stage2_get_leaf(UART_BASE).descriptor == 0


def test_ram_at_their_addresses_takes_their_place() -> None:
    system = pkvm_emu.boot(16, [], "", MachineProfile(ram_base=0x0800_0000, ram_size=SMALL))
    assert system.devices.uart is None
    assert system.devices.rtc is None
