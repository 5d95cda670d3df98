"""Running case files without pytest: found, divided into shards and processes, done, put together again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pkvm_emu.errors import EmulatorError, InputError, PkvmEmuError, UsageError
from pkvm_emu.testing.cases.model import Case, CaseFile
from pkvm_emu.testing.cases.reader import SUFFIX, CaseFileError, read_case_file
from pkvm_emu.testing.coverage.model import Coverage
from pkvm_emu.testing.golden.files import GoldenFiles
from pkvm_emu.testing.results import ERROR, FAILED, PASSED, SKIPPED, CaseResult, Message, in_order
from pkvm_emu.testing.session import DEFAULT_CONTRACTS, TestSession

_SKIPPED_DIRECTORIES = frozenset((".git", ".venv", "node_modules", "__pycache__", "build-out"))
Progress = Callable[[CaseResult], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One case on one generation, by its place: what a process of its own can do."""

    path: Path
    number: int
    android: str | None


@dataclass(frozen=True, slots=True)
class Shard:
    """One of ``count`` parts of the whole; ``index`` from 1."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``2/5``.

        Raises:
            UsageError: something else.
        """
        index, slash, count = text.partition("/")
        if not slash or not index.isdecimal() or not count.isdecimal() or not 1 <= int(index) <= int(count):
            raise UsageError(f"--shard {text}: write I/N with I from 1 to N")
        return cls(int(index), int(count))

    def takes(self, number: int) -> bool:
        """Whether the job with this number (from 0) is in this part."""
        return number % self.count == self.index - 1


def find_case_files(places: Sequence[Path]) -> list[Path]:
    """The case files at ``places`` (files, or directories to look through), in order.

    Raises:
        UsageError: a place is not there, or nothing is in any of them.
    """
    found: dict[Path, None] = {}
    for place in places:
        if place.is_dir():
            for directory, below, names in os.walk(place):
                below[:] = sorted(name for name in below if name not in _SKIPPED_DIRECTORIES)
                found.update((Path(directory, name), None) for name in sorted(names) if name.endswith(SUFFIX))
        elif place.exists():
            found[place] = None
        else:
            raise UsageError(f"{place}: no such file or directory")
    if not found:
        raise UsageError(f"no *{SUFFIX} file in {', '.join(str(place) for place in places)}")
    return list(found)


