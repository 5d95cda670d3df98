"""The pytest plugin, as a vendor's repository uses it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Vendor = Callable[..., pytest.RunResult]

MARKED = """
import pytest
pytestmark = pytest.mark.pkvm(android=[15, 16], modules=["vendor16.ko"])
"""


def test_a_test_runs_once_for_each_generation_that_its_marker_names(vendor: Vendor) -> None:
    result = vendor(
        """
        import pytest

        @pytest.mark.pkvm(android=[15, 16], modules=["vendor16.ko"])
        def test_it(pkvm_system, request):
            assert f"[{pkvm_system.generation.name}]" in request.node.name
        """,
        "-v",
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_it[[]android15-6.6[]] PASSED*", "*test_it[[]android16-6.12[]] PASSED*"])


def test_without_a_generation_the_module_decides(vendor: Vendor) -> None:
    result = vendor(
        """
        import pytest

        @pytest.mark.pkvm(modules=["vendor15.ko"])
        def test_it(pkvm_system, pkvm_module):
            assert (pkvm_system.generation.name, pkvm_module.name) == ("android15-6.6", "vendor")
        """
    )
    result.assert_outcomes(passed=1)


def test_each_test_gets_the_system_as_it_was_after_the_boot(vendor: Vendor) -> None:
    result = vendor(
        """
        import pytest
        pytestmark = pytest.mark.pkvm(modules=["vendor16.ko"])

        @pytest.mark.parametrize("n", range(5))
        def test_counts(pkvm_system, n):
            result = pkvm_system.call("hyp_call", 0x48000 + n)
            assert (result.x1, result.x2) == (0, 1)
            pkvm_system.hyp.el3.serve(lambda registers: (7,))
            pkvm_system.machine.core.instruction_budget = 1 << 40

        def test_a_panic_disturbs_nobody(pkvm_system):
            import pkvm_emu
            with pytest.raises(pkvm_emu.ModuleError):
                pkvm_system.call("hyp_call", 666)

        def test_after_it(pkvm_system):
            assert pkvm_system.call("hyp_call", 0x48000).x2 == 1
            assert pkvm_system.smc(0x8400FFFF).x0 == (1 << 64) - 1
            assert pkvm_system.machine.core.instruction_budget is None
        """
    )
    result.assert_outcomes(passed=7)


def test_memory_that_a_test_ruined_is_whole_in_the_next(vendor: Vendor) -> None:
    result = vendor(
        """
        import pytest
        pytestmark = pytest.mark.pkvm(modules=["vendor16.ko"])

        def test_ruin(pkvm_system, pkvm_module):
            ram, hyp = pkvm_system.machine.ram, pkvm_system.hyp
            for label in ("hyp_vectors",):
                ram.write(hyp.stage1.pa_of(hyp.entry(label)) & ~0xFFF, bytes(4096))
            ram.write(hyp.stage1.root, bytes(4096)) if hasattr(hyp.stage1, "root") else None
            with pytest.raises(Exception):
                pkvm_system.call("hyp_call", 0x48000)

        def test_whole(pkvm_system):
            assert pkvm_system.call("hyp_call", 0x48000).x2 == 1
        """
    )
    result.assert_outcomes(passed=2)


def test_the_factory_boots_with_changes(vendor: Vendor) -> None:
    result = vendor(
        """
        import pytest

        @pytest.mark.pkvm(modules=["vendor16.ko"])
        def test_it(pkvm_boot):
            insecure = pkvm_boot(cmdline="kvm-arm.protected_modules=nobody")
            assert not insecure.is_secure
            assert pkvm_boot().is_secure
            assert pkvm_boot(android=15).generation.name == "android15-6.6"
        """
    )
    result.assert_outcomes(passed=1)


def test_a_failure_shows_the_log_the_ops_and_the_refusals(vendor: Vendor) -> None:
    result = vendor(
        """
        import pytest

        @pytest.mark.pkvm(modules=["vendor16.ko"])
        def test_it(pkvm_system):
            pkvm_system.call("hyp_call", 0x48000)
            assert pkvm_system.call("hyp_call", 0x48000) == (0, 0, 2, 0)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*x1: -EPERM != 0x0*",
            "*dmesg of vendor on android16-6.12*",
            "*loading out-of-tree module*",
            "*ops of vendor on android16-6.12*",
            "host_share_hyp(pfn=0x48000 (page 0x48000000)) = 0x0*hyp_call+*",
            "host_share_hyp(pfn=0x48000 (page 0x48000000)) = -EPERM*",
            "*refusals of vendor*",
            "*rule: *",
        ]
    )


