"""Power domains that the host switches by SCMI: the hypervisor reads the messages on their way to the firmware."""

from __future__ import annotations

from errno import EINVAL, ENXIO

import pytest
from iommu_modules import DOMAINS, DOMAINS_EL1, RESUME, SUSPEND, Driver

from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.system import boot

SMC, DOMAIN = 0x8200_0010, 6
STATUS, HEADER, PAYLOAD = 0x04, 0x18, 0x1C
FREE, ERROR = 1, 2
POWER_STATE_SET = 0x11 << 10 | 4
ON, OFF = 0, 1 << 30
U32 = 1 << 32


class Channel:
    """A driver whose IOMMU is in an SCMI power domain, the channel, and the firmware behind it."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.ram = driver.system.machine.ram
        self.page = driver.page()
        self.answers: list[tuple[int, int]] = []
        self.seen: list[tuple[int, int, int]] = []
        driver.system.hyp.el3.serve(self._firmware)
        assert driver.init_scmi(SMC, DOMAIN, self.page) == 0

    def _firmware(self, registers: tuple[int, ...]) -> tuple[int, ...] | None:
        if registers[0] != SMC:
            return None
        self.seen.append(tuple(self.ram.read_u32(self.page + PAYLOAD + at) for at in (0, 4, 8)))
        owner = self.driver.system.hyp.ownership.owner_of(self.page).name
        assert owner == "HYP", "the host must not reach the message while it is in flight"
        status, result = self.answers.pop(0) if self.answers else (FREE, 0)
        self.ram.write_u32(self.page + STATUS, status)
        self.ram.write_u32(self.page + PAYLOAD, result)
        return (0,)

    def send(self, state: int, domain: int = DOMAIN, header: int = POWER_STATE_SET, flags: int = 0) -> None:
        """The host sends a message."""
        for at, value in ((STATUS, 0), (HEADER, header), (PAYLOAD, flags), (PAYLOAD + 4, domain), (PAYLOAD + 8, state)):
            self.ram.write_u32(self.page + at, value)
        assert self.driver.system.smc(SMC).x0 == 0

    def calls(self) -> list[int]:
        """What the driver was asked to do."""
        return [call[0] for call in self.driver.notes()]


@pytest.fixture(params=["15", "16"])
def channel(request, c_module) -> Channel:
    ko = c_module(el1=DOMAINS_EL1, el2=DOMAINS, generation=request.param)
    driver = Driver(boot(request.param, [ko]))
    driver.notes()
    return Channel(driver)


def test_the_iommu_is_suspended_before_and_resumed_after_the_firmware_switches(channel: Channel) -> None:
    channel.send(OFF)
    assert channel.calls() == [SUSPEND]
    channel.send(ON)
    assert channel.calls() == [RESUME]
    assert channel.seen == [(0, DOMAIN, OFF), (0, DOMAIN, ON)]
    assert channel.driver.system.host.read(channel.page, 4).ok


@pytest.mark.parametrize("answer", [(ERROR, 0), (FREE, 0xFFFF_FFFE)], ids=["channel", "status"])
def test_a_switch_that_the_firmware_refuses_is_undone(channel: Channel, answer: tuple[int, int]) -> None:
    channel.answers = [answer]
    channel.send(OFF)
    assert channel.calls() == [SUSPEND, RESUME]
    channel.answers = [answer]
    channel.send(ON)
    assert channel.calls() == []


def test_other_messages_pass(channel: Channel) -> None:
    channel.send(OFF, domain=DOMAIN + 1)
    channel.send(OFF, header=0x14 << 10 | 4)
    channel.send(OFF, header=0x11 << 10 | 5)
    assert channel.calls() == []
    assert len(channel.seen) == 3


def test_a_busy_channel_is_left_alone(channel: Channel) -> None:
    channel.ram.write_u32(channel.page + STATUS, FREE)
    assert channel.driver.system.smc(SMC).x0 == SMC
    assert channel.seen == []


def test_an_asynchronous_switch_is_a_panic(channel: Channel) -> None:
    with pytest.raises(HypPanic, match="asynchronous"):
        channel.send(OFF, flags=1)


def test_a_page_that_the_host_does_not_own_is_a_panic(channel: Channel) -> None:
    channel.driver.donate(channel.page)
    with pytest.raises(HypPanic, match="does not own the SCMI page"):
        channel.driver.system.smc(SMC)


def test_there_is_one_channel(channel: Channel) -> None:
    driver = channel.driver
    assert driver.init_scmi(SMC + 1, DOMAIN, channel.page) == U32 - ENXIO
    assert driver.init_scmi(SMC, DOMAIN, channel.page + 0x1000) == U32 - ENXIO
    assert driver.init_scmi(SMC, DOMAIN, channel.page + 8) == U32 - EINVAL
    assert driver.init_scmi(SMC, DOMAIN, channel.page, 0xFFF) == U32 - EINVAL
    assert driver.init_scmi(SMC, DOMAIN + 1, channel.page) == 0
