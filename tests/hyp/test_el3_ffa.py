"""FF-A: the hypervisor's proxy between the host and an SPMC, on each generation."""

from __future__ import annotations

import struct
import uuid

import pytest

import pkvm_emu
from pkvm_emu.arch import ffa
from pkvm_emu.arch.ffa import COMPOSITE_SIZE, VERSION_1_0, VERSION_1_1, Ffa, FfaReturn, Range, Region
from pkvm_emu.errors import UsageError
from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.results import HvcResult

SMALL = MachineProfile(ram_size=64 << 20, el3="full")
GENERATIONS = pytest.mark.parametrize("generation", ["14", "15", "16"])
M1 = (1 << 64) - 1
TX, RX, DATA = 0x4200_0000, 0x4200_1000, 0x4210_0000
SERVICE = "486178e0-e7f8-11e3-bc5e-0002a5d5c51b"
OK, ERROR = Ffa.SUCCESS.smc32, Ffa.ERROR.smc32


class Host:
    """A host that speaks FF-A: version negotiated, buffers mapped, one partition there."""

    def __init__(self, generation: str = "16", el3: str = "full", ready: bool = True) -> None:
        self.system = pkvm_emu.boot(generation, profile=SMALL, el3=el3)
        self.ram = self.system.machine.ram
        self.version = VERSION_1_0 if generation == "14" else VERSION_1_1
        if ready:
            self.spmc.add_partition(0x8001, SERVICE, direct=lambda x: (x[3] + 1, x[4]))
            self(Ffa.VERSION.smc32, self.version)
            assert self(Ffa.RXTX_MAP.smc64, TX, RX, 1).x0 == OK

    @property
    def spmc(self):
        return self.system.hyp.el3.spmc

    def __call__(self, function: int, *args: int) -> HvcResult:
        return self.system.smc(function, *args)

    def state(self, pa: int) -> str:
        return self.system.pages.at(pa).host_state

    def descriptor(self, *ranges: Range, receiver: int = 0x8001, sender: int = 0) -> bytes:
        return Region(sender, 0x2F, 0, 0, 7, 0, 1, receiver, 6, 0).pack(self.version, list(ranges))

    def give(self, data: bytes, function: int = Ffa.MEM_SHARE.smc64, length: int | None = None) -> HvcResult:
        self.ram.write(TX, data)
        return self(function, len(data) if length is None else length, len(data))

    def code(self, result: HvcResult) -> int:
        assert result.x0 == ERROR
        value = result.x2 & 0xFFFF_FFFF
        return value - (1 << 32) if value >> 31 else value


# Without an SPMC


def test_android16_refuses_calls_before_a_version_is_settled() -> None:
    host = Host("16", "bare", ready=False)
    assert host(Ffa.VERSION.smc32, VERSION_1_1).x0 == M1
    assert host(Ffa.ID_GET.smc32) == (ERROR, 0, M1 - 1, 0)


def test_android15_leaves_the_registers_of_such_a_call_as_they_are() -> None:
    host = Host("15", "bare", ready=False)
    assert host(Ffa.VERSION.smc32, VERSION_1_1).x0 == M1
    assert host(Ffa.FEATURES.smc32, 5, 6, 7) == (Ffa.FEATURES.smc32, 5, 6, 7)


def test_android14_passes_on_what_it_does_not_look_at() -> None:
    host = Host("14", "bare", ready=False)
    assert host(Ffa.VERSION.smc32, VERSION_1_0).x0 == M1
    assert list(host.system.hyp.el3.unanswered) == [Ffa.VERSION.smc32]
    assert host.code(host(Ffa.MEM_DONATE.smc64)) == FfaReturn.NOT_SUPPORTED
    assert host(0x8400_0080).x0 == M1


def test_android14_panics_where_the_host_reclaims_without_firmware() -> None:
    host = Host("14", "bare", ready=False)
    with pytest.raises(HypPanic, match="no TX buffer, since EL3 has no FF-A"):
        host(Ffa.MEM_RECLAIM.smc32, 1, 0, 0)


# With one


