"""Observers of ops: what they hear, what they may answer, and that nothing stays when they go."""

from __future__ import annotations

from pkvm_emu.hyp.op_calls import OpCall
from pkvm_emu.system import System

MODULE = (
    "watched",
    """
static const struct pkvm_module_ops *o;
int hyp_init(const struct pkvm_module_ops *ops) { o = ops; return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	x[0] = 0;
	o->puts("here");
	x[1] = (u64)(long)o->host_share_hyp(x[1]);
}
""",
)
EPERM = -1


class Recorder:
    def __init__(self, answer: int | None = None) -> None:
        self.heard: list[tuple[OpCall, object]] = []
        self.answer = answer

    def before_op(self, call: OpCall) -> int | None:
        return self.answer if call.name == "host_share_hyp" else None

    def after_op(self, call: OpCall, result: object) -> None:
        self.heard.append((call, result))


def test_an_observer_hears_of_each_op_with_its_arguments_its_caller_and_its_result(system: System) -> None:
    recorder = Recorder()
    with system.hyp.ops.observed(recorder):
        assert system.call("hyp_call", 0x48000).x1 == 0
    (puts, printed), (share, shared) = recorder.heard
    assert (puts.name, printed, share.name, share.args, shared) == ("puts", None, "host_share_hyp", (0x48000,), 0)
    assert len(puts.args) == 1
    assert "hyp_call+" in system.symbols.describe(share.caller, 2)


def test_an_observer_that_answers_takes_the_place_of_the_op(system: System) -> None:
    with system.hyp.ops.observed(Recorder(answer=EPERM)):
        assert system.call("hyp_call", 0x48000).x1 == EPERM + (1 << 64)
    assert system.pages.at(0x48000000).owner.name == "HOST"
    assert system.call("hyp_call", 0x48000).x1 == 0


def test_of_several_observers_the_first_that_answers_has_the_word_and_all_hear_of_it(system: System) -> None:
    first, second = Recorder(answer=-12), Recorder(answer=-5)
    with system.hyp.ops.observed(first), system.hyp.ops.observed(second):
        system.call("hyp_call", 0x48000)
    assert first.heard[-1][1] == second.heard[-1][1] == -12


def test_nothing_of_it_is_left_when_the_last_observer_goes(newest: System) -> None:
    services = newest.machine.core.services
    stub = newest.hyp.ops.stubs["host_share_hyp"] + 8
    plain = services[stub].function.__qualname__
    recorder = Recorder()
    with newest.hyp.ops.observed(recorder):
        pass
    newest.call("hyp_call", 0x48000)
    assert recorder.heard == []
    assert services[stub].function.__qualname__ == plain
