"""Everything that a booted system holds can go back: each root of Python-side state, RAM, registers, code."""

from __future__ import annotations

from typing import Any

import pytest

import pkvm_emu
from pkvm_emu.machine import machine as machine_module
from pkvm_emu.machine.memory import CopyRam, CowRam, make_ram
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.machine.state import State, StateDict, StateList, canonical
from pkvm_emu.system import System

SMALL = MachineProfile(ram_size=64 << 20)
KINDS = [CowRam, CopyRam] if isinstance(make_ram(0, 4096), CowRam) else [CopyRam]
ANSWER = """
int hyp_init(const struct pkvm_module_ops *ops) {{ return 0; }}
void hyp_call(pkvm_handler_regs_t *regs) {{ u64 *x = (u64 *)regs; x[0] = 0; x[1] = {value}; }}
"""


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def _each_ram(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "make_ram", request.param)


def other(value: Any) -> Any:
    """A value of the same kind that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return value + "?"
    if isinstance(value, bytes):
        return value + b"?"
    if isinstance(value, tuple):
        return (*value, 1)
    if value is None:
        return 1
    return None


def fields(root: State) -> list[str]:
    """Public fields that are plain values: containers and parts are roots or are reached from one."""
    return [
        name
        for name, value in vars(root).items()
        if name[0] != "_" and not isinstance(value, (State, StateDict, StateList))
    ]


def changes(root: Any) -> list[tuple[str, Any]]:
    """Every way to change a root: a label and a function."""
    if isinstance(root, StateDict):
        ways: list[tuple[str, Any]] = [("new key", lambda: root.__setitem__("a new key", 1))]
        if len(root):
            key = next(iter(root))
            ways += [
                ("other value", lambda: root.__setitem__(key, "other")),
                ("deleted", lambda: root.__delitem__(key)),
            ]
        return ways
    if isinstance(root, StateList):
        ways = [("append", lambda: root.append("new"))]
        if len(root):
            ways += [("other value", lambda: root.__setitem__(0, "other")), ("clear", root.clear)]
        return ways
    return [(name, lambda n=name: setattr(root, n, other(getattr(root, n)))) for name in fields(root)]


def test_every_root_of_state_changes_the_digest_and_comes_back(pkvm_driver) -> None:
    system = pkvm_emu.boot(modules=[pkvm_driver("16")], profile=SMALL)
    system.smc(0x8300_0001)
    journal = system.machine.journal
    snapshot = system.snapshot()
    before = {name: canonical(root) for name, root in journal.roots.items()}
    digest = journal.digest()
    assert {"kernel", "hyp", "kernel.log", "kernel.pages", "ownership", "el3.unanswered"} <= before.keys()
    for name, root in journal.roots.items():
        assert isinstance(root, (State, StateDict, StateList)), f"{name} is not journalled"
        ways = changes(root)
        if not ways:
            held = [part for part in journal.roots if part.startswith(f"{name}.")]
            parts = [v for k, v in vars(root).items() if isinstance(v, (StateDict, StateList)) and k != "_journal"]
            public = [k for k in vars(root) if k[0] != "_"]
            assert held or parts or not public, f"{name}: nothing of it can be changed"
        for label, change in ways:
            change()
            assert canonical(root) != before[name], f"{name}: {label} does not show in the digest"
            assert journal.digest() != digest
            system.restore(snapshot)
            assert canonical(root) == before[name], f"{name}: {label} does not come back"
    assert journal.digest() == digest


@pytest.mark.usefixtures("_each_ram")
@pytest.mark.parametrize("generation", ["14", "15", "16"])
def test_what_a_host_does_comes_back(pkvm_driver, generation: str) -> None:
    system = pkvm_emu.boot(modules=[pkvm_driver(generation)], profile=SMALL)
    snapshot = system.snapshot()
    before = system.machine.digest()
    log = system.dmesg

    def live() -> tuple[Any, ...]:
        kernel = system.kernel
        answers = [system.call("pkvm_driver_hyp_hvc", 1, 1).x1]
        page = kernel.pages.alloc_pages(0, zero=True)
        assert page is not None
        answers.append(system.hvc(system.generation.hypercalls["host_share_hyp"], page >> 12).x1)
        answers.append(system.smc(0x8300_0007).x0)
        answers.append(kernel.access("host_load64", system.modules["pkvm_driver"].layout.hyp_base))
        parameter = next(p for p in kernel.parameters.of(system.modules["pkvm_driver"]) if p.name == "call")
        kernel.parameters.set(parameter, "9")
        kernel.log.write("something")
        return (*answers, system.dmesg, system.machine.digest())

    first = live()
    assert first[-1] != before
    system.restore(snapshot)
    assert (system.machine.digest(), system.dmesg) == (before, log)
    # Everything happens again in the same way: nothing was left behind.
    assert live() == first
    system.restore(snapshot)
    assert system.machine.digest() == before


@pytest.mark.usefixtures("_each_ram")
def test_another_module_at_the_same_address_runs_its_own_code(c_module) -> None:
    one, two = (c_module(el2=ANSWER.format(value=value)) for value in (1111, 2222))
    system = pkvm_emu.boot("16", profile=SMALL, deprivilege=False)
    empty = system.snapshot()
    loaded = {}
    for name, module in (("one", one), ("two", two), ("one again", one)):
        system.restore(empty)
        assert list(system.modules) == []
        system.load(module)
        place = (system.modules["probe"].layout.base, system.modules["probe"].token)
        system.kernel.deprivilege()
        expected = 2222 if name == "two" else 1111
        assert system.call("hyp_call").x1 == expected
        loaded[name] = (system.snapshot(), expected, place)
    assert len({place for _, _, place in loaded.values()}) == 1
    for name in ("two", "one", "one again", "two"):
        snapshot, expected, _ = loaded[name]
        system.restore(snapshot)
        assert system.call("hyp_call").x1 == expected


def test_before_and_after_deprivilege_are_two_states(pkvm_driver) -> None:
    system = pkvm_emu.boot(modules=[pkvm_driver("16")], profile=SMALL, deprivilege=False)
    before = system.snapshot()
    system.kernel.deprivilege()
    after = system.snapshot()
    page = system.modules["pkvm_driver"].layout.hyp_base
    for snapshot, protected in ((before, False), (after, True), (before, False), (after, True)):
        system.restore(snapshot)
        assert system.kernel.deprivileged is protected
        assert system.is_secure is protected
        assert (system.kernel.access("host_load64", page)[1] is not None) is protected


def test_a_run_that_ended_in_a_crash_can_be_taken_back(c_module) -> None:
    crash = """
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	x[0] = 0;
	x[1] = x[1] ? *(volatile u64 *)x[1] : 5;
}
"""
    system: System = pkvm_emu.boot(modules=[c_module(el2=crash)], profile=SMALL)
    snapshot = system.snapshot()
    digest = system.machine.digest()
    messages = []
    for _ in range(3):
        with pytest.raises(pkvm_emu.ModuleError) as error:
            system.call("hyp_call", 0x10)
        messages.append(str(error.value))
        system.restore(snapshot)
        assert system.machine.digest() == digest
        assert system.call("hyp_call", 0).x1 == 5
        system.restore(snapshot)
    assert len(set(messages)) == 1
    assert "__kvm_nvhe_hyp_call" in messages[0]
