"""Takes one input through everything that reads a module: parse, detect, lay out, inspect, load."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pkvm_emu.elf.detect import detect_generation_name
from pkvm_emu.elf.layout import Layout
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.errors import EmulatorError, PkvmEmuError
from pkvm_emu.inspect.inspection import inspect_module
from pkvm_emu.inspect.text import TextReport
from pkvm_emu.system import System

from .fuzz_mutations import Case

T = TypeVar("T")
#: No input may take longer, nor more address space than this beyond what the process has.
SECONDS, BYTES = 10, 1 << 30


class TookTooLong(BaseException):
    """An input that does not come to an end."""


class Refused(str):
    """The one line with which an input was refused."""


@contextmanager
def bounded(case: Case) -> Iterator[None]:
    """Fail a case that hangs, needs unbounded memory, or raises what is no error for people."""

    def hang(_signal: int, _frame: Any) -> None:
        raise TookTooLong(f"seed {case.seed}, {case.kind}: more than {SECONDS} s")

    with open("/proc/self/statm") as facts:
        used = int(facts.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    old = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, before[1]))
    try:
        yield
    except Exception as error:
        raise AssertionError(f"seed {case.seed}, {case.kind}: {type(error).__name__}: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, before)


def attempt(action: Callable[[], T]) -> T | Refused:
    """What an action returns, or the line with which it was refused."""
    try:
        return action()
    except PkvmEmuError as error:
        found = error
    text = str(found)
    assert text
    assert text.isprintable(), repr(text)
    assert not isinstance(found, EmulatorError), text
    return Refused(text)


def read(data: bytes) -> ModuleFile | Refused:
    """Parse, and everything that is asked of a file without running it."""
    file = attempt(lambda: ModuleFile.parse(data, "mutant.ko"))
    if isinstance(file, Refused):
        return file
    attempt(lambda: Layout.assign(file, 0xFFFF_FFC0_7800_0000))
    inspection = attempt(lambda: inspect_module(file))
    if not isinstance(inspection, Refused):
        attempt(lambda: TextReport(inspection, True, lambda text: text).text())
        json.dumps(inspection.as_dict())
    return file


def load(system: System, file: ModuleFile) -> str:
    """Load into a system: ``loaded``, or the line with which it was refused."""
    if detect_generation_name(file).name is None:
        return "of no generation"
    result = attempt(lambda: system.load(file))
    return result if isinstance(result, Refused) else "loaded"
