"""The SMMUv3 model: registers, queues, and what it lets through by the tables in memory."""

from __future__ import annotations

import pytest

import pkvm_emu
from pkvm_emu.devices.bus import MmioBus
from pkvm_emu.devices.model import DmaError, Model
from pkvm_emu.devices.models.smmu_v3 import CERROR_ABT, CERROR_ILL, SmmuV3
from pkvm_emu.machine.profile import MachineProfile

BASE, SIZE = 0x1000_0000, 0x2_0000
CR0, CR0ACK, GBPA, GERROR, GERRORN = 0x20, 0x24, 0x44, 0x60, 0x64
STRTAB_BASE, STRTAB_CFG, CMDQ_BASE, CMDQ_PROD, CMDQ_CONS = 0x80, 0x88, 0x90, 0x98, 0x9C
EVENTQ_BASE, EVENTQ_PROD, EVENTQ_CONS, IRQ_CTRL = 0xA0, 0x1_00A8, 0x1_00AC, 0x50
SMMUEN, EVENTQEN, CMDQEN = 1, 4, 8
CFGI_STE, SYNC = 0x03, 0x46
STREAM, IOVA = 3, 0x8000_1000
ABORT, BYPASS, STAGE1, STAGE2, NESTED = 0 << 1, 4 << 1, 5 << 1, 6 << 1, 7 << 1
VALID, TABLE, AF = 1, 3, 1 << 10
READ, WRITE = 1 << 6, 1 << 7
USER, READ_ONLY = 1 << 6, 1 << 7


class Board:
    """The model, and memory for its tables: one page each."""

    def __init__(self, bus: MmioBus) -> None:
        self.smmu = SmmuV3(bus, BASE, SIZE, "smmu")
        self.ram = bus.machine.ram
        self.next = self.ram.base + (32 << 20)
        self.strtab, self.cmdq, self.eventq = self.page(), self.page(), self.page()
        for offset, size, value in (
            (STRTAB_BASE, 8, self.strtab),
            (STRTAB_CFG, 4, 4),
            (CMDQ_BASE, 8, self.cmdq | 2),
            (EVENTQ_BASE, 8, self.eventq | 1),
            (CR0, 4, SMMUEN | EVENTQEN | CMDQEN),
        ):
            self.smmu.write(offset, size, value)

    def page(self) -> int:
        self.next += 0x1000
        return self.next

    def entry(self, *words: int, stream: int = STREAM) -> None:
        """A stream table entry; the words are its first, third and fourth."""
        first, third, fourth = (*words, 0, 0)[:3]
        for at, value in ((0, first | VALID), (16, third), (24, fourth)):
            self.ram.write_u64(self.strtab + 64 * stream + at, value)

    def command(self, place: int, low: int, high: int = 0) -> None:
        self.ram.write_u64(self.cmdq + 16 * place, low)
        self.ram.write_u64(self.cmdq + 16 * place + 8, high)

    def table(self, address: int, output: int, attributes: int) -> int:
        """A table of three levels that maps one page; its root."""
        tables = [self.page() for _ in range(3)]
        for level, (table, target) in enumerate(zip(tables, [*tables[1:], output], strict=True), 1):
            index = address >> 12 + 9 * (3 - level) & 0x1FF
            self.ram.write_u64(table + 8 * index, target | (TABLE if level < 3 else TABLE | AF | attributes))
        return tables[0]

    def stage2(self, output: int, attributes: int = READ | WRITE) -> tuple[int, int]:
        """Third and fourth word of an entry with stage 2: 39 bits, from level 1."""
        return (25 | 1 << 6) << 32 | 1 << 51, self.table(IOVA, output, attributes)

    def context(self, output: int, attributes: int = USER) -> int:
        """A context descriptor for stage 1; its address."""
        descriptor = self.page()
        self.ram.write_u64(descriptor, 25 | 1 << 31 | 1 << 41)
        self.ram.write_u64(descriptor + 8, self.table(IOVA, output, attributes))
        return descriptor

    def event(self, place: int = 0) -> tuple[int, int, int]:
        """Type, stream and address of an event record."""
        words = [self.ram.read_u64(self.eventq + 32 * place + at) for at in (0, 16)]
        return words[0] & 0xFF, words[0] >> 32, words[1]


