"""SDEI: registration, and a handler of a module that runs when Python fires the event."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import pkvm_emu
from pkvm_emu.arch.sdei import Sdei
from pkvm_emu.errors import ModuleError, UsageError
from pkvm_emu.hyp.el3_sdei import SdeiCompletion
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System

PROFILE = MachineProfile(ram_size=64 << 20, cpus=2, el3="full")
INVALID, DENIED, PENDING = ((1 << 64) - n for n in (2, 3, 5))

#: The entry is bare code, as the interface wants it: it counts, keeps what it got, and ends by an SMC;
#: others return, or unregister first.
EL1 = """
extern char sdei_entry[], sdei_resumed[], sdei_returns[], sdei_leaves[];
unsigned long sdei_seen[8];
asm(".pushsection .text\\n"
    ".global sdei_entry\\nsdei_entry: bti c\\n"
    "adrp x4, sdei_seen\\n add x4, x4, :lo12:sdei_seen\\n"
    "stp x0, x1, [x4]\\n stp x2, x3, [x4, #16]\\n"
    "ldr x5, [x4, #32]\\n add x5, x5, #1\\n str x5, [x4, #32]\\n"
    "mov x6, x4\\n mov x1, #3\\n movz x0, #0xc400, lsl #16\\n movk x0, #0x24\\n smc #0\\n str x0, [x6, #40]\\n"
    "ldr x1, [x6, #48]\\n cbnz x1, 1f\\n"
    "mov x1, xzr\\n movz x0, #0xc400, lsl #16\\n movk x0, #0x25\\n smc #0\\n brk #1\\n"
    "1: movz x0, #0xc400, lsl #16\\n movk x0, #0x26\\n smc #0\\n brk #1\\n"
    ".global sdei_resumed\\nsdei_resumed: bti j\\n adrp x4, sdei_seen\\n add x4, x4, :lo12:sdei_seen\\n"
    "mov x5, #77\\n str x5, [x4, #56]\\n eret\\n"
    ".global sdei_returns\\nsdei_returns: bti c\\n ret\\n"
    ".global sdei_leaves\\nsdei_leaves: bti c\\n mov x1, xzr\\n movz x0, #0xc400, lsl #16\\n movk x0, #0x27\\n smc #0\\n"
    "movz x0, #0xc400, lsl #16\\n movk x0, #0x25\\n smc #0\\n brk #1\\n"
    ".popsection\\n");
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
static unsigned long token;
static int __init probe_init(void)
{
	pr_info("at %px %px %px %px %px\\n", sdei_entry, sdei_resumed, sdei_returns, sdei_leaves, sdei_seen);
	return pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);
}
module_init(probe_init);
"""
EL2 = "int hyp_init(const struct pkvm_module_ops *ops) { return 0; }\n"


class Client:
    """A system with the module, and its five addresses."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.sdei = system.hyp.el3.sdei
        words = next(line for line in system.dmesg.splitlines() if "probe: at " in line).split("probe: at ")[1].split()
        self.entry, self.resumed, self.returns, self.leaves, self._seen = (int(word, 16) for word in words)

    def __call__(self, function: Sdei, *args: int) -> int:
        return self.system.smc(function.smc64, *args).x0

    def seen(self, index: int) -> int:
        return self.system.kernel.memory.read_u64(self._seen + 8 * index)

    def resume_at(self, address: int) -> None:
        self.system.kernel.memory.write_u64(self._seen + 48, address)

    def prepare(self, number: int = 0, entry: int | None = None, argument: int = 0x123) -> None:
        assert self(Sdei.EVENT_REGISTER, number, entry or self.entry, argument, 0, 0) == 0
        assert self(Sdei.EVENT_ENABLE, number) == 0
        self(Sdei.PE_UNMASK)


@pytest.fixture(scope="module", params=["14", "16"])
def base(request, c_module) -> System:
    module = c_module(EL1, EL2, generation=request.param)
    return pkvm_emu.boot(modules=[module], profile=PROFILE)


@pytest.fixture
def client(base: System) -> Iterator[Client]:
    before = base.snapshot()
    yield Client(base)
    base.restore(before)


def test_the_version_is_1_0_and_binding_interrupts_is_not_offered(client: Client) -> None:
    assert client(Sdei.VERSION) == 1 << 48
    assert client(Sdei.FEATURES, 0) == 0
    assert client(Sdei.FEATURES, 9) == INVALID
    assert client(Sdei.INTERRUPT_BIND, 33) == (1 << 64) - 1


def test_an_event_goes_through_its_states(client: Client) -> None:
    assert client(Sdei.EVENT_STATUS, 0) == 0
    assert client(Sdei.EVENT_ENABLE, 0) == DENIED
    assert client(Sdei.EVENT_REGISTER, 0, client.entry, 0, 0, 0) == 0
    assert client(Sdei.EVENT_REGISTER, 0, client.entry, 0, 0, 0) == DENIED
    assert client(Sdei.EVENT_STATUS, 0) == 1
    assert client(Sdei.EVENT_ENABLE, 0) == 0
    assert client(Sdei.EVENT_STATUS, 0) == 3
    assert client(Sdei.EVENT_DISABLE, 0) == 0
    assert client(Sdei.EVENT_UNREGISTER, 0) == 0
    assert client(Sdei.EVENT_UNREGISTER, 0) == DENIED
    assert client(Sdei.EVENT_STATUS, 5) == INVALID


