"""What one run of tests shares: the pool, which contracts are watched, the golden files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pkvm_emu.errors import PkvmEmuError
from pkvm_emu.testing.golden.files import GoldenFiles, file_name
from pkvm_emu.testing.pool import SystemPool

if TYPE_CHECKING:
    from pkvm_emu.contracts.findings import Finding
    from pkvm_emu.system import System
    from pkvm_emu.testing.coverage.collect import Collector
    from pkvm_emu.testing.coverage.model import Coverage
    from pkvm_emu.testing.recipe import Recipe
    from pkvm_emu.testing.watched import Watched

#: Under test every load and store of the module is watched.
DEFAULT_CONTRACTS = "memory"
GOLDEN_DIRECTORY = "golden"


@dataclass(slots=True)
class TestSession:
    """One run of tests.

    Attributes:
        pool: booted systems.
        contracts: what is watched, as for ``--contracts``.
        golden: the golden files; None: behaviour is not compared.
        coverage: what the tests executed; None: it is not collected.
        warnings: findings that are no errors, by test.
    """

    #: It is no test of pytest's.
    __test__ = False

    contracts: str = DEFAULT_CONTRACTS
    golden: GoldenFiles | None = None
    pool: SystemPool = field(default_factory=SystemPool)
    coverage: Coverage | None = None
    _collectors: list[Collector] = field(default_factory=list)
    warnings: dict[str, list[Finding]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.coverage is not None:
            self.pool = SystemPool(prepare=self._collect)

    def _collect(self, system: System) -> None:
        from pkvm_emu.testing.coverage.collect import Collector

        self._collectors.append(Collector(system))

    def harvest(self) -> Coverage | None:
        """What was executed since the last call, which is in ``coverage`` from now on; None where it is not collected."""
        if self.coverage is None:
            return None
        from pkvm_emu.testing.coverage.model import Coverage

        new = Coverage()
        for collector in self._collectors:
            new.merge(collector.take())
        self.coverage.merge(new)
        return new

    def system(self, recipe: Recipe) -> System:
        """A system as right after its boot, watched as this run wants it.

        Raises:
            PkvmEmuError: the boot ended the device, or the recipe cannot be made.
        """
        return self.pool.system(self.complete(recipe))

    def complete(self, recipe: Recipe) -> Recipe:
        """A recipe with what this run adds to it."""
        options = dict(recipe.options)
        options.setdefault("contracts", self.contracts)
        if self.golden is not None:
            options["timeline"] = True
        return replace(recipe, options=tuple(sorted(options.items())))

    def failed_boot(self, error: BaseException) -> tuple[tuple[str, str], ...]:
        """Title and text of what the system whose boot ended with ``error`` did until then."""
        from pkvm_emu.testing.watched import WatchedSystems

        system, watched = self.pool.booting, WatchedSystems()
        if system is None:
            return ()
        watched.add(system)
        sections = tuple(watched.sections(error))
        watched.release()
        return sections

    def abi_breaks(self, recipe: Recipe, android: str | None) -> list[str]:
        """What explains a failure on a generation that a module was not built for, a line each."""
        from pkvm_emu.inspect.abi import abi_breaks

        found: list[str] = []
        if android is None:
            return found
        for path in recipe.modules:
            try:
                file = self.pool.module(path, recipe.android)
                found += [f"ABI break of {file.name} on {android}: {one}" for one in abi_breaks(file, android)]
            except PkvmEmuError:
                # Nothing tells what it was built for.
                continue
        return found

    def judge(self, title: str, directory: Path, stem: str, systems: list[Watched]) -> list[str]:
        """What is wrong with a test that passed: breaches of contracts, behaviour that is not the golden one.

        Args:
            title: the test's name.
            directory: where its file is; golden files are in ``golden`` below it.
            stem: its file's name without suffix.
            systems: what it used.
        """
        wrong: list[str] = []
        for number, watched in enumerate(systems):
            findings = watched.system.contracts.findings if watched.system.contracts is not None else []
            wrong += [str(finding) for finding in findings if finding.level.value == "error"]
            milder = [finding for finding in findings if finding.level.value != "error"]
            if milder:
                self.warnings.setdefault(title, []).extend(milder)
            if self.golden is not None:
                wrong += self._compare(title, directory / GOLDEN_DIRECTORY, stem, watched, number)
        return wrong

    def _compare(self, title: str, directory: Path, stem: str, watched: Watched, number: int) -> list[str]:
        from pkvm_emu.testing.golden.render import render

        assert self.golden is not None
        diffs = []
        if watched.boot_text is not None:
            modules = "-".join(watched.system.modules) or "no-modules"
            path = directory / file_name("boot", modules, watched.system.generation.name, watched.variant)
            diffs.append(self.golden.check(path, watched.boot_text))
        path = directory / stem / file_name(title, str(number + 1) if number else "")
        diffs.append(self.golden.check(path, render(watched.system, watched.since)))
        return [f"the behaviour is not the golden one (--pkvm-update takes it over):\n{diff}" for diff in diffs if diff]

    def close(self) -> None:
        """Let the systems go."""
        self.pool.close()