@pytest.fixture
def board() -> Board:
    return Board(pkvm_emu.boot(16, profile=MachineProfile(ram_size=64 << 20)).mmio)


# Registers and queues


def test_control_registers_answer_at_once(board: Board) -> None:
    smmu = board.smmu
    smmu.write(CR0, 4, CMDQEN)
    assert smmu.read(CR0ACK, 4) == CMDQEN
    smmu.write(IRQ_CTRL, 4, 5)
    assert smmu.read(0x54, 4) == 5
    smmu.write(GBPA, 4, 1 << 31 | 1 << 20)
    assert smmu.read(GBPA, 4) == 1 << 20
    smmu.write(GBPA, 4, 0)
    assert smmu.read(GBPA, 4) == 1 << 20
    smmu.write(0, 4, 0)
    assert smmu.idr0.s2p == 1


def test_commands_are_consumed_when_they_are_announced(board: Board) -> None:
    message = board.page()
    board.command(0, CFGI_STE | STREAM << 32)
    board.command(1, SYNC | 1 << 12 | 0x1234 << 32, message)
    board.smmu.write(CMDQ_PROD, 4, 2)
    assert board.smmu.read(CMDQ_CONS, 4) == 2
    assert dict(board.smmu.commands) == {"CFGI_STE": 1, "SYNC": 1}
    assert board.ram.read_u32(message) == 0x1234


def test_the_command_queue_wraps(board: Board) -> None:
    for place in range(4):
        board.command(place, SYNC)
    for prod in (3, 6, 1):
        board.smmu.write(CMDQ_PROD, 4, prod)
        assert board.smmu.read(CMDQ_CONS, 4) == prod
    assert board.smmu.commands["SYNC"] == 9


def test_commands_wait_until_the_queue_is_enabled(board: Board) -> None:
    board.smmu.write(CR0, 4, 0)
    board.command(0, SYNC)
    board.smmu.write(CMDQ_PROD, 4, 1)
    assert board.smmu.read(CMDQ_CONS, 4) == 0
    board.smmu.write(CR0, 4, CMDQEN)
    assert board.smmu.read(CMDQ_CONS, 4) == 1


@pytest.mark.parametrize(("low", "high", "code"), [(0xEE, 0, CERROR_ILL), (SYNC | 1 << 12, 0x1000, CERROR_ABT)])
def test_a_bad_command_stops_the_queue_until_it_is_acknowledged(board: Board, low: int, high: int, code: int) -> None:
    board.command(0, low, high)
    board.command(1, SYNC)
    board.smmu.write(CMDQ_PROD, 4, 2)
    assert board.smmu.read(CMDQ_CONS, 4) == code << 24
    assert board.smmu.read(GERROR, 4) == 1
    board.command(0, SYNC)
    board.smmu.write(GERRORN, 4, 1)
    assert board.smmu.read(CMDQ_CONS, 4) == 2


# Translation


def test_a_disabled_smmu_lets_everything_through_or_nothing(board: Board) -> None:
    board.smmu.write(CR0, 4, 0)
    assert board.smmu.translate(STREAM, IOVA, True) == IOVA
    board.smmu.write(GBPA, 4, 1 << 31 | 1 << 20)
    with pytest.raises(DmaError, match=r"GBPA.ABORT refuses 0x80001000 of stream 0x3"):
        board.smmu.translate(STREAM, IOVA, True)