@GENERATIONS
def test_the_host_gets_the_version_that_the_proxy_knows(generation: str) -> None:
    host = Host(generation, ready=False)
    assert host(Ffa.VERSION.smc32, 0x2_0000).x0 in (M1, 0xFFFF_FFFF)
    assert host(Ffa.VERSION.smc32, VERSION_1_1 if generation != "14" else VERSION_1_0).x0 == host.version
    assert host(Ffa.ID_GET.smc32)[:3] == (OK, 0, 0)


@pytest.mark.parametrize("generation", ["15", "16"])
def test_a_host_that_wants_1_0_gets_it_and_keeps_it(generation: str) -> None:
    host = Host(generation, ready=False)
    assert host(Ffa.VERSION.smc32, VERSION_1_0).x0 == VERSION_1_0
    assert host(Ffa.VERSION.smc32, VERSION_1_1).x0 == VERSION_1_0


def test_the_hypercall_tells_the_version_once_it_is_settled() -> None:
    host = Host(ready=False)
    number = host.system.generation.hypercalls["host_get_ffa_version"]
    assert host.system.hvc(number)[:2] == (0, 0)
    host(Ffa.VERSION.smc32, VERSION_1_1)
    assert host.system.hvc(number)[:2] == (0, VERSION_1_1)


@GENERATIONS
def test_the_buffers_are_shared_and_pinned_while_they_are_mapped(generation: str) -> None:
    host = Host(generation)
    ownership = host.system.hyp.ownership
    for page in (TX, RX):
        assert ownership.host_unshare_hyp(page >> 12) < 0
    assert host.code(host(Ffa.RXTX_MAP.smc64, TX, RX, 1)) == FfaReturn.DENIED
    assert host.code(host(Ffa.RXTX_UNMAP.smc32, 9)) == FfaReturn.INVALID_PARAMETERS
    assert host(Ffa.RXTX_UNMAP.smc32, 0).x0 == OK
    assert host.code(host(Ffa.RXTX_UNMAP.smc32, 0)) == FfaReturn.INVALID_PARAMETERS
    for page in (TX, RX):
        assert ownership.host_donate_hyp(page >> 12, 1) == 0


@GENERATIONS
@pytest.mark.parametrize("args", [(TX, RX, 2), (TX + 8, RX, 1), (TX, RX + 1, 1)])
def test_buffers_have_to_be_one_aligned_page(generation: str, args: tuple[int, ...]) -> None:
    host = Host(generation, ready=False)
    host(Ffa.VERSION.smc32, host.version)
    assert host.code(host(Ffa.RXTX_MAP.smc64, *args)) == FfaReturn.INVALID_PARAMETERS


@GENERATIONS
def test_a_buffer_that_is_not_the_hosts_own_leaves_nothing_mapped(generation: str) -> None:
    host = Host(generation, ready=False)
    host(Ffa.VERSION.smc32, host.version)
    assert host.system.hyp.ownership.host_donate_hyp(RX >> 12, 1) == 0
    assert host.code(host(Ffa.RXTX_MAP.smc64, TX, RX, 1)) == FfaReturn.INVALID_PARAMETERS
    assert host.spmc.tx == 0
    assert host.system.hyp.ownership.host_donate_hyp(TX >> 12, 1) == 0


@GENERATIONS
@pytest.mark.parametrize(("function", "kind"), [(Ffa.MEM_SHARE.smc64, "share"), (Ffa.MEM_LEND.smc32, "lend")])
def test_pages_are_given_to_the_secure_world_and_come_back(generation: str, function: int, kind: str) -> None:
    host = Host(generation)
    owner = host.system.hyp.ownership
    ranges = Range(DATA, 2), Range(DATA + 0x10_0000, 1)
    given = host.give(host.descriptor(*ranges), function)
    assert given.x0 == OK
    handle = given.x2 | given.x3 << 32
    assert (host.spmc.regions[handle].kind, host.spmc.regions[handle].ranges) == (kind, ranges)
    for page in (DATA, DATA + 0x1000, DATA + 0x10_0000):
        assert owner.host_share_hyp(page >> 12) < 0
        assert owner.host_donate_hyp(page >> 12, 1) < 0
    assert host(Ffa.MEM_RECLAIM.smc32, given.x2, given.x3, 0).x0 == OK
    assert not host.spmc.regions
    assert owner.host_donate_hyp(DATA >> 12, 2) == 0
    assert host.code(host(Ffa.MEM_RECLAIM.smc32, given.x2, given.x3, 0)) == FfaReturn.INVALID_PARAMETERS


