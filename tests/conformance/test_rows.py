"""Every row that a real kernel printed comes out of the same module here."""

from __future__ import annotations

import pytest
from conformance_rows import HERE, Row, printed, recorded, same

from pkvm_emu.kernel.faults import KernelOops

RECORDINGS = sorted(path.stem for path in (HERE / "results").glob("*.tsv"))


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_rows_are_those_of_a_real_kernel(boot, start, name: str) -> None:
    when, *phases = name.split("_")
    if name == "early_keep":
        # The page is donated before deprivilege and touched after it: the recorded boot ends in the oops.
        system = boot("ops_test.phases=keep")
        with pytest.raises(KernelOops, match="hypervisor-protected memory"):
            start(system, "ktouch")
    elif when == "early":
        system = boot("ops_test.phases=" + "+".join(f"e_{phase}" for phase in phases))
    else:
        system = boot()
        for phase in phases:
            assert start(system, phase) == 0
    ours, theirs = printed(system.dmesg), recorded(name)
    differences = [f"{a}\n  recorded: {b}" for a, b in zip(ours, theirs, strict=False) if not same(a, b)]
    assert not differences, "\n".join(differences)
    assert len(ours) == len(theirs)


def test_a_row_that_differs_is_noticed() -> None:
    row = Row("HYP_OWNED", "host_share_hyp", ("0", "-EPERM", "0x0", "0x0"))
    assert same(row, row)
    assert not same(row, Row("HYP_OWNED", "host_share_hyp", ("0", "-EINVAL", "0x0", "0x0")))
    assert not same(row, Row("HYP_OWNED", "host_share_hyp", ("-1", "-EPERM", "0x0", "0x0")))
    leaf = Row("HYP_OWNED", "host_stage2_get_leaf", ("0", "0", "0x40f934ff", "0x3"))
    assert same(leaf, Row("HYP_OWNED", "host_stage2_get_leaf", ("0", "0", "0x40aaa4ff", "0x3")))
    assert not same(leaf, Row("HYP_OWNED", "host_stage2_get_leaf", ("0", "0", "0x40f9347f", "0x3")))
    assert not same(leaf, Row("HYP_OWNED", "host_stage2_get_leaf", ("0", "0", "0x40f934ff", "0x2")))