def test_what_an_event_is_can_be_asked(client: Client) -> None:
    client.sdei.define(40, shared=True, critical=True)
    assert [client(Sdei.EVENT_GET_INFO, 0, what) for what in range(3)] == [0, 1, 0]
    assert [client(Sdei.EVENT_GET_INFO, 40, what) for what in range(3)] == [1, 0, 1]
    assert client(Sdei.EVENT_GET_INFO, 40, 3) == DENIED
    assert client(Sdei.EVENT_GET_INFO, 0, 3) == INVALID
    with pytest.raises(UsageError, match="40 exists"):
        client.sdei.define(40)


def test_a_shared_event_is_routed_to_a_cpu_that_exists(client: Client) -> None:
    client.sdei.define(40, shared=True)
    other = client.system.machine.cpus[1].mpidr & 0xFF_00FF_FFFF
    assert client(Sdei.EVENT_REGISTER, 40, client.entry, 0, 1, 0x99) == INVALID
    assert client(Sdei.EVENT_REGISTER, 40, client.entry, 0, 1, other) == 0
    assert (client(Sdei.EVENT_GET_INFO, 40, 3), client(Sdei.EVENT_GET_INFO, 40, 4)) == (1, other)
    client(Sdei.EVENT_ENABLE, 40)
    assert client(Sdei.EVENT_ROUTING_SET, 40, 0, 0) == DENIED
    client(Sdei.PE_UNMASK)
    with pytest.raises(UsageError, match="routed to the CPU"):
        client.sdei.fire(40)


def test_a_handler_gets_the_event_and_what_it_interrupts_and_completes(client: Client) -> None:
    client.prepare()
    engine = client.system.machine.engine
    before = [engine.read(f"x{n}") for n in range(31)], engine.read("sp"), engine.read("pc")
    assert client.sdei.fire(0) == SdeiCompletion(0, None)
    assert ([engine.read(f"x{n}") for n in range(31)], engine.read("sp"), engine.read("pc")) == before
    assert [client.seen(n) for n in range(6)] == [0, 0x123, before[2], 0x3C5, 1, before[0][3]]
    assert client(Sdei.EVENT_STATUS, 0) == 3
    client.sdei.fire(0)
    assert client.seen(4) == 2


def test_a_handler_may_complete_and_go_on_elsewhere(client: Client) -> None:
    client.prepare()
    client.resume_at(client.resumed)
    assert client.sdei.fire(0) == SdeiCompletion(0, client.resumed)
    assert client.seen(7) == 77
    assert client.system.smc(Sdei.VERSION.smc64).x0 == 1 << 48


def test_an_event_that_its_handler_unregisters_is_gone_when_it_completes(client: Client) -> None:
    client.prepare(entry=client.leaves)
    client.sdei.fire(0)
    assert client(Sdei.EVENT_STATUS, 0) == 0


def test_a_handler_that_returns_without_completing_is_an_error_of_the_module(client: Client) -> None:
    client.prepare(entry=client.returns)
    with pytest.raises(ModuleError, match=r"event 0, sdei_returns.*without SDEI_EVENT_COMPLETE"):
        client.sdei.fire(0)
    assert client(Sdei.EVENT_STATUS, 0) == 3


def test_events_are_delivered_only_where_they_may_be(client: Client) -> None:
    with pytest.raises(UsageError, match="no SDEI event 9"):
        client.sdei.fire(9)
    with pytest.raises(UsageError, match="nobody registered"):
        client.sdei.fire(0)
    client.prepare()
    assert client(Sdei.PE_MASK) == 1
    assert client(Sdei.PE_MASK) == 0
    with pytest.raises(UsageError, match="masks events"):
        client.sdei.fire(0)
    assert client(Sdei.PRIVATE_RESET) == 0
    assert client(Sdei.EVENT_STATUS, 0) == 0


def test_a_signal_waits_until_the_cpu_is_interrupted(client: Client) -> None:
    client.prepare()
    mpidr = client.system.machine.cpus[0].mpidr & 0xFF_00FF_FFFF
    assert client(Sdei.EVENT_SIGNAL, 1, mpidr) == INVALID
    assert client.sdei.deliver_signal() is None
    assert client(Sdei.EVENT_SIGNAL, 0, mpidr) == 0
    assert client.seen(4) == 0
    assert client.sdei.deliver_signal() == SdeiCompletion(0, None)
    assert client.sdei.deliver_signal() is None


def test_calls_of_a_handler_are_refused_outside_one(client: Client) -> None:
    for function in (Sdei.EVENT_CONTEXT, Sdei.EVENT_COMPLETE, Sdei.EVENT_COMPLETE_AND_RESUME):
        assert client(function, 0) == DENIED


def test_each_cpu_has_its_private_events(client: Client) -> None:
    client.prepare()
    with client.system.on_cpu(1):
        assert client(Sdei.EVENT_STATUS, 0) == 0
        client.prepare(argument=5)
        client.sdei.fire(0)
    assert client.seen(1) == 5
    client.sdei.fire(0)
    assert client.seen(1) == 0x123
