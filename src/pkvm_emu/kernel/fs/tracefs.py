"""``/sys/kernel/tracing/hypervisor`` (``hyp`` before android16): the files of hypervisor tracing.

Both names lead to the directory whatever the generation calls it, and events are found with and without the directory
between; only the generation's own names are listed. Sources: arch/arm64/kvm/{hyp_trace,hyp_events}.c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import EINVAL, EPERM
from pkvm_emu.hyp import trace_layout as tl
from pkvm_emu.kernel.fs.memory_fs import MemoryDirectory
from pkvm_emu.kernel.fs.node import (
    O_ACCMODE,
    O_RDONLY,
    WOULD_BLOCK,
    Directory,
    File,
    Node,
    TextFile,
)
from pkvm_emu.kernel.fs.registry import provider

if TYPE_CHECKING:
    from pkvm_emu.kernel.fs.filesystem import FileSystem
    from pkvm_emu.kernel.fs.open_file import OpenFile
    from pkvm_emu.kernel.kernel import Kernel
    from pkvm_emu.kernel.tracing.events import TraceEvent
    from pkvm_emu.machine.state import Journal

TRACING = "/sys/kernel/tracing"
NAMES = ("hypervisor", "hyp")
_DIRECTORY_MODE = 0o750
_CREATE_ERRNO = 13
_SWITCH = {b"0": False, b"1": True}
#: What :class:`OpenFile` reads with when nobody says how much.
_UNSPECIFIED = 65536


class TracingRoot(MemoryDirectory):
    """``/sys/kernel/tracing``: the other generations' name of the hypervisor's directory is found, but not listed."""

    def __init__(self, journal: Journal, aliases: dict[str, str]) -> None:
        super().__init__(journal, writable=False, mode=0o700, create_errno=_CREATE_ERRNO)
        self._aliases = aliases

    def lookup(self, name: str) -> Node | None:
        return super().lookup(self._aliases.get(name, name))


class FixedDirectory(Directory):
    """A directory whose files are made when somebody looks."""

    mode = _DIRECTORY_MODE

    def __init__(self, nodes: dict[str, Callable[[], Node]]) -> None:
        self._nodes = nodes

    def entries(self) -> Iterable[str]:
        return list(self._nodes)

    def lookup(self, name: str) -> Node | None:
        make = self._nodes.get(name)
        return make() if make is not None else None


class EventsOfHypervisor(Directory):
    """``events/hypervisor``: one directory an event, those of modules as they are loaded."""

    mode = _DIRECTORY_MODE

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def entries(self) -> Iterable[str]:
        from pkvm_emu.kernel.tracing.events import TraceEventTable

        return list(dict.fromkeys(event.name for event in self._kernel.part(TraceEventTable)))

    def lookup(self, name: str) -> Node | None:
        from pkvm_emu.kernel.tracing.events import TraceEventTable

        table = self._kernel.part(TraceEventTable)
        event = table.find(name)
        if event is None:
            return None
        return FixedDirectory(
            {
                "enable": lambda: _enable_file(self._kernel, event),
                "format": lambda: TextFile(lambda: event.format, mode=0o400),
                "id": lambda: TextFile(lambda: f"{event.id}\n", mode=0o400),
            }
        )


class EventsDirectory(Directory):
    """``events``."""

    mode = _DIRECTORY_MODE

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._events = EventsOfHypervisor(kernel)

    def entries(self) -> Iterable[str]:
        return ["header_page", self._kernel.generation.tracefs_dir]

    def lookup(self, name: str) -> Node | None:
        if name == "header_page":
            return TextFile(header_page, mode=0o400)
        return self._events if name in NAMES else self._events.lookup(name)


def header_page() -> str:
    """How a page of the buffer is laid out, in the words of trace-cmd."""
    rows = (
        ("u64 timestamp", tl.PAGE_TIME_STAMP, 8, 0),
        ("local_t commit", tl.PAGE_COMMIT, 8, 1),
        ("int overwrite", tl.PAGE_COMMIT, 1, 1),
        ("char data", tl.PAGE_DATA, tl.DATA_SIZE, 0),
    )
    return "".join(
        f"\tfield: {field};\toffset:{offset};\tsize:{size};\tsigned:{signed};\n" for field, offset, size, signed in rows
    )


def _enable_file(kernel: Kernel, event: TraceEvent) -> TextFile:
    from pkvm_emu.kernel.tracing.events import TraceEventTable

    table = kernel.part(TraceEventTable)

    def store(data: bytes) -> int:
        if len(data) > 2 or data[:1] not in _SWITCH:
            return -EINVAL
        return table.enable(event, _SWITCH[data[:1]])

    return TextFile(lambda: f"{int(event.id in table.enabled)}\n", store, mode=0o700)


def _tracing_on(kernel: Kernel) -> TextFile:
    from pkvm_emu.kernel.numbers import parse_unsigned
    from pkvm_emu.kernel.tracing.buffer import HypTrace

    trace = kernel.part(HypTrace)

    def store(data: bytes) -> int:
        if kernel.generation.tracing.tracing_on_strict:
            if len(data) > 2 or data[:1] not in _SWITCH:
                return -EINVAL
            wanted = _SWITCH[data[:1]]
        else:
            parsed = parse_unsigned(data, 10)
            if isinstance(parsed, int):
                return parsed
            wanted = bool(parsed.value)
        if wanted:
            return trace.start()
        trace.stop()
        return 0

    return TextFile(lambda: f"{int(trace.tracing_on)}\n", store, mode=0o640)


def _buffer_size(kernel: Kernel) -> TextFile:
    from pkvm_emu.kernel.numbers import parse_unsigned
    from pkvm_emu.kernel.tracing.buffer import HypTrace

    trace = kernel.part(HypTrace)

    def show() -> str:
        state = f" ({'loaded' if trace.is_loaded else 'unloaded'})"
        return f"{trace.size_kb}{state if kernel.generation.tracing.buffer_size_shows_loaded else ''}\n"

    def store(data: bytes) -> int:
        parsed = parse_unsigned(data, 10)
        if isinstance(parsed, int):
            return parsed
        if not parsed.value:
            return -EINVAL
        # The kernel keeps bytes in 64 bits.
        trace.size_kb = (parsed.value << 10 & (1 << 64) - 1) >> 10
        return 0

    return TextFile(show, store, mode=0o640)


class TraceFile(File):
    """``trace``: opening it for writing empties the buffer (or unloads it, by generation); reading gives nothing."""

    def __init__(self, kernel: Kernel, cpu: int, mode: int) -> None:
        self._kernel = kernel
        self._cpu = cpu
        self.mode = mode

    def open(self, handle: OpenFile) -> int:
        from pkvm_emu.kernel.tracing.buffer import HypTrace

        if handle.flags & O_ACCMODE != O_RDONLY:
            return self._kernel.part(HypTrace).open_for_write(self._cpu)
        return -EPERM if self._kernel.generation.tracing.trace_read_text is None else 0

    def read(self, handle: OpenFile, offset: int, size: int) -> bytes | int:
        text = self._kernel.generation.tracing.trace_read_text
        return -EINVAL if text is None else text.encode()[offset : offset + size]

    def write(self, handle: OpenFile, offset: int, data: bytes) -> int:
        return len(data)


class TracePipe(File):
    """``trace_pipe``: what is read is gone; a read waits where there is nothing."""

    def __init__(self, kernel: Kernel, cpu: int, mode: int) -> None:
        self._kernel = kernel
        self._cpu = cpu
        self.mode = mode

    def open(self, handle: OpenFile) -> int:
        from pkvm_emu.kernel.tracing.buffer import HypTrace

        # Whatever went wrong, it is -EINVAL that the kernel reports.
        if self._kernel.part(HypTrace).open_reader():
            return -EINVAL
        handle.data["left"] = b""
        return 0

    def read(self, handle: OpenFile, offset: int, size: int) -> bytes | int:
        wanted = self._kernel.generation.tracing.trace_pipe_read_size
        if wanted is not None and size not in (wanted, _UNSPECIFIED):
            return -EINVAL
        left: bytes = handle.data["left"] or self._more()
        if not left:
            return WOULD_BLOCK
        handle.data["left"] = left[size:]
        return left[:size]

    def _more(self) -> bytes:
        from pkvm_emu.kernel.tracing.buffer import HypTrace

        return self._kernel.part(HypTrace).read_text(self._cpu)

    def release(self, handle: OpenFile) -> None:
        from pkvm_emu.kernel.tracing.buffer import HypTrace

        self._kernel.part(HypTrace).close_reader()


def _filter_file(kernel: Kernel, enable: bool) -> TextFile:
    from pkvm_emu.kernel.tracing.functions import TracedFunctions

    functions = kernel.part(TracedFunctions)
    show = functions.show if enable else None
    return TextFile(show, lambda data: functions.apply(data, enable), mode=0o600 if enable else 0o200)


class RawTracePipe(TracePipe):
    """``trace_pipe_raw`` of the generations in which it gives pages: one page of the buffer a read."""

    def _more(self) -> bytes:
        from pkvm_emu.kernel.tracing.buffer import HypTrace

        return self._kernel.part(HypTrace).read_page(self._cpu)


class SelftestFile(File):
    """``selftest_event``: opening it for writing makes the event (kernels built for testing)."""

    mode = 0o640

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def open(self, handle: OpenFile) -> int:
        from pkvm_emu.kernel.exports.pkvm import hypercall

        if handle.flags & O_ACCMODE != O_RDONLY:
            hypercall(self._kernel, "selftest_event")
        return 0

    def write(self, handle: OpenFile, offset: int, data: bytes) -> int:
        return len(data)


def _per_cpu(kernel: Kernel) -> FixedDirectory:
    rules = kernel.generation.tracing
    raw = RawTracePipe if rules.raw_pages else TracePipe

    def files(cpu: int) -> FixedDirectory:
        nodes: dict[str, Callable[[], Node]] = {
            "trace_pipe": lambda: TracePipe(kernel, cpu, 0o440),
            "trace_pipe_raw": lambda: raw(kernel, cpu, 0o440),
        }
        if rules.per_cpu_trace:
            nodes["trace"] = lambda: TraceFile(kernel, cpu, 0o440)
        return FixedDirectory(nodes)

    def directory(cpu: int) -> Callable[[], Node]:
        return lambda: files(cpu)

    return FixedDirectory({f"cpu{cpu}": directory(cpu) for cpu in range(kernel.machine.profile.cpus)})


@provider
def tracing(kernel: Kernel, fs: FileSystem) -> None:
    """The directory exists where the kernel is in protected mode."""
    own = kernel.generation.tracefs_dir
    root = TracingRoot(fs.journal, dict.fromkeys(NAMES, own))
    fs.add(TRACING, root)
    if not kernel.protected:
        return
    rules = kernel.generation.tracing
    all_cpus = -1
    nodes: dict[str, Callable[[], Node]] = {
        "tracing_on": lambda: _tracing_on(kernel),
        "buffer_size_kb": lambda: _buffer_size(kernel),
        "trace_pipe": lambda: TracePipe(kernel, all_cpus, 0o640),
        "trace": lambda: TraceFile(kernel, all_cpus, 0o640),
        "per_cpu": lambda: _per_cpu(kernel),
        "events": lambda: EventsDirectory(kernel),
    }
    if rules.has_trace_clock:
        nodes["trace_clock"] = lambda: TextFile(lambda: "[boot]\n", mode=0o440)
    if "selftest" in rules.core_events:
        nodes["selftest_event"] = lambda: SelftestFile(kernel)
    if "func" in rules.core_events:
        nodes["set_ftrace_filter"] = lambda: _filter_file(kernel, True)
        nodes["set_ftrace_notrace"] = lambda: _filter_file(kernel, False)
    root.add(own, FixedDirectory(nodes))