def test_a_panic_shows_the_call_trace_of_el2(vendor: Vendor) -> None:
    result = vendor(
        """
        import pytest

        @pytest.mark.pkvm(modules=["vendor16.ko"])
        def test_it(pkvm_system):
            pkvm_system.call("hyp_call", 666)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*EL2 call trace*", "*__kvm_nvhe_hyp_call+*"])


def test_page_states_are_compared_in_words(vendor: Vendor) -> None:
    result = vendor(
        """
        import pytest

        @pytest.mark.pkvm(modules=["vendor16.ko"])
        def test_it(pkvm_system):
            before = pkvm_system.pages.at(0x48000000)
            pkvm_system.call("hyp_call", 0x48000)
            assert pkvm_system.pages.at(0x48000000) == before
        """
    )
    result.stdout.fnmatch_lines(["*host_state: SHARED_OWNED != OWNED*"])


def test_the_command_line_goes_before_the_ini_file_and_the_marker_before_both(vendor: Vendor) -> None:
    source = """
        import pytest

        def test_default(pkvm_system):
            assert pkvm_system.kernel.command_line.text.strip() == "{}"

        @pytest.mark.pkvm(cmdline="quiet")
        def test_marked(pkvm_system):
            assert pkvm_system.kernel.command_line.text.strip() == "quiet"
        """
    ini = "pkvm_cmdline = loglevel=3\npkvm_modules = vendor16.ko\npkvm_android = 16\n"
    vendor(source.format("loglevel=3"), ini=ini).assert_outcomes(passed=2)
    vendor(source.format("loglevel=5"), "--pkvm-cmdline", "loglevel=5", ini=ini).assert_outcomes(passed=2)


def test_the_command_line_leaves_out_tests_of_other_generations(vendor: Vendor) -> None:
    result = vendor(
        """
        import pytest

        @pytest.mark.pkvm(android=[15, 16], modules=["vendor16.ko"])
        def test_both(pkvm_system): pass

        @pytest.mark.pkvm(android=15, modules=["vendor15.ko"])
        def test_old(pkvm_system): pass

        def test_no_system(): pass
        """,
        "--pkvm-android",
        "16",
    )
    result.assert_outcomes(passed=2, deselected=1)


def test_a_module_that_is_not_there_and_a_wrong_generation_are_said_in_one_line(vendor: Vendor) -> None:
    result = vendor(
        """
        import pytest

        @pytest.mark.pkvm(modules=["nothing.ko"])
        def test_it(pkvm_system): pass
        """
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*module 'nothing.ko' is not there*"])
    result = vendor("def test_it(pkvm_system): pass", "--pkvm-android", "99")
    assert result.ret != 0

    assert "99" in result.stdout.str() + result.stderr.str()


def test_it_works_in_several_processes(vendor: Vendor) -> None:
    result = vendor(
        """
        import pytest

        @pytest.mark.pkvm(android=[16], modules=["vendor16.ko"])
        @pytest.mark.parametrize("n", range(16))
        def test_it(pkvm_system, n):
            assert pkvm_system.call("hyp_call", 0x48000).x2 == 1
        """,
        "-n",
        "2",
    )
    result.assert_outcomes(passed=16)


def test_figures_are_properties_in_the_junit_file(vendor: Vendor, pytester) -> None:
    vendor(
        """
        import pytest

        @pytest.mark.pkvm(modules=["vendor16.ko"])
        def test_it(pkvm_system):
            pkvm_system.call("hyp_call", 0x48000)
        """,
        "--junitxml=out.xml",
        "--pkvm-cov=cov",
    ).assert_outcomes(passed=1)
    text = (pytester.path / "out.xml").read_text()
    assert '<property name="pkvm_ops" value="1"' in text
    assert '<property name="pkvm_android" value="android16-6.12"' in text
    assert '<property name="pkvm_instructions" value="' in text
    assert '<property name="pkvm_coverage" value="' in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--pkvm-android", "99"), "--pkvm-android: "),
        (("--pkvm-contracts", "everything"), "--pkvm-contracts: contracts: 'everything' is none of"),
        (("--pkvm-machine", "warp"), "--pkvm-machine: "),
        (("--pkvm-module", "gone.ko"), "--pkvm-module: gone.ko is not there"),
        (("--pkvm-dtb", "gone.dtb"), "--pkvm-dtb: gone.dtb is not there"),
        (("--pkvm-cov-fail-under", "140"), "--pkvm-cov-fail-under: 140 is no percentage"),
    ],
)
def test_options_that_mean_nothing_end_the_run_before_it_begins(
    vendor: Vendor, options: tuple[str, ...], words: str
) -> None:
    result = vendor("def test_it(): pass", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.stderr.str().splitlines() if line.strip()]
    assert words in line


def test_a_misspelt_argument_of_the_marker_is_named(vendor: Vendor) -> None:
    result = vendor(
        """
        import pytest

        @pytest.mark.pkvm(modules=["vendor16.ko"], cmd_line="quiet")
        def test_it(pkvm_system): pass
        """
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*'cmd_line' is nothing that a boot takes*"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_without_a_test_of_modules_nothing_of_the_emulator_is_imported(vendor: Vendor) -> None:
    vendor(
        """
        import sys

        def test_it():
            heavy = ("unicorn", "capstone", "jsonschema", "pkvm_emu.system", "pkvm_emu.machine", "pkvm_emu.abi")
            assert not [name for name in heavy if name in sys.modules]
        """,
        ini="pkvm_contracts =\n",
    ).assert_outcomes(passed=1)


def test_a_boot_that_fails_shows_its_log_and_what_broke_without_a_traceback(vendor: Vendor) -> None:
    result = vendor(
        """
        import pytest

        @pytest.mark.pkvm(android=["5.15", 16], modules=["vendor16.ko"])
        def test_it(pkvm_system, pkvm_module):
            assert pkvm_system.call("hyp_call", 0x48000).x1 == 0
        """
    )
    assert result.parseoutcomes().get("passed") == 1
    result.stdout.fnmatch_lines(["*Kernel command line*"])
    result.stdout.fnmatch_lines(["*ABI breaks*", "ABI break of vendor on android14-5.15: *host_share_hyp*"])
    result.stdout.no_fnmatch_line("*During handling*")