@GENERATIONS
def test_pages_that_are_not_the_hosts_own_are_denied_and_the_others_stay_with_it(generation: str) -> None:
    host = Host(generation)
    owner = host.system.hyp.ownership
    assert owner.host_donate_hyp((DATA >> 12) + 8, 1) == 0
    assert host.code(host.give(host.descriptor(Range(DATA, 2), Range(DATA + 0x8000, 1)))) == FfaReturn.DENIED
    assert not host.spmc.regions
    assert owner.host_donate_hyp(DATA >> 12, 2) == 0


@pytest.mark.parametrize(("generation", "by"), [("14", "firmware"), ("15", "proxy"), ("16", "firmware")])
def test_an_address_inside_a_page_is_refused_by_the_proxy_or_behind_it(generation: str, by: str) -> None:
    host = Host(generation)
    asked = host.spmc.next_handle
    code = host.code(host.give(host.descriptor(Range(DATA + 8, 1))))
    assert code == (FfaReturn.DENIED if by == "proxy" else FfaReturn.INVALID_PARAMETERS)
    assert (host.spmc.next_handle == asked) == (by == "proxy")
    assert host.system.hyp.ownership.host_donate_hyp(DATA >> 12, 1) == 0


@pytest.mark.parametrize(("generation", "taken"), [("14", True), ("15", True), ("16", False)])
def test_the_shortest_descriptor_is_that_of_the_version_or_of_1_1(generation: str, taken: bool) -> None:
    """Without a constituent: the firmware gets it, or the proxy finds it too short."""
    host = Host(generation, ready=False)
    host.spmc.add_partition(0x8001, SERVICE)
    host.version = VERSION_1_0
    host(Ffa.VERSION.smc32, VERSION_1_0)
    host(Ffa.RXTX_MAP.smc64, TX, RX, 1)
    data = host.descriptor()[:48]
    data = data[:36] + struct.pack("<I", 32) + data[40:]
    asked = host.spmc.next_handle
    host.give(data)
    assert (host.spmc.next_handle != asked) == taken


@GENERATIONS
def test_what_the_firmware_refuses_is_the_hosts_again(generation: str) -> None:
    host = Host(generation)
    result = host.give(host.descriptor(Range(DATA, 1), receiver=0x8009))
    assert host.code(result) == FfaReturn.INVALID_PARAMETERS
    assert host.system.hyp.ownership.host_donate_hyp(DATA >> 12, 1) == 0


def _no_offset(data: bytes, at: int) -> bytes:
    return data[: at + 4] + bytes(4) + data[at + 8 :]


@GENERATIONS
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data, at: data[:60], FfaReturn.INVALID_PARAMETERS),
        (lambda data, at: data[:-1], FfaReturn.INVALID_PARAMETERS),
        (lambda data, at: struct.pack("<H", 3) + data[2:], FfaReturn.INVALID_PARAMETERS),
        (lambda data, at: data[:28] + struct.pack("<I", 2) + data[32:], FfaReturn.INVALID_PARAMETERS),
        (_no_offset, FfaReturn.INVALID_PARAMETERS),
        (lambda data, at: data[: at + 4] + struct.pack("<I", 0x1000) + data[at + 8 :], FfaReturn.INVALID_PARAMETERS),
    ],
    ids=["short", "torn", "sender", "endpoints", "no offset", "far offset"],
)
def test_a_bad_descriptor_is_refused_before_any_page_changes(generation: str, change, code: int) -> None:
    host = Host(generation)
    data = change(host.descriptor(Range(DATA, 1)), ffa.access_offset(host.version))
    assert host.code(host.give(data)) == code
    assert host.system.hyp.ownership.host_donate_hyp(DATA >> 12, 1) == 0


