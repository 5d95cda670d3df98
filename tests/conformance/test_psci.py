"""CPUs that go off and on, as the module of the recordings counts it."""

from __future__ import annotations

from conformance_rows import printed

from pkvm_emu.machine.profile import MachineProfile


def test_the_notifier_hears_of_one_cpu_entry_for_an_off_and_on_and_of_nothing_else(boot, start) -> None:
    system = boot(profile=MachineProfile(cpus=2))
    assert start(system, "reg") == 0
    counts = []
    for action in (lambda: 0, lambda: system.kernel.cpu_down(1), lambda: system.kernel.cpu_up(1)):
        assert action() == 0
        assert start(system, "smc") == 0
        rows = [row for row in printed(system.dmesg) if row.operation == "psci suspend/sys/entry"]
        counts.append(rows[-1].values)
    assert [values[1] for values in counts] == ["0", "0", "0x1"]
