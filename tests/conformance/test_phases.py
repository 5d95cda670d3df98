"""Every phase of the conformance module that has no recording: what the source of the kernel gives for each row.

The reasons name the function that decides (android16-6.12: hyp/nvhe/mem_protect.c, hyp/pgtable.c, hyp/nvhe/{mm,alloc,modules}.c,
kvm/pkvm.c, mm/fault.c).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conformance_rows import Row, printed

from pkvm_emu.cli.main import main
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.kernel.faults import KernelOops
from pkvm_emu.system import System

_ADDRESS = 0x0000_FFFF_FFFF_F000
EPERM, EINVAL, ENOMEM, E2BIG = "-EPERM", "-EINVAL", "-ENOMEM", "0xfffffffffffffff9"


def rows(system: System) -> list[Row]:
    return [row for row in printed(system.dmesg) if row.values or row.raw]


def leaves(system: System) -> list[tuple[int, int]]:
    """Attributes and level of each leaf that was printed."""
    return [
        (int(row.values[2], 16) & ~_ADDRESS, int(row.values[3], 16))
        for row in rows(system)
        if row.values and "get_leaf" in row.operation
    ]


def results(system: System) -> list[tuple[str, str | None]]:
    """Operation and x1 of each call, addresses left out."""
    return [
        (row.operation, row.values[1] if len(row.values[1]) < 8 else "address")
        for row in rows(system)
        if row.values and "get_leaf" not in row.operation
    ]


# Leaf entries: lazy pages, MMIO


def test_a_lazy_page_is_filled_by_the_first_touch_and_stays_a_page(boot, start) -> None:
    """The second enable takes a second reference on the table, which one disable does not give back: no coalescing
    (stage2_get_pages_walker, stage2_coalesce_walk_table_post)."""
    system = boot()
    assert start(system, "lazy") == 0
    assert leaves(system) == [(0, 3), (0x4FF, 3), (0x4FF, 3)]
    assert results(system)[-1] == ("enable_lazy_pte MMIO", EPERM)


def test_before_deprivilege_a_lazy_page_is_not_filled_by_a_touch(boot) -> None:
    """The host's accesses are not translated yet (finding 15); disabling maps the page at once."""
    assert leaves(boot("ops_test.phases=e_lazy")) == [(0, 3), (0, 3), (0x4FF, 3)]


def test_mmio_permissions_split_the_block_and_the_default_joins_it_again(boot, start) -> None:
    """host_stage2_force_pte: only RW is the default for MMIO; module_change_host_page_prot keeps no state for it."""
    system = boot()
    assert start(system, "mmioprot") == 0
    assert leaves(system) == [(0x40_0000_0000_047F, 3), (0x40_0000_0000_04FD, 1), (0x10, 3)]
    assert {x1 for _, x1 in results(system)} == {"0"}


def test_before_deprivilege_mmio_was_never_mapped_and_nothing_joins(boot) -> None:
    """stage2_coalesce_walk_table_post returns early until kvm_protected_mode_initialized."""
    system = boot("ops_test.phases=e_mmioprot")
    assert leaves(system) == [(0x40_0000_0000_047F, 3), (0x40_0000_0000_04FF, 3), (0x10, 3)]


# EL2 mappings


@pytest.mark.parametrize("when", ["late", "early"])
def test_mappings(boot, start, when: str) -> None:
    """__pkvm_create_private_mapping takes its space before it looks at the protection; linear_map_early counts bytes."""
    if when == "late":
        system = boot()
        assert start(system, "map") == 0
    else:
        # Three pages were mapped early, one unmapped: __pkvm_close_module_registration warns, fatally.
        with pytest.raises(HypPanic, match="0x2000 bytes of linear_map_early were never unmapped") as caught:
            boot("ops_test.phases=e_map")
        assert caught.value.state.is_bug
        return
    found = dict(results(system))
    for prot in ("RWX", "prot 0", "prot W"):
        assert found[f"create_private_mapping({prot})"] == EINVAL
    assert found["map_module_page same pfn again"] == EPERM
    assert found["map_module_page same pfn is_protected=true"] == "0"
    assert found["linear_map_early(pa+1,4096)"] == found["linear_map_early(pa,100)"] == "0"
    assert found["linear_map_early(pa,4096,RW)"] == "address"
    assert [x1 for operation, x1 in results(system) if operation in ("host_share_hyp", "host_unshare_hyp")] == [
        "0",
        "0",
    ]
    assert leaves(system) == [(0x4, 3)]
    values = {row.operation: row.values for row in rows(system) if row.values}
    assert values["create_private_mapping(pa+0x123,16,R)"][2].endswith("123")
    assert values["create_private_mapping(pa,0)"][2] == values["create_private_mapping(0x9010000,4096,RW|DEVICE)"][2]
    assert values["EL2 read64 +0xfe0 (pl031 periph id)"][1] == "0x1000000031"
    # The failed mappings took a page of space each (the device page lies before them).
    device = int(values["create_private_mapping(0x9010000,4096,RW|DEVICE)"][2], 16)
    assert [int(row.values[1], 16) for row in rows(system) if row.values and row.operation == "alloc_module_va(1)"] == [
        device + 0x4000,
        device + 0x8000,
    ]
    # The mapping at the module VA survives the return of the page.
    assert rows(system)[[r.state for r in rows(system)].index("given back")].values[1] == "0x1111222233334444"
    hcr = values["HCR r=after x2=before (no change)"]
    assert hcr[1] == hcr[2] == "0x30480080001"


