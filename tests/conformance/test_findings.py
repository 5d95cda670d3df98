"""What a real kernel does beside its documentation: the findings of the recordings, phase by phase of the conformance module."""

from __future__ import annotations

import re

import pytest
from conformance_rows import HERE, printed

from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.kernel.faults import KernelOops

BUG_ESR = 0xF200_0800
CFI_ESR = 0xF200_8228

PANICS = [
    ("bug", BUG_ESR, r"hypervisor BUG: BUG\(\) or WARN\(\) at __kvm_nvhe_ops_test_hvc.*el2.c:\d+"),
    ("unpin0", BUG_ESR, r"ops->unpin_shared_mem\(\), called by .*reference count .* below zero"),
    ("unusedma", BUG_ESR, r"ops->pkvm_unuse_dma\(\), called by .*reference count .* below zero"),
    ("protdev", BUG_ESR, r"ops->host_stage2_mod_prot\(\), called by "),
    ("protpxn", BUG_ESR, r"ops->host_stage2_mod_prot\(\), called by "),
    ("listcorrupt", BUG_ESR, r"ops->list_del_entry_valid_or_report\(\), called by .*list corruption"),
    ("trapnohandler", BUG_ESR, r"trap of the host at run_set.*SYS64.*no handler"),
    ("cfi", CFI_ESR, r"kCFI failure at EL2: .*calls __kvm_nvhe_wrongtype.* as a function of another type"),
    ("null", 0x9600_0005, r"reads 0x0: a NULL pointer"),
    ("hostva", 0x9600_0006, r"linear address of a page that EL2 does not map: page .*owner HOST"),
    ("kernva", 0x9600_0004, r"which EL2 does not map"),
    ("rowrite", 0x9600_004F, r"writes .*without that permission"),
    ("hvawrite", 0x9600_004F, r"writes .*without that permission"),
    ("nullcall", 0x9600_0004, r"calls a NULL function pointer"),
    ("iommu0", 0x9600_0005, r"ops->iommu_donate_pages\(\).*before an IOMMU driver was initialised"),
    ("iommua", 0x9600_0005, r"ops->iommu_donate_pages_atomic\(\).*before an IOMMU driver was initialised"),
    ("hfreebad", 0x9600_0005, r"ops->hyp_free\(\), called by .*not mapped at EL2"),
    ("hfgwtr", 0x0200_0000, r"ops->update_hfgwtr_el2\(\), called by .*no FEAT_FGT"),
]
_WIDTH = re.compile(r"\b(0x)?[0-9a-f]{8,16}\b")


@pytest.mark.parametrize(("phase", "esr", "reason"), PANICS, ids=[row[0] for row in PANICS])
def test_what_is_wrong_at_el2_is_a_panic_with_its_reason(boot, start, phase: str, esr: int, reason: str) -> None:
    system = boot()
    with pytest.raises(HypPanic, match=reason) as caught:
        start(system, phase)
    assert f"{caught.value.state.esr:#x}" == f"{esr:#x}"
    assert "\n" not in str(caught.value)
    what = {BUG_ESR: "BUG", CFI_ESR: "CFI failure"}.get(esr, "panic")
    assert f"kvm [1]: nVHE hyp {what} at: [<" in system.dmesg
    assert "Kernel panic - not syncing: HYP panic:" in system.dmesg
    assert f"pkvm_emu: {caught.value}" in system.dmesg


def test_the_text_of_a_panic_is_that_of_the_kernel(boot, start) -> None:
    system = boot()
    with pytest.raises(HypPanic):
        start(system, "bug")

    def text_of(log: str) -> list[str]:
        lines = [line.partition("] ")[2] for line in log.splitlines()]
        first = next(i for i, line in enumerate(lines) if line.endswith("RUN bug"))
        return [_WIDTH.sub(lambda m: f"<{len(m[0])}>", line) for line in lines[first : first + 8]]

    recorded = (HERE / "transcripts" / "panic-bug.txt").read_text()
    # The address without leading zeros is as long as it is.
    ours, theirs = ([re.sub(r"<1[0-9]>!", "<>!", line) for line in text_of(log)] for log in (system.dmesg, recorded))
    assert ours == theirs


def test_the_panic_notifier_runs_first(boot, start) -> None:
    system = boot()
    start(system, "reg")
    with pytest.raises(HypPanic):
        start(system, "bug")
    module = system.modules["ops_test"]
    counters = module.symbol("__kvm_nvhe_cnt")
    memory = system.kernel.memory
    c_panic, c_putc = 4, 11
    assert memory.read_u64(counters + 8 * c_panic) == 1
    assert memory.read_u64(counters + 8 * c_putc) == len("EL2 panic notifier ran\n\r")


def test_an_el2_init_that_fails_ends_in_a_hypervisor_bug(boot) -> None:
    with pytest.raises(HypPanic, match="nothing is mapped at") as caught:
        boot("", "fail_mod")
    assert caught.value.state.is_bug