def test_an_entry_decides_for_a_stream(board: Board) -> None:
    board.entry(BYPASS)
    board.entry(ABORT, stream=4)
    assert board.smmu.translate(STREAM, IOVA + 5, True) == IOVA + 5
    with pytest.raises(DmaError, match="set to abort"):
        board.smmu.translate(4, IOVA, False)
    # An abort by the entry is silent.
    assert board.smmu.read(EVENTQ_PROD, 4) == 0


def test_stage_2_translates_and_protects(board: Board) -> None:
    target = board.page()
    board.entry(STAGE2, *board.stage2(target, READ))
    assert board.smmu.translate(STREAM, IOVA + 0x123, False) == target + 0x123
    with pytest.raises(DmaError, match="F_PERMISSION for a write at 0x80001000 of stream 0x3"):
        board.smmu.translate(STREAM, IOVA, True)
    with pytest.raises(DmaError, match="F_TRANSLATION"):
        board.smmu.translate(STREAM, IOVA + 0x1000, False)
    assert [board.event(place) for place in range(2)] == [(0x13, STREAM, IOVA), (0x10, STREAM, IOVA + 0x1000)]


def test_stage_1_translates_and_protects(board: Board) -> None:
    target = board.page()
    board.entry(STAGE1 | board.context(target, USER | READ_ONLY))
    assert board.smmu.translate(STREAM, IOVA, False) == target
    with pytest.raises(DmaError, match="F_PERMISSION"):
        board.smmu.translate(STREAM, IOVA, True)


def test_both_stages_apply_also_to_the_tables_of_the_first(board: Board) -> None:
    """Stage 2 maps one page only, so the context descriptor is out of reach."""
    board.entry(NESTED | board.context(IOVA), *board.stage2(board.page()))
    with pytest.raises(DmaError, match="F_TRANSLATION"):
        board.smmu.translate(STREAM, IOVA, False)


@pytest.mark.parametrize(
    ("stream", "name"), [(1 << 4, "C_BAD_STREAMID"), (5, "C_BAD_STE")], ids=["beyond the table", "invalid entry"]
)
def test_a_stream_without_entry_is_refused(board: Board, stream: int, name: str) -> None:
    with pytest.raises(DmaError, match=name):
        board.smmu.translate(stream, IOVA, False)


def test_two_level_stream_tables_are_walked(board: Board) -> None:
    leaf = board.page()
    board.smmu.write(STRTAB_CFG, 4, 8 | 6 << 6 | 1 << 16)
    board.ram.write_u64(board.strtab + 8, leaf | 3)
    board.ram.write_u64(leaf + 64 * 2, VALID | BYPASS)
    assert board.smmu.translate(0x42, IOVA, True) == IOVA
    # The span of the second level is four entries.
    for stream in (0x44, 0x02):
        with pytest.raises(DmaError, match="C_BAD_STREAMID"):
            board.smmu.translate(stream, IOVA, True)


def test_a_full_event_queue_loses_events(board: Board) -> None:
    for _ in range(3):
        with pytest.raises(DmaError):
            board.smmu.translate(5, IOVA, False)
    assert board.smmu.read(EVENTQ_PROD, 4) == 2
    board.smmu.write(EVENTQ_CONS, 4, 2)
    with pytest.raises(DmaError):
        board.smmu.translate(5, IOVA, False)
    assert (board.smmu.read(EVENTQ_PROD, 4), board.smmu.read(0xA8, 4)) == (3, 3)


def test_other_models_go_through_it(board: Board) -> None:
    class Master(Model):
        pass

    first, second = board.page(), board.page()
    board.entry(STAGE2, *board.stage2(first))
    board.entry(BYPASS, stream=4)
    master = Master(board.smmu._bus, 0x1100_0000, 0x1000, "master")
    master.connect((), (board.smmu, STREAM))
    master.dma_write(IOVA, b"abc")
    assert board.ram.read(first, 3) == b"abc"
    master.dma_write(second, b"xyz", stream=4)
    assert master.dma_read(second, 3, stream=4) == b"xyz"
    with pytest.raises(DmaError):
        master.dma_read(IOVA + 0xFFF, 2)