def test_fixblock_reads_what_lies_behind_a_page(boot, start) -> None:
    system = boot()
    assert start(system, "fixblk") == 0
    assert rows(system)[0].values[1] == "0x1111222233334444"


def test_update_hcr_before_deprivilege(boot) -> None:
    """HCR_EL2.VM is set by __pkvm_prot_finalize; without a default trap handler the trapped read is a BUG (handle_trap)."""
    with pytest.raises(HypPanic, match=r"trap of the host at t_trap.*no handler") as caught:
        boot("ops_test.phases=e_trap")
    assert caught.value.state.is_bug


def test_traps_before_deprivilege_with_a_handler(boot) -> None:
    system = boot("ops_test.phases=e_reg+e_trap")
    values = {row.operation: row.values or row.raw for row in rows(system)}
    assert values["update_hcr_el2 set TACR(bit21) r=after x2=before"][1:3] == ("0x30480280000", "0x30480080000")
    assert values["trap count"][1] == "0x1"
    assert values["smc 0x82000042"].startswith("x0=0x5151 x1=0x11")


# The heap


def test_the_heap_needs_a_top_up_also_before_deprivilege(boot) -> None:
    """hyp_allocator_map: -ENOMEM and the pages that are missing, the header included."""
    system = boot("ops_test.phases=e_mem")
    errors = [row.values[2:] for row in rows(system) if row.values and row.operation.startswith("hyp_alloc")]
    enomem = "0xfffffffffffffff4"
    assert errors == [(enomem, "0x1"), (enomem, "0x1"), (enomem, "0x3")]
    found = dict(results(system))
    assert found["device_register_reset(0x9010000)"] == "-ENODEV"
    assert found["unknown op"] == "-ENOSYS"
    values = {row.operation: row.values or row.raw for row in rows(system)}
    assert values["list ops"][1:3] == ("0", "0x1")
    assert values["host sees"] == "p0=0xa5a5a5a5a5a5a5a5 p2=0x0 q0=0xa5a5a5a5a5a5a5a5 q1=0xa5a5a5a5a5a5a5a5"


@pytest.mark.parametrize("cmdline", ["", "ops_test.phases=halloc40"])
def test_a_tebibyte_does_not_fit_an_empty_heap(boot, start, cmdline: str) -> None:
    """setup_first_chunk; refills are hypercalls above prot_finalize and work before and after it."""
    system = boot(cmdline)
    if not cmdline:
        assert start(system, "halloc40") == 0
    assert "TT| NOTE | topup 0" in system.dmesg
    assert rows(system)[0].values == ("0", "0", E2BIG, "0x0")


# Faults of the host


def test_accesses_before_deprivilege_are_not_checked(boot) -> None:
    """Finding 15: stage-2 is kept, but HCR_EL2.VM is clear."""
    system = boot("ops_test.phases=ronohandler+kmodtouch+keep")
    raw = {row.operation: row.raw for row in rows(system) if row.raw}
    assert raw["host EL1 nofault write"] == "ret=0"
    assert raw["host nofault read of the module's own .hyp.text"].startswith("ret=0")
    assert leaves(system) == [(0x40_0000_0000_047F, 3)]


def test_a_handler_makes_the_read_only_page_writable_again(boot, start) -> None:
    """module_handle_host_perm_fault stops at the first handler that returns 0; the page joins its block."""
    system = boot()
    start(system, "reg")
    assert start(system, "ronohandler") == 0
    assert [row.raw for row in rows(system) if row.operation == "host EL1 nofault write"] == ["ret=0"]
    assert leaves(system) == [(0x4FD, 2)]