@pytest.mark.parametrize(("generation", "code"), [("14", -2), ("15", -2), ("16", -1)])
def test_an_offset_that_overflows_has_the_code_of_the_generation(generation: str, code: int) -> None:
    host = Host(generation)
    at = ffa.access_offset(host.version)
    data = host.descriptor(Range(DATA, 1))
    data = data[: at + 4] + struct.pack("<I", 0xFFFF_FFF8) + data[at + 8 :]
    assert host.code(host.give(data)) == code


@GENERATIONS
def test_a_descriptor_that_is_too_long_has_no_memory(generation: str) -> None:
    host = Host(generation)
    assert host.code(host.give(host.descriptor(Range(DATA, 1)), length=1 << 20)) == FfaReturn.NO_MEMORY


@GENERATIONS
def test_long_descriptors_pass_in_parts_both_ways(generation: str) -> None:
    host = Host(generation)
    ranges = [Range(DATA + 0x2000 * n, 1) for n in range(400)]
    data = host.descriptor(*ranges)
    first = (4096 - ffa.access_offset(host.version) - 16 - COMPOSITE_SIZE) // 16 * 16
    first += ffa.access_offset(host.version) + 16 + COMPOSITE_SIZE
    answer = host.give(data[:first], length=len(data))
    assert (answer.x0, answer.x3) == (Ffa.MEM_FRAG_RX.smc32, first)
    rest = data[first:]
    host.ram.write(TX, rest)
    done = host(Ffa.MEM_FRAG_TX.smc32, answer.x1, answer.x2, len(rest))
    assert done.x0 == OK
    owner = host.system.hyp.ownership
    assert owner.host_donate_hyp(ranges[-1].address >> 12, 1) < 0
    assert host(Ffa.MEM_RECLAIM.smc32, done.x2, done.x3, 0).x0 == OK
    assert all(owner.host_donate_hyp(part.address >> 12, 1) == 0 for part in ranges)


@pytest.mark.parametrize(("generation", "code"), [("14", -6), ("15", -6), ("16", -13)])
def test_a_denied_part_ends_the_transaction(generation: str, code: int) -> None:
    host = Host(generation)
    data = host.descriptor(Range(DATA, 1), Range(DATA + 0x1000, 1))
    answer = host.give(data[:-16], length=len(data))
    host.system.hyp.ownership.host_donate_hyp((DATA >> 12) + 1, 1)
    host.ram.write(TX, data[-16:])
    assert host.code(host(Ffa.MEM_FRAG_TX.smc32, answer.x1, answer.x2, 16)) == code
    assert not host.spmc.transfers


def test_partitions_are_listed_through_the_hosts_buffer() -> None:
    host = Host()
    listed = host(Ffa.PARTITION_INFO_GET.smc32)
    assert (listed.x0, listed.x2, listed.x3) == (OK, 1, 24)
    endpoint, contexts, properties = struct.unpack("<HHI", host.ram.read(RX, 8))
    assert (endpoint, contexts, properties) == (0x8001, 1, 0x101)
    assert host.ram.read(RX + 8, 16) == uuid.UUID(SERVICE).bytes
    assert host.code(host(Ffa.PARTITION_INFO_GET.smc32)) == FfaReturn.BUSY
    assert host(Ffa.RX_RELEASE.smc32).x0 == OK
    words = struct.unpack("<4I", uuid.UUID(SERVICE).bytes)
    assert host(Ffa.PARTITION_INFO_GET.smc32, *words, 1)[:3] == (OK, 0, 1)
    assert host.code(host(Ffa.PARTITION_INFO_GET.smc32, 1, 2, 3, 4)) == FfaReturn.INVALID_PARAMETERS


def test_partitions_are_asked_for_only_with_a_buffer() -> None:
    host = Host(ready=False)
    host(Ffa.VERSION.smc32, VERSION_1_1)
    assert host.code(host(Ffa.PARTITION_INFO_GET.smc32)) == FfaReturn.BUSY


@pytest.mark.parametrize("generation", ["15", "16"])
def test_a_partition_answers_direct_requests(generation: str) -> None:
    host = Host(generation)
    answer = host(Ffa.MSG_SEND_DIRECT_REQ.smc32, 0x8001, 0, 41, 2)
    assert (answer.x0, answer.x1, answer.x3) == (Ffa.MSG_SEND_DIRECT_RESP.smc32, 0x8001 << 16, 42)
    assert host.code(host(Ffa.MSG_SEND_DIRECT_REQ.smc32, 0x8002)) == FfaReturn.INVALID_PARAMETERS