class Batch:
    """Case files to be run.

    Args:
        places: files and directories.
        androids: run on these generations only (None: on those that the files name).
        shard: which part of the whole.
        only: run cases whose names contain this.
        contracts: what is watched, as for ``--contracts``.
        golden: compare behaviour with golden files (``"check"``), or take it over (``"update"``); None: neither.
        coverage: takes what the cases execute; None: it is not collected.
    """

    def __init__(
        self,
        places: Sequence[Path],
        androids: tuple[str | None, ...] | None = None,
        shard: Shard | None = None,
        only: str = "",
        contracts: str = DEFAULT_CONTRACTS,
        golden: str | None = None,
        coverage: Coverage | None = None,
    ) -> None:
        self._wishes = (contracts, golden, coverage is not None)
        self._coverage = coverage
        self.broken: list[CaseResult] = []
        self._files: dict[Path, CaseFile] = {}
        for path in find_case_files(places):
            try:
                self._files[path] = read_case_file(path)
            except CaseFileError as error:
                self.broken.append(_broken(path, error.line, error.message))
            except InputError as error:
                self.broken.append(_broken(path, 1, str(error)))
        jobs = [job for path, file in self._files.items() for job in _jobs(path, file, androids, only)]
        part = shard or Shard()
        #: What is to be done, in the order of the files.
        self.jobs = [job for number, job in enumerate(jobs) if part.takes(number)]

    def run(self, processes: int = 1, progress: Progress | None = None) -> list[CaseResult]:
        """Do all of it.

        Args:
            processes: how many at once; cases of the same file stay in one process where there are enough files.
            progress: told of each result as it comes.

        Raises:
            EmulatorError: the emulator failed.
        """
        results = list(self.broken)
        for result in self.broken:
            if progress:
                progress(result)
        done = self._here() if processes <= 1 or len(self.jobs) < 2 else self._in_processes(processes)
        for result in done:
            if progress:
                progress(result)
            results.append(result)
        return in_order(results)

    def _here(self) -> Iterator[CaseResult]:
        runner = JobRunner(_session(*self._wishes))
        try:
            for job in self.jobs:
                yield runner.run(job, self._files[job.path].cases[job.number])
                self._cover(runner.harvest())
        finally:
            runner.close()

    def _in_processes(self, processes: int) -> Iterator[CaseResult]:
        import multiprocessing

        size = max(1, len(self.jobs) // (processes * 4))
        # The engine's threads and mappings do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with context.Pool(min(processes, len(self.jobs)), _begin_elsewhere, self._wishes) as pool:
            for result, executed in pool.imap(_run_elsewhere, self.jobs, chunksize=size):
                self._cover(executed)
                yield result

    def _cover(self, executed: Coverage | None) -> None:
        if self._coverage is not None and executed is not None:
            self._coverage.merge(executed)


def _broken(path: Path, line: int, message: str) -> CaseResult:
    return CaseResult(str(path), line, path.name, "", ERROR, (Message(line, message),))


def _jobs(path: Path, file: CaseFile, androids: tuple[str | None, ...] | None, only: str) -> Iterator[Job]:
    for number, case in enumerate(file.cases):
        if only not in case.name:
            continue
        wanted = case.androids
        if androids is not None:
            wanted = androids if wanted == (None,) else tuple(name for name in wanted if name in androids)
        for android in wanted:
            yield Job(path, number, android)


class JobRunner:
    """Runs jobs in this process; systems are booted once."""

    def __init__(self, session: TestSession | None = None) -> None:
        self._session = session or TestSession()
        self._files: dict[Path, CaseFile] = {}

    def run(self, job: Job, case: Case | None = None) -> CaseResult:
        """One job."""
        from pkvm_emu.testing.cases.runner import run_case
        from pkvm_emu.testing.watched import WatchedSystems

        if case is None:
            if job.path not in self._files:
                self._files[job.path] = read_case_file(job.path)
            case = self._files[job.path].cases[job.number]
        place = (str(job.path), case.line, case.name)
        if case.skip is not None:
            return CaseResult(*place, job.android or "", SKIPPED, (Message(case.line, case.skip),))
        watched = WatchedSystems()
        try:
            recipe = self._session.complete(case.recipe(job.path, job.android))
            system = watched.add(self._session.pool.system(recipe), recipe)
            failures = run_case(system, job.path, case)
        except EmulatorError:
            raise
        except UsageError as error:
            # A file or an option is wrong: nothing is said about the module.
            return CaseResult(*place, job.android or "", ERROR, (Message(case.line, str(error)),))
        except PkvmEmuError as error:
            lines = [f"the boot ended with: {error}", *self._session.abi_breaks(recipe, job.android)]
            ended = tuple(Message(case.line, line) for line in lines)
            return CaseResult(*place, job.android or "", FAILED, ended, sections=self._session.failed_boot(error))
        android = job.android or system.generation.name
        figures = {name.removeprefix("pkvm_"): value for name, value in watched.figures() if name != "pkvm_android"}
        messages = [Message(failure.line, failure.message) for failure in failures]
        if not failures:
            title = case.name if job.android is None else f"{case.name}[{job.android}]"
            stem = job.path.name.removesuffix(SUFFIX)
            wrong = self._session.judge(title, job.path.parent, stem, watched.systems)
            messages += [Message(case.line, text) for text in wrong]
        sections = tuple(watched.sections(None)) if messages else ()
        if messages:
            messages += [Message(case.line, text) for text in self._session.abi_breaks(recipe, android)]
        findings = tuple(finding.as_dict() for finding in watched.findings())
        watched.release()
        return CaseResult(*place, android, FAILED if messages else PASSED, tuple(messages), figures, sections, findings)

    def harvest(self) -> Coverage | None:
        """What was executed since the last call; None where it is not collected."""
        return self._session.harvest()

    def close(self) -> None:
        """Let the systems go."""
        self._session.close()


def _session(contracts: str, golden: str | None, covers: bool) -> TestSession:
    files = GoldenFiles(golden == "update") if golden is not None else None
    return TestSession(contracts, files, coverage=Coverage() if covers else None)


_runner = JobRunner()


def _begin_elsewhere(contracts: str, golden: str | None, covers: bool) -> None:
    global _runner
    _runner = JobRunner(_session(contracts, golden, covers))


def _run_elsewhere(job: Job) -> tuple[CaseResult, Coverage | None]:
    return _runner.run(job), _runner.harvest()