def test_counters_start_at_zero_and_registering_calls_nobody(boot, start) -> None:
    system = boot()
    start(system, "reg")
    assert start(system, "counts") == 0
    assert [row.values for row in rows(system) if row.operation == "cnt"] == [("0", "0", "0x0", "0x0")] * 12


def test_registering_twice(boot, start) -> None:
    """One-slot registrations are taken; host SMC handlers have 16 slots and no look at duplicates (mod_handler_register)."""
    system = boot("ops_test.phases=e_reg")
    start(system, "reg")
    late = rows(system)[len(rows(system)) // 2 :]
    busy = [row.operation for row in late if row.values and row.values[1] == "-EBUSY"]
    single = [row.operation for row in late if row.values and "again" in row.operation and "smc" not in row.operation]
    assert len(busy) == 2 * len(single) == 12
    assert "register_guest_smc_handler: 0 ok then ret=-16" in system.dmesg


def test_a_donated_read_only_page_stays_with_the_hypervisor(boot, start) -> None:
    """hyp_get_page_state: a mapping that is not RW is RESTRICTED_PROT and never OWNED."""
    system = boot()
    assert start(system, "rodonate") == 0
    assert [x1 for _, x1 in results(system)] == ["0", EPERM]


def test_a_donated_page_in_the_buddy_allocator_kills_whoever_gets_it(boot, start) -> None:
    system = boot()
    assert start(system, "freedonated") == 0
    with pytest.raises(KernelOops, match="hypervisor-protected memory") as caught:
        start(system, "keep")
    assert caught.value.esr == 0x9600_01C7


def test_linear_map_early_after_deprivilege_is_not_checked_again(boot, start) -> None:
    system = boot()
    assert start(system, "lmeleft") == 0


def test_an_unknown_phase_is_einval(boot, start) -> None:
    assert start(boot(), "nosuch") == -22


# Panics


@pytest.mark.parametrize(
    ("phase", "esr"),
    [
        # Level 1: the idmap shares the level-0 entry of address 0. Level 0: TTBR1_EL2 walks are off (EPD1).
        ("null", 0x9600_0005),
        ("kernva", 0x9600_0004),
        ("nullcall", 0x9600_0004),
        # The level-2 table of RAM exists; nothing of this 2 MiB block is mapped at EL2.
        ("hostva", 0x9600_0006),
        ("rowrite", 0x9600_004F),
        ("hvawrite", 0x9600_004F),
        ("snap", 0x9600_0005),
        ("hfreebad", 0x9600_0005),
    ],
)
def test_the_syndrome_of_a_bad_access_at_el2(boot, start, phase: str, esr: int) -> None:
    with pytest.raises(HypPanic) as caught:
        start(boot(), phase)
    assert f"{caught.value.state.esr:#x}" == f"{esr:#x}"


@pytest.mark.parametrize("phase", ["unpin0", "protdev", "protpxn", "unusedma", "listcorrupt", "bugreg"])
def test_a_bug_before_deprivilege_ends_the_boot(boot, phase: str) -> None:
    with pytest.raises(HypPanic) as caught:
        boot(f"ops_test.phases={phase}")
    assert caught.value.state.is_bug


def test_a_panic_in_the_hypervisor_itself_is_symbolised(boot, start) -> None:
    """print_nvhe_hyp_panic: %pB finds core code in the kernel image, module code only with the stack-trace option."""
    system = boot()
    with pytest.raises(HypPanic):
        start(system, "unpin0")
    assert re.search(
        r"nVHE hyp BUG at: \[<ffffffc0[0-9a-f]{8}>\] __kvm_nvhe_\w+\+0x[0-9a-f]+/0x[0-9a-f]+!", system.dmesg
    )


# What the kernel log says


def test_the_text_of_an_oops(boot, start) -> None:
    """die_kernel_fault and die: the fault, its decoding, the registers; GKI kernels panic on an oops."""
    system = boot()
    start(system, "keep")
    with pytest.raises(KernelOops):
        start(system, "ktouch")
    lines = [line.partition("] ")[2] for line in system.dmesg.splitlines()]
    first = next(i for i, line in enumerate(lines) if line.startswith("Unable to handle"))
    # SRT is the compiler's choice.
    esr = re.compile(r"0000000097[0-9a-f]{2}8087")
    assert re.fullmatch(
        r"Unable to handle kernel access to hypervisor-protected memory at virtual address ffffff80[0-9a-f]{8}",
        lines[first],
    )
    assert lines[first + 1] == "Mem abort info:"
    assert esr.search(lines[first + 2])
    assert lines[first + 3 : first + 9] == [
        "  EC = 0x25: DABT (current EL), IL = 32 bits",
        "  SET = 0, FnV = 0",
        "  EA = 0, S1PTW = 1",
        "  FSC = 0x07: level 3 translation fault",
        "Data abort info:",
        "  Access size = 8 byte(s)",
    ]
    assert "  CM = 0, WnR = 0, TnD = 0, TagAccess = 0" in lines
    assert any(re.fullmatch(rf"Internal error: Oops: {esr.pattern} \[#1\] PREEMPT SMP", line) for line in lines)
    assert any(re.fullmatch(r"pc : run_set\+0x[0-9a-f]+/0x[0-9a-f]+ \[ops_test\]", line) for line in lines)
    assert "Modules linked in: ops_test(O)" in lines
    assert any("Tainted: G           O       6.12.0-android16 #1" in line for line in lines)
    assert lines[-1] == "Kernel panic - not syncing: Oops: Fatal exception"


def test_a_refused_registration_warns(boot, start) -> None:
    """Finding 2; kvm_call_hyp_nvhe warns of each refused hypercall, and maxhcalls makes 140 of them."""
    system = boot()
    assert start(system, "maxhcalls") == 0
    warnings = re.findall(
        r"WARNING: CPU: 0 PID: 1 at arch/arm64/kvm/pkvm\.c:\d+ __pkvm_register_el2_call\+", system.dmesg
    )
    assert len(warnings) == 140
    assert re.search(r"NOTE \| registered 140 more hcalls, then ret=\d{9}$", system.dmesg, re.MULTILINE)


def test_a_duplicate_name_ends_the_list(boot) -> None:
    """Finding 22; empty names are skipped."""
    system = boot("kvm-arm.protected_modules=,min_mod,,min_mod,exp_mod", "min_mod", "exp_mod")
    outcomes = [(one.name, one.status, one.errno) for one in system.boot_report.outcomes]
    assert outcomes == [("min_mod", "loaded", 0), ("min_mod", "failed", -17), ("exp_mod", "skipped", 0)]
    assert "Failed to load pkvm module min_mod: 256" in system.dmesg


def test_an_importer_before_its_exporter_ends_the_list(boot) -> None:
    system = boot("kvm-arm.protected_modules=imp_mod,exp_mod", "imp_mod", "exp_mod")
    assert [one.status for one in system.boot_report.outcomes] == ["failed", "skipped"]
    assert "imp_mod: Unknown symbol __kvm_nvhe_exp_fn (err -2)" in system.dmesg


@pytest.mark.parametrize(
    ("mode", "line"),
    [
        ("nvhe", "kvm [1]: Hyp nVHE mode initialized successfully"),
        ("none", "kvm [1]: KVM disabled from command line"),
    ],
)
def test_without_protected_mode_a_load_is_eopnotsupp(boot, mode: str, line: str) -> None:
    """is_protected_kvm_enabled() gates __pkvm_load_el2_module; kvm_arm_init names the mode."""
    system = boot(f"kvm-arm.mode={mode}", "min_mod")
    assert line in system.dmesg
    assert "pkvm_load_el2_module | ret=-95 token=0x0" in system.dmesg
    assert "min_mod" not in system.modules


# The command line


def shell(tmp_path: Path, module: Path, script: str, *options: str) -> int:
    file = tmp_path / "script"
    file.write_text(script)
    return main(["shell", str(module), *options, "--script", str(file)])


def test_the_default_machine_of_the_shell_is_that_of_the_recordings(tmp_path, module_path, capfd) -> None:
    run, ko = "/sys/module/ops_test/parameters/run", module_path("ops_test")
    script = f"echo mmioprot > {run}\necho share > {run}\ndmesg\nrmmod ops_test || echo busy\n"
    assert shell(tmp_path, ko, script) == 0
    out, err = capfd.readouterr()
    assert "x2=0x4000000901047f x3=0x3" in out
    assert "x2=0x400000000004fd x3=0x1" in out
    assert re.search(r"SHARED_OWNED \| host_stage2_get_leaf \| .* x2=0x4[0-9a-f]{4}4fd x3=0x2", out)
    assert out.endswith("busy\n")
    assert "Device or resource busy" in err


def test_a_panic_or_an_oops_ends_the_shell_with_status_1(tmp_path, module_path, capfd) -> None:
    run = "/sys/module/ops_test/parameters/run"
    for script, text in (
        (f"echo bug > {run}\n", "Kernel panic - not syncing: HYP panic:"),
        (f"echo keep > {run}\necho ktouch > {run}\n", "Unable to handle kernel access to hypervisor-protected memory"),
    ):
        assert shell(tmp_path, module_path("ops_test"), script + "echo not reached\n") == 1
        out, err = capfd.readouterr()
        assert text in err
        assert "not reached" not in out
