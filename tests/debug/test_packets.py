"""The commands of the protocol, without a socket: what they answer, and that nothing makes them raise."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

import pytest
from harness import Harness, go, monitor, number, send
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pkvm_emu.debug.packets.registry import Go, Leave
from pkvm_emu.debug.registers import BY_NAME, REGISTERS
from pkvm_emu.debug.session import Session
from pkvm_emu.debug.stops import Stop, StopKind
from pkvm_emu.system import System

MODULE = (
    "probed",
    """
u64 counter = 5;
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	counter += x[1];
	x[0] = 0;
	x[1] = counter;
}
""",
)


@pytest.fixture
def session(newest: System) -> Iterator[Session]:
    with Harness(newest) as harness:
        stop = harness.debugger.control.make_stop(StopKind.INTERRUPT)
        yield Session(harness.debugger, stop)


def read(session: Session, name: str) -> int:
    return number(send(session, f"p{BY_NAME[name].number:x}"))


def write(session: Session, name: str, value: int) -> str:
    register = BY_NAME[name]
    return send(session, f"P{register.number:x}={value.to_bytes(register.bits // 8, 'little').hex()}")


def test_supported_names_what_is_there(session: Session) -> None:
    words = send(session, "qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+").split(";")
    assert {"PacketSize=10000", "QStartNoAckMode+", "qXfer:features:read+", "qXfer:libraries:read+", "swbreak+"} <= set(
        words
    )
    for name in (word[:-6] for word in words if word.startswith("qXfer:")):
        annex = {"qXfer:features": "target.xml", "qXfer:exec-file": "1"}.get(name, "")
        assert send(session, f"{name}:read:{annex}:0,fff")[0] in "lm"


def test_an_unknown_packet_has_an_empty_answer(session: Session) -> None:
    for packet in ("", "vMustReplyEmpty", "qUnheardOf", "vFlashErase:0,1", "J", "qCRC:0,1", "bs"):
        assert send(session, packet) == ""


def test_the_description_of_the_target_has_every_register_in_order(session: Session) -> None:
    text, offset = "", 0
    while True:
        answer = send(session, f"qXfer:features:read:target.xml:{offset:x},400")
        text, offset = text + answer[1:], offset + len(answer) - 1
        if answer[0] == "l":
            break
    tree = ElementTree.fromstring(text.partition('"gdb-target.dtd">')[2])
    assert [each.get("name") for each in tree.iter("reg")] == [register.name for register in REGISTERS]
    assert [int(each.get("bitsize", "0")) for each in tree.iter("reg")] == [register.bits for register in REGISTERS]
    groups = {each.get("group") for each in tree.iter("reg")}
    assert {"el1", "el2", "el3", "float"} <= groups
    assert tree.findtext("architecture") == "aarch64"
    assert tree.findtext("osabi") == "none"


def test_every_register_is_written_and_read_back(session: Session) -> None:
    fixed = {"cpsr", "PAR_EL1", "ISR_EL1", "CNTFRQ_EL0", "HCR_EL2", "SCR_EL3", "CPACR_EL1", "CPTR_EL2", "VMPIDR_EL2"}
    fixed |= {
        name
        for name in BY_NAME
        if name.startswith(("pauth", "ID_", "M", "CTR", "DCZ", "SCTLR", "TCR", "TTBR", "VT", "VBAR"))
    }
    fixed |= {"fpsr", "fpcr", "ACTLR_EL1", "ACTLR_EL2", "HACR_EL2", "AFSR0_EL1", "AFSR1_EL1", "AFSR0_EL2", "AFSR1_EL2"}
    fixed |= {"CNTKCTL_EL1", "CNTHCTL_EL2", "HSTR_EL2", "CPTR_EL3", "HPFAR_EL2", "AMAIR_EL1", "AMAIR_EL2", "VPIDR_EL2"}
    fixed |= {"SPSR_EL1", "SPSR_EL2", "SPSR_EL3", "ESR_EL1", "ESR_EL2", "ESR_EL3"}
    before = {name: read(session, name) for name in BY_NAME}
    for position, (name, register) in enumerate(BY_NAME.items()):
        if name in fixed:
            continue
        value = (0x1122_3344_5566_7788 + position) & (1 << register.bits) - 8
        assert write(session, name, value) == "OK", name
        assert read(session, name) == value, name
        assert write(session, name, before[name]) == "OK"


def test_sp_of_the_present_level_is_its_bank(session: Session) -> None:
    assert read(session, "SP_EL1") == read(session, "sp")
    write(session, "SP_EL1", 0xFFFF_FFC0_8700_7000)
    assert read(session, "sp") == 0xFFFF_FFC0_8700_7000


def test_a_written_translation_register_takes_effect(session: Session, newest: System) -> None:
    module = newest.modules["probed"]
    va = module.symbol("init_module")
    assert va is not None
    start = module.layout.base
    assert send(session, f"m{start:x},4")[0] != "E"
    root = read(session, "TTBR1_EL1")
    write(session, "TTBR1_EL1", newest.machine.ram.base + (64 << 20))
    assert newest.machine.engine.translate(start) is None
    assert send(session, f"m{start:x},4") == "E14"
    write(session, "TTBR1_EL1", root)
    assert newest.machine.engine.translate(start) is not None


def test_g_and_big_g_carry_the_same_registers(session: Session) -> None:
    registers = send(session, "g")
    assert number(registers[:16]) == read(session, "x0")
    changed = (7).to_bytes(8, "little").hex() + registers[16:]
    assert send(session, "G" + changed) == "OK"
    assert send(session, "g") == changed


def test_memory_is_read_and_written_at_either_level(session: Session, newest: System) -> None:
    counter = newest.modules["probed"].el2_symbol("counter")
    assert counter is not None
    assert number(send(session, f"m{counter:x},8")) == 5
    assert send(session, f"M{counter:x},8:{(9).to_bytes(8, 'little').hex()}") == "OK"
    assert newest.call("hyp_call", 1).x1 == 10
    assert send(session, f"X{counter:x},1:\x7d\x03") == "OK"
    assert send(session, f"x{counter:x},1") == "\x7d\x03"


def test_reads_end_where_memory_ends(session: Session, newest: System) -> None:
    last = newest.modules["probed"]
    end = last.token + last.layout.hyp_size
    assert len(send(session, f"m{end - 16:x},100")) == 32
    assert send(session, f"m{end:x},4") == "E14"
    assert send(session, f"M{end - 2:x},4:00000000") == "E14"


def test_physical_mode_is_that_of_qemu(session: Session, newest: System) -> None:
    counter = newest.modules["probed"].el2_symbol("counter")
    assert counter is not None
    pa = session.debugger.memory.translate(counter, 2)
    assert send(session, "qqemu.PhyMemMode") == "0"
    assert send(session, "Qqemu.PhyMemMode:1") == "OK"
    assert number(send(session, f"m{pa:x},8")) == 5
    assert send(session, f"m{counter:x},8") == "E14"
    assert send(session, "Qqemu.PhyMemMode:0") == "OK"
    assert send(session, f"m{pa:x},8") == "E14"


def test_a_region_has_its_rights_and_its_owner(session: Session, newest: System) -> None:
    module = newest.modules["probed"]
    answer = send(session, f"qMemoryRegionInfo:{module.token + 8:x}")
    found = dict(part.split(":", 1) for part in answer.rstrip(";").split(";"))
    assert int(found["start"], 16) == module.token
    assert found["permissions"] == "rx"
    assert bytes.fromhex(found["name"]) == b"probed"
    hole = dict(part.split(":", 1) for part in send(session, "qMemoryRegionInfo:10").rstrip(";").split(";"))
    assert int(hole["start"], 16) <= 0x10 < int(hole["start"], 16) + int(hole["size"], 16)
    assert "permissions" not in hole


def test_threads_are_cpus_with_level_and_symbol(session: Session) -> None:
    assert send(session, "qfThreadInfo") == "m1"
    assert send(session, "qsThreadInfo") == "l"
    assert re.match(r"EL1 ", bytes.fromhex(send(session, "qThreadExtraInfo,1")).decode())
    assert send(session, "T1") == "OK"
    assert send(session, "T2") == "E22"
    assert send(session, "Hg9") == "E22"


def test_files_are_ours_and_no_others(session: Session) -> None:
    assert send(session, f"vFile:open:{b'/etc/passwd'.hex()},0,0") == "F-1,2"
    name = b"/pkvm-emu/hypervisor.elf".hex()
    assert send(session, f"vFile:open:{name},1,0") == "F-1,d"
    opened = send(session, f"vFile:open:{name},0,0")
    assert opened == "F3"
    assert send(session, "vFile:pread:3,4,0") == "F4;\x7fELF"
    assert send(session, "vFile:pread:4,4,0") == "F-1,9"
    assert send(session, "vFile:close:3") == "F0"
    assert send(session, "vFile:close:3") == "F-1,9"


def test_resume_actions_are_by_cpu(session: Session) -> None:
    resume = go(session, "vCont;s:1;c")
    assert resume.of(0).single
    assert not resume.of(1).single
    ranged = go(session, "vCont;r1000,1010:1;c").of(0)
    assert (ranged.first, ranged.end) == (0x1000, 0x1010)
    assert isinstance(session.answer(b"c"), Go)
    assert isinstance(session.answer(b"D"), Leave)


@pytest.mark.parametrize("command", ["pt", "s2", "owner", "why", "ops", "hvc", "trace", "snap", "phys", "el", "break"])
def test_every_monitor_command_has_help(session: Session, command: str) -> None:
    assert command in monitor(session, "help")
    text = monitor(session, f"help {command}")
    assert text.startswith(f"monitor {command}")
    assert len(text.splitlines()) > 3


def test_monitor_commands_say_what_is_wrong(session: Session) -> None:
    assert "no monitor command 'nonsense'" in monitor(session, "nonsense")
    assert "usage: monitor pt" in monitor(session, "pt")
    assert "no number" in monitor(session, "pt what")
    assert "no state 'x' is kept" in monitor(session, "snap load x")
    assert "monitor: " in monitor(session, "pt 'unclosed")


def test_monitor_shows_both_stages(session: Session, newest: System) -> None:
    module = newest.modules["probed"]
    walk = monitor(session, "pt hyp_call")
    assert walk.startswith("EL2 stage 1 of")
    assert [line.split(":")[0].strip() for line in walk.splitlines()[1:5]] == [f"level {n}" for n in range(4)]
    pa = session.debugger.memory.translate(module.token, 2)
    assert f"PA {pa:#x}" in monitor(session, f"pt {module.token:#x}")
    assert "owner HYP" in monitor(session, f"s2 {pa:#x}")
    assert "host_donate_hyp" in monitor(session, f"why {module.token:#x}")
    assert f"{0xC600_0080:#x} hyp_call [probed]" in monitor(session, "hvc")
    assert "host_donate_hyp" in monitor(session, "ops donate")


PACKETS = st.one_of(
    st.binary(max_size=60),
    st.tuples(
        st.sampled_from(
            [
                "g",
                "G",
                "p",
                "P",
                "m",
                "M",
                "x",
                "X",
                "Z0,",
                "Z2,",
                "z1,",
                "z4,",
                "H",
                "Hg",
                "T",
                "vCont;",
                "vCont;s:",
                "vCont;r",
                "s",
                "c",
                "qXfer:",
                "qXfer:features:read:",
                "qXfer:libraries:read:",
                "vFile:open:",
                "vFile:pread:",
                "vFile:fstat:",
                "qRcmd,",
                "qMemoryRegionInfo:",
                "qThreadExtraInfo,",
                "Qqemu.PhyMemMode:",
                "qSupported",
                "QNonStop:",
                "jThreadsInfo",
                "vAttach;",
                "?",
                "qC",
            ]
        ),
        st.text(alphabet="0123456789abcdef,:;.-=p", max_size=40),
    ).map(lambda pair: (pair[0] + pair[1]).encode()),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PACKETS)
def test_no_packet_raises_or_shows_an_internal_error(
    session: Session, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    answer = session.answer(data)
    assert isinstance(answer, (bytes, Go, Leave))
    assert answer != b"E63", capsys.readouterr().err


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(
        ["help", "pt", "s2", "owner", "why", "ops", "hvc", "snap", "phys", "el", "break", "call", "dmesg", "results"]
    ),
    st.lists(
        st.sampled_from(
            ["hvc", "0", "-1", "1", "0x40000000", "$x0", "$pc+4", "hyp_call", "a b", "'", "on", "off", "list"]
        ),
        max_size=3,
    ),
)
def test_no_monitor_line_is_an_internal_error(session: Session, name: str, words: list[str]) -> None:
    assert send(session, f"qRcmd,{' '.join([name, *words]).encode().hex()}") != "E63"


def test_a_stop_reply_names_thread_and_reason(session: Session) -> None:
    pc = session.debugger.registers.read(0, "pc")
    session.client = frozenset(("swbreak+",))
    session.at_stop(Stop(StopKind.BREAKPOINT, 0, pc, 1))
    reply = send(session, "?")
    assert reply.startswith("T05thread:1;core:0;swbreak:;")
    assert f"20:{pc.to_bytes(8, 'little').hex()};" in reply
    session.at_stop(Stop(StopKind.WATCHPOINT, 0, pc, 1, watch=("awatch", 0x1000)))
    assert "awatch:1000;" in send(session, "?")
    session.at_stop(Stop(StopKind.ERROR, 0, pc, 1, "gone wrong"))
    assert send(session, "?").startswith("T06")
    session.at_stop(Stop(StopKind.END, 0, pc, 1))
    assert send(session, "?") == "W00"