def test_linear_map_early_left_mapped_is_a_bug_at_deprivilege(boot) -> None:
    with pytest.raises(HypPanic, match="linear_map_early were never unmapped"):
        boot("ops_test.phases=lmeleft")


def test_a_read_only_page_without_handler_is_an_oops(boot, start) -> None:
    system = boot()
    with pytest.raises(KernelOops) as caught:
        start(system, "ronohandler")
    assert caught.value.esr == 0x97C8_80CF
    assert any(row.raw == "ret=-14" for row in printed(system.dmesg))


def rows_of(system) -> dict[str, tuple[str, ...]]:
    return {row.operation: row.values for row in printed(system.dmesg) if row.values}


def test_hyp_alloc_needs_top_ups(boot, start) -> None:
    system = boot()
    assert start(system, "mem") == 0
    rows = rows_of(system)
    enomem, einval = "0xfffffffffffffff4", "0xffffffffffffffea"
    assert rows["hyp_alloc(64) x2=errno x3=missing"] == ("0", "0", enomem, "0x1")
    assert rows["hyp_alloc(0)"] == ("0", "0", enomem, "0x1")
    values = [row.values for row in printed(system.dmesg) if row.operation == "hyp_alloc(8192)"]
    assert values[0] == ("0", "0", enomem, "0x3")
    assert values[1] is not None
    assert values[1][2:] == ("0x0", "0x0")
    assert rows["hyp_alloc(1<<30)"] == ("0", "0", einval, "0x0")
    assert rows["hyp_alloc(64) after free"][1] == rows["hyp_alloc(64)"][1]


def test_hyp_alloc_of_a_tebibyte_is_e2big_on_an_empty_heap(boot, start) -> None:
    system = boot()
    assert start(system, "halloc40") == 0
    assert rows_of(system)["hyp_alloc(1<<40)"] == ("0", "0", "0xfffffffffffffff9", "0x0")


def test_hyp_alloc_of_a_tebibyte_is_a_panic_on_a_used_heap(boot, start) -> None:
    system = boot()
    assert start(system, "mem") == 0
    with pytest.raises(HypPanic, match=r"hyp_alloc clears its 0x10000000000 bytes"):
        start(system, "halloc40")


def test_the_space_of_a_failed_private_mapping_is_not_given_back(boot, start) -> None:
    system = boot()
    assert start(system, "maphuge") == 0
    rows = rows_of(system)
    assert rows["create_private_mapping(pa,1ul<<40)"][1] == "-ENOMEM"
    assert rows["create_private_mapping(pa,4096) after"][1] == "-ENOMEM"
    cursors = [row.values[1] for row in printed(system.dmesg) if row.values and "after failure" in row.operation]
    assert int(cursors[1], 16) - int(cursors[0], 16) >= 1 << 40


def test_traps_go_to_the_default_handler_that_el2_was_told_to_take(boot, start) -> None:
    system = boot()
    start(system, "reg")
    assert start(system, "trap") == 0
    rows = {(row.state, row.operation): row for row in printed(system.dmesg)}
    assert rows["-", "update_hcr_el2 set TACR(bit21) r=after x2=before"].values == (
        "0",
        "0x30480280001",
        "0x30480080001",
        "0x0",
    )
    assert rows["TACR set", "mrs actlr_el1"].raw == "0x1234abcd"
    assert rows["-", "trap count"].values == ("0", "0x1", "0x0", "0x0")
    assert rows["TACR clear", "mrs actlr_el1"].raw != "0x1234abcd"


def test_the_host_cannot_read_the_pages_of_a_module(boot, start) -> None:
    system = boot()
    assert start(system, "kmodtouch") == 0
    raw = [row.raw for row in printed(system.dmesg) if "nofault read of" in row.operation]
    assert [text.split()[0] for text in raw] == ["ret=-14", "ret=-14"]


def test_there_are_128_dynamic_hypercalls(boot) -> None:
    system = boot("ops_test.phases=maxhcalls")
    assert "registered 127 more hcalls, then ret=-12" in system.dmesg


def test_the_smallest_module(boot) -> None:
    system = boot("", "min_mod")
    assert list(system.modules["min_mod"].hypercalls.values()) == [128]
    assert system.hvc(128, 1)[:2] == (0, 0x2A)


def test_el2_functions_are_imported_from_a_module_that_was_loaded_before(boot) -> None:
    system = boot("", "exp_mod", "imp_mod")
    assert not system.boot_report.failed
    assert system.modules["imp_mod"].token > system.modules["exp_mod"].token


def test_a_missing_exporter_ends_the_list_and_the_boot_goes_on(boot) -> None:
    system = boot("", "imp_mod", "min_mod")
    statuses = [(outcome.name, outcome.status) for outcome in system.boot_report.outcomes]
    assert statuses == [("imp_mod", "failed"), ("min_mod", "skipped")]
    assert "imp_mod: Unknown symbol" in system.dmesg
    assert "Failed to load pkvm module imp_mod: 256" in system.dmesg
    assert not system.is_secure
