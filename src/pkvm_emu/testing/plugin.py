"""The pytest plugin: booted systems as fixtures, generations as parameters, what EL2 did in the report of a failure.

It is loaded with the package (entry point ``pytest11``) and imports the emulator only when a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pkvm_emu.errors import PkvmEmuError, UsageError
from pkvm_emu.testing import settings

if TYPE_CHECKING:
    from pkvm_emu.kernel.modules import LoadedModule
    from pkvm_emu.system import System
    from pkvm_emu.testing.recipe import Recipe
    from pkvm_emu.testing.session import TestSession
    from pkvm_emu.testing.watched import WatchedSystems

_PARAMETER = "_pkvm_android"
_FIXTURES = frozenset(("pkvm_system", "pkvm_module", "pkvm_boot", "pkvm_recipe"))
_SESSION: pytest.StashKey[TestSession] = pytest.StashKey()
_RECIPES: pytest.StashKey[list[Recipe]] = pytest.StashKey()
_FAILED_BOOT: pytest.StashKey[tuple[tuple[str, str], ...]] = pytest.StashKey()
_WATCHED: pytest.StashKey[WatchedSystems] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options and ini settings."""
    settings.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """The marker; what the options and the ini file say has to make sense."""
    config.addinivalue_line("markers", settings.MARKER_HELP)
    settings.check(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Nothing that was booted or built stays."""
    session = config.stash.get(_SESSION, None)
    if session is not None:
        session.close()


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """``*.pkvm.toml`` files are tests."""
    if not file_path.name.endswith(".pkvm.toml"):
        return None
    from pkvm_emu.testing.cases.collect import CaseFileCollector
    from pkvm_emu.testing.recipe import generations

    collector: CaseFileCollector = CaseFileCollector.from_parent(parent, path=file_path)
    option = parent.config.getoption("--pkvm-android")
    collector.chosen = None if option is None else generations(option)
    collector.boot = _boot
    return collector


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """The systems of a test are watched no more."""
    watched = item.stash.get(_WATCHED, None)
    if watched is not None:
        watched.release()
        _session(item.config).harvest()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each generation that it is for."""
    if not _FIXTURES & set(metafunc.fixturenames):
        return
    try:
        marked = settings.marker_arguments(metafunc.definition.iter_markers(settings.MARKER))
        wanted = settings.wanted_generations(metafunc.config, marked)
    except PkvmEmuError as error:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: {error}") from error
    if wanted != (None,):
        metafunc.fixturenames.append(_PARAMETER)
        metafunc.parametrize(_PARAMETER, wanted, ids=[str(name) for name in wanted], indirect=True, scope="function")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that ``--pkvm-android`` leaves no generation are no tests of this run."""
    if config.getoption("--pkvm-android") is None:
        return
    left_out = [item for item in items if _is_left_out(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _is_left_out(item: pytest.Item) -> bool:
    # Where no generation is left, pytest makes one test with a value of its own.
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return not isinstance(parameters.get(_PARAMETER, ""), str)


# Fixtures


@pytest.fixture
def _pkvm_android(request: pytest.FixtureRequest) -> str | None:
    return getattr(request, "param", None)


@pytest.fixture
def pkvm_recipe(request: pytest.FixtureRequest) -> Recipe:
    """What this test boots: from its markers, the options and the ini file."""
    android = getattr(getattr(request.node, "callspec", None), "params", {}).get(_PARAMETER)
    try:
        marked = settings.marker_arguments(request.node.iter_markers(settings.MARKER))
        return settings.recipe_for(request.config, marked, Path(request.node.path).parent, android)
    except UsageError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def pkvm_boot(request: pytest.FixtureRequest, pkvm_recipe: Recipe) -> Callable[..., System]:
    """``pkvm_boot(cmdline=..., android=..., modules=[...], dtb=..., ...)``: boots what the test says, changed by the arguments.

    Systems come from the pool: booted once, brought back for each call.
    """
    from pkvm_emu.testing.recipe import generations

    directory = Path(request.node.path).parent

    def boot(**changes: Any) -> System:
        marked = {**settings.marker_arguments(request.node.iter_markers(settings.MARKER)), **changes}
        android = pkvm_recipe.android
        if "android" in changes:
            (android,) = generations(changes["android"])
        recipe = settings.recipe_for(request.config, marked, directory, android)
        return _boot(request.node, recipe)

    return boot


@pytest.fixture
def pkvm_system(request: pytest.FixtureRequest, pkvm_recipe: Recipe) -> System:
    """A booted system with the test's modules, as right after the boot whatever other tests did."""
    try:
        return _boot(request.node, pkvm_recipe)
    except PkvmEmuError as error:
        ended = f"the boot of {_words(pkvm_recipe)} ended with: {error}"
    pytest.fail(ended, pytrace=False)


@pytest.fixture
def pkvm_module(pkvm_system: System, pkvm_recipe: Recipe) -> LoadedModule:
    """The first of the test's modules, loaded."""
    if not pkvm_recipe.modules:
        pytest.fail("pkvm_module: the test names no module (marker, --pkvm-module or pkvm_modules)", pytrace=False)
    for outcome in pkvm_system.boot_report.outcomes:
        if outcome.status != "loaded":
            pytest.fail(f"{outcome.name} was not loaded: {outcome.reason}", pytrace=False)
        return pkvm_system.modules[outcome.name]
    pytest.fail("pkvm_module: no module was loaded at boot", pytrace=False)


def _words(recipe: Recipe) -> str:
    names = ", ".join(path.name for path in recipe.modules) or "no modules"
    return f"{names} on {recipe.android}" if recipe.android else names


def _session(config: pytest.Config) -> TestSession:
    session = config.stash.get(_SESSION, None)
    if session is None:
        session = config.stash[_SESSION] = settings.session_for(config)
    return session


def _boot(item: pytest.Item, recipe: Recipe) -> System:
    """A system for a test, watched."""
    session = _session(item.config)
    item.stash.setdefault(_RECIPES, []).append(recipe)
    try:
        system = session.system(recipe)
    except PkvmEmuError as error:
        item.stash[_FAILED_BOOT] = session.failed_boot(error)
        raise
    return _watch(item).add(system, session.complete(recipe))


def _watch(item: pytest.Item) -> WatchedSystems:
    watched = item.stash.get(_WATCHED, None)
    if watched is None:
        from pkvm_emu.testing.watched import WatchedSystems

        watched = item.stash[_WATCHED] = WatchedSystems()
    return watched


# Reports


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """A test that passes has kept the contracts, and done what the golden file says."""
    result = yield
    watched = item.stash.get(_WATCHED, None)
    if watched is not None:
        wrong = _session(item.config).judge(item.name, item.path.parent, _stem(item.path), watched.systems)
        if wrong:
            pytest.fail("\n".join(wrong), pytrace=False)
    return result


def _stem(path: Path) -> str:
    return path.name.removesuffix(".py").removesuffix(".toml").removesuffix(".pkvm")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """What the systems of a failed test did, under its traceback; figures for the JUnit file of every test."""
    report: Any = yield
    watched = item.stash.get(_WATCHED, None)
    if watched is not None and report.when == "call":
        item.user_properties.extend(watched.figures())
        executed = _session(item.config).harvest()
        share = executed.percent() if executed is not None else None
        if share is not None:
            item.user_properties.append(("pkvm_coverage", f"{share:.1f}"))
        report.user_properties = list(item.user_properties)
    if report.failed and report.when in ("setup", "call"):
        if watched is not None:
            report.sections.extend(watched.sections(call.excinfo.value if call.excinfo is not None else None))
        report.sections.extend(item.stash.get(_FAILED_BOOT, ()))
        report.sections.extend(_abi_breaks(item))
    return report


def _abi_breaks(item: pytest.Item) -> list[tuple[str, str]]:
    """What explains a failure on a generation that the modules were not built for."""
    recipes = item.stash.get(_RECIPES, [])
    lines = [line for recipe in recipes for line in _session(item.config).abi_breaks(recipe, recipe.android)]
    return [("ABI breaks", "\n".join(dict.fromkeys(lines)))] if lines else []


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """SMCCC results and page states in words."""
    from pkvm_emu.testing.compare import explain_comparison

    return explain_comparison(op, left, right)


_COVERAGE = "pkvm_coverage"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Coverage: a process of several hands it over; the one that prints writes it, and judges."""
    config = session.config
    shared = config.stash.get(_SESSION, None)
    output = getattr(config, "workeroutput", None)
    if output is not None:
        if shared is not None and shared.coverage is not None:
            output[_COVERAGE] = shared.coverage.as_dict()
        return
    if not settings.collects_coverage(config):
        return
    from pkvm_emu.testing.coverage.output import is_enough, write_directory

    coverage = _session(config).coverage
    assert coverage is not None
    directory, least = config.getoption("--pkvm-cov"), config.getoption("--pkvm-cov-fail-under")
    if directory:
        write_directory(coverage, Path(directory))
    if least is not None and not is_enough(coverage, least)[0] and session.exitstatus == 0:
        session.exitstatus = 1


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process of pytest-xdist has ended: what it executed."""
    found = getattr(node, "workeroutput", {}).get(_COVERAGE)
    if found is not None:
        from pkvm_emu.testing.coverage.model import Coverage

        coverage = _session(node.config).coverage
        assert coverage is not None
        coverage.merge(Coverage.from_dict(found))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What is no error, and which golden files were written."""
    session = config.stash.get(_SESSION, None)
    if session is None:
        return
    if session.coverage is not None:
        from pkvm_emu.testing.coverage.output import is_enough, table

        terminalreporter.section("coverage of module code")
        for line in table(session.coverage):
            terminalreporter.write_line(line)
        least = config.getoption("--pkvm-cov-fail-under")
        if least is not None:
            terminalreporter.write_line(is_enough(session.coverage, least)[1])
    if session.warnings:
        terminalreporter.section("contracts")
        for title, findings in session.warnings.items():
            for finding in findings:
                terminalreporter.write_line(f"{title}: {finding}")
    if session.golden is not None and session.golden.written:
        terminalreporter.section("golden files written")
        for path in session.golden.written:
            terminalreporter.write_line(str(path))
    if session.golden is not None and _ran_all(terminalreporter, config):
        stale = session.golden.stale()
        if stale:
            terminalreporter.section("golden files of no test")
            for path in stale:
                terminalreporter.write_line(str(path))


def _ran_all(terminalreporter: Any, config: pytest.Config) -> bool:
    """Every test of the files that were run has passed: a golden file that was not compared belongs to none."""
    others = any(terminalreporter.stats.get(name) for name in ("failed", "error", "skipped", "deselected", "xfailed"))
    chosen = any("::" in argument for argument in config.args)
    return not others and not chosen and not config.getoption("--collect-only")