def test_android16_does_not_pass_on_a_request_in_anothers_name() -> None:
    host = Host()
    assert host(Ffa.MSG_SEND_DIRECT_REQ.smc32, 5 << 16 | 0x8001, 0, 41) == (0x8400_006F, 5 << 16 | 0x8001, 0, 41)


@GENERATIONS
@pytest.mark.parametrize("function", [Ffa.MEM_DONATE.smc64, Ffa.MEM_RETRIEVE_REQ.smc64, Ffa.RXTX_MAP.smc32])
def test_the_call_filter_refuses_what_the_proxy_cannot_watch(generation: str, function: int) -> None:
    host = Host(generation)
    assert host.code(host(function)) == FfaReturn.NOT_SUPPORTED
    assert host.code(host(Ffa.FEATURES.smc32, function)) == FfaReturn.NOT_SUPPORTED


@GENERATIONS
def test_features_are_the_proxys_for_memory_and_the_firmwares_for_the_rest(generation: str) -> None:
    host = Host(generation)
    for function in (Ffa.MEM_SHARE.smc32, Ffa.RXTX_MAP.smc64):
        assert host(Ffa.FEATURES.smc32, function)[:3:2] == (OK, 0)
    assert host.code(host(Ffa.FEATURES.smc32, Ffa.RUN.smc32)) == FfaReturn.NOT_SUPPORTED


def test_a_snapshot_brings_back_proxy_and_firmware() -> None:
    host = Host()
    before, digest = host.system.snapshot(), host.system.machine.digest()
    given = host.give(host.descriptor(Range(DATA, 1)))
    assert given.x0 == OK
    host.system.restore(before)
    assert host.system.machine.digest() == digest
    assert host.code(host(Ffa.MEM_RECLAIM.smc32, given.x2, given.x3, 0)) == FfaReturn.INVALID_PARAMETERS


def _nonsense(generation: str) -> tuple[Host, HvcResult]:
    """A host that has given a page, and firmware that says its description has 8 bytes."""
    host = Host(generation)
    given = host.give(host.descriptor(Range(DATA, 1)))
    host.ram.write(host.system.hyp.ffa.rx, host.descriptor(Range(DATA, 1)))
    request = Ffa.MEM_RETRIEVE_REQ.smc64
    host.system.hyp.el3.serve(lambda x: (Ffa.MEM_RETRIEVE_RESP.smc32, 8, 64) if x[0] == request else None)
    return host, given


@pytest.mark.parametrize("generation", ["14", "16"])
def test_a_description_that_makes_no_sense_is_a_warn(generation: str) -> None:
    host, given = _nonsense(generation)
    with pytest.raises(HypPanic, match=r"EL3 describes a region with offset 0x[34]0 and 0x40 of 0x8 bytes"):
        host(Ffa.MEM_RECLAIM.smc32, given.x2, given.x3, 0)


def test_android15_ends_the_call_where_the_description_makes_no_sense() -> None:
    host, given = _nonsense("15")
    assert host.code(host(Ffa.MEM_RECLAIM.smc32, given.x2, given.x3, 0)) == FfaReturn.ABORTED


def test_the_secure_world_cannot_make_the_hypervisor_forget_a_page() -> None:
    host = Host()
    given = host.give(host.descriptor(Range(DATA, 1)))
    region = host.spmc.regions[given.x2]
    host.spmc.regions[given.x2] = region._replace(ranges=(Range(DATA + 0x5000, 1),))
    with pytest.raises((HypPanic, HypBug), match="cannot be given back"):
        host(Ffa.MEM_RECLAIM.smc32, given.x2, given.x3, 0)


@pytest.mark.parametrize(("endpoint", "name"), [(1, SERVICE), (0x8001, "none"), (0x1_0000, SERVICE)])
def test_a_partition_needs_a_secure_id_and_a_uuid(endpoint: int, name: str) -> None:
    with pytest.raises(UsageError, match="partition"):
        Host(ready=False).spmc.add_partition(endpoint, name)
