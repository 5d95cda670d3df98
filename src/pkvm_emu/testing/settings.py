"""Options, ini settings and markers of the pytest plugin, and how one goes before the other.

What a test says of itself (its marker) goes before the command line, that before the ini file, that before the default. With
``--pkvm-android`` the tests whose markers name other generations are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pkvm_emu.errors import UsageError
from pkvm_emu.testing.recipe import Recipe, boot_options, find_file, generations

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pkvm_emu.testing.session import TestSession

#: Keyword arguments of the marker that are attributes of a recipe.
_PLAIN = ("cmdline", "machine", "ram_mib", "cpus")
MARKER = "pkvm"
MARKER_HELP = (
    "pkvm(android=None, modules=(), cmdline='', dtb=None, machine='', ram_mib=1024, cpus=1, **boot): "
    "what to boot for this test, once for each generation"
)


def add_options(parser: pytest.Parser) -> None:
    """The options and ini settings of booting."""
    group = parser.getgroup("pkvm", "Android pKVM modules (pkvm-emu)")
    group.addoption(
        "--pkvm-android",
        metavar="N,...",
        help="generations to run on: 14, 15, 16, full names, or all; leaves out tests that are for others",
    )
    group.addoption(
        "--pkvm-module",
        metavar="FILE",
        action="append",
        default=[],
        help="module for tests that name none: a .ko or a source directory (repeatable)",
    )
    group.addoption("--pkvm-cmdline", metavar="TEXT", help="kernel command line of tests that name none")
    group.addoption("--pkvm-dtb", metavar="FILE", help="device tree of tests that name none")
    group.addoption("--pkvm-machine", metavar="FEATURES", help="machine features of tests that name none")
    group.addoption(
        "--pkvm-contracts",
        metavar="WORDS",
        help="contracts to watch: memory (default), ops, off, budget=N, NAME=error|warning|off",
    )
    group.addoption(
        "--pkvm-golden",
        action="store_true",
        help="compare behaviour with golden files beside the tests; write missing ones",
    )
    group.addoption("--pkvm-update", action="store_true", help="as --pkvm-golden, and rewrite golden files that differ")
    group.addoption(
        "--pkvm-cov", metavar="DIR", help="collect coverage of module code: lcov.info and drcov files in DIR"
    )
    group.addoption(
        "--pkvm-cov-fail-under",
        metavar="PERCENT",
        type=float,
        help="fail where less of the EL2 code of the modules was executed",
    )
    parser.addini("pkvm_contracts", "contracts to watch", default="")
    parser.addini("pkvm_golden", "compare behaviour with golden files", type="bool", default=False)
    parser.addini("pkvm_android", "generations of tests that name none", type="args", default=[])
    parser.addini("pkvm_modules", "modules of tests that name none", type="paths", default=[])
    parser.addini("pkvm_cmdline", "kernel command line of tests that name none", default="")
    parser.addini("pkvm_dtb", "device tree of tests that name none", default="")
    parser.addini("pkvm_machine", "machine features of tests that name none", default="")


def check(config: pytest.Config) -> None:
    """Look at what was given before anything is collected; nothing is imported where nothing was.

    Raises:
        UsageError: (pytest's) a value that means nothing, in one line.
    """
    try:
        for name in ("android", "contracts", "machine"):
            given = choose(config, name)
            if given:
                _CHECKS[name](given)
    except UsageError as error:
        raise pytest.UsageError(f"--pkvm-{name}: {error}") from error
    for name in ("module", "dtb"):
        files = config.getoption(f"--pkvm-{name}") or []
        for file in [files] if isinstance(files, str) else files:
            if not any((place / file).exists() for place in (config.invocation_params.dir, config.rootpath)):
                raise pytest.UsageError(f"--pkvm-{name}: {file} is not there")
    least = config.getoption("--pkvm-cov-fail-under")
    if least is not None and not 0 <= least <= 100:
        raise pytest.UsageError(f"--pkvm-cov-fail-under: {least:g} is no percentage")


def _check_contracts(words: str) -> None:
    from pkvm_emu.contracts.rules import Selection

    Selection.parse(words)


def _check_machine(features: str) -> None:
    from pkvm_emu.machine.profile import MachineProfile

    MachineProfile.parse(features)


_CHECKS: dict[str, Callable[[Any], object]] = {
    "android": generations,
    "contracts": _check_contracts,
    "machine": _check_machine,
}


def session_for(config: pytest.Config) -> TestSession:
    """What the tests of this run share.

    Raises:
        UsageError: words that name no contract.
    """
    from pkvm_emu.contracts.rules import Selection
    from pkvm_emu.testing.coverage.model import Coverage
    from pkvm_emu.testing.golden.files import GoldenFiles
    from pkvm_emu.testing.session import DEFAULT_CONTRACTS, TestSession

    words = choose(config, "contracts") or DEFAULT_CONTRACTS
    try:
        Selection.parse(words)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error
    update = config.getoption("--pkvm-update")
    compares = update or config.getoption("--pkvm-golden") or config.getini("pkvm_golden")
    return TestSession(
        contracts=words,
        golden=GoldenFiles(update) if compares else None,
        coverage=Coverage() if collects_coverage(config) else None,
    )


def collects_coverage(config: pytest.Config) -> bool:
    """Whether coverage is wanted."""
    return bool(config.getoption("--pkvm-cov")) or config.getoption("--pkvm-cov-fail-under") is not None


def choose(config: pytest.Config, name: str) -> str | None:
    """An option or, without it, its ini setting; None where neither says anything."""
    given = config.getoption(f"--pkvm-{name}")
    return given if given is not None else config.getini(f"pkvm_{name}") or None


def marker_arguments(markers: Iterator[pytest.Mark]) -> dict[str, Any]:
    """The arguments of all ``pkvm`` markers of a test, the nearest first.

    Raises:
        UsageError: a marker has positional arguments.
    """
    merged: dict[str, Any] = {}
    for marker in markers:
        if marker.args:
            raise UsageError(f"@pytest.mark.{MARKER} takes keyword arguments only, not {marker.args!r}")
        for name, value in marker.kwargs.items():
            merged.setdefault(name, value)
    return merged


def wanted_generations(config: pytest.Config, marked: dict[str, Any]) -> tuple[str | None, ...]:
    """The generations that a test runs on: empty when the command line leaves none of them."""
    option = config.getoption("--pkvm-android")
    named = generations(marked.get("android"))
    if named == (None,):
        return generations(option or config.getini("pkvm_android") or None)
    if option is None:
        return named
    asked = generations(option)
    return tuple(name for name in named if name in asked)


def recipe_for(config: pytest.Config, marked: dict[str, Any], directory: Path, android: str | None) -> Recipe:
    """The recipe of one test.

    Args:
        config: pytest's.
        marked: the arguments of its markers.
        directory: where the test's file is: relative paths of markers begin there, then at the root.
        android: the generation's full name, or None.

    Raises:
        UsageError: a file that is not there.
    """
    places = (directory, config.rootpath)
    rest = {name: value for name, value in marked.items() if name not in {*_PLAIN, "android", "modules", "dtb"}}
    plain = {name: marked[name] for name in _PLAIN if name in marked}
    for name in ("cmdline", "machine"):
        if name not in plain:
            plain[name] = choose(config, name) or ""
    return Recipe(
        android=android,
        modules=_modules(config, marked, places),
        dtb=_dtb(config, marked, places),
        options=boot_options(rest, places),
        **plain,
    )


def _modules(config: pytest.Config, marked: dict[str, Any], places: Sequence[Path]) -> tuple[Path, ...]:
    if "modules" in marked:
        named = marked["modules"]
        several = [named] if isinstance(named, (str, Path)) else named
        return tuple(find_file(path, places, "module") for path in several)
    given = config.getoption("--pkvm-module")
    if given:
        here = (config.invocation_params.dir, config.rootpath)
        return tuple(find_file(path, here, "--pkvm-module") for path in given)
    return tuple(find_file(path, (config.rootpath,), "pkvm_modules:") for path in config.getini("pkvm_modules"))


def _dtb(config: pytest.Config, marked: dict[str, Any], places: Sequence[Path]) -> Path | None:
    if "dtb" in marked:
        return find_file(marked["dtb"], places, "device tree") if marked["dtb"] is not None else None
    given = choose(config, "dtb")
    return find_file(given, (config.invocation_params.dir, config.rootpath), "device tree") if given else None
