"""What is seen of a system, as methods of :class:`pkvm_emu.system.System`: trace, timeline, contracts, refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.contracts.monitor import Monitor
    from pkvm_emu.contracts.rules import Selection
    from pkvm_emu.explain import Explanations
    from pkvm_emu.system import System
    from pkvm_emu.tracing.pipe import TracePipe
    from pkvm_emu.tracing.timeline import Timeline
    from pkvm_emu.tracing.timeline.listen import Recording


class Observations:
    """The half of a system that tells what happened."""

    _recording: tuple[Timeline, Recording] | None
    _monitor: Monitor | None

    @property
    def _seen(self) -> System:
        return cast("System", self)

    @property
    def trace_pipe(self) -> TracePipe:
        """The hypervisor's trace: ``system.trace_pipe.read()``."""
        from pkvm_emu.tracing.pipe import TracePipe

        return TracePipe(self._seen)

    @property
    def timeline(self) -> Timeline:
        """The recording of what ran: ``system.timeline.save("trace.json")``.

        Raises:
            UsageError: nothing is recorded; ask for it with ``boot(..., timeline=True)`` or :meth:`record_timeline`.
        """
        if self._recording is None:
            raise UsageError(
                "nothing is recorded: boot with timeline=True, or call record_timeline() before what matters"
            )
        return self._recording[0]

    def record_timeline(self, instructions: bool = True) -> Timeline:
        """Begin to record calls, exceptions, ops, events and page ownership; a recording that runs already goes on.

        Args:
            instructions: count the instructions at EL2 and note which ran; this is what costs most.
        """
        if self._recording is None:
            from pkvm_emu.tracing.timeline import record

            self._recording = record(self._seen, instructions)
        return self._recording[0]

    @property
    def contracts(self) -> Monitor | None:
        """What watches for breaches of contracts: ``system.contracts.findings``; None where nothing does."""
        return self._monitor

    def watch_contracts(self, selection: Selection | str = "") -> Monitor:
        """Watch for breaches of contracts from now on; a system is watched once.

        Args:
            selection: which contracts, and how bad their breaches are; as text for ``--contracts``.

        Raises:
            UsageError: a word of the text that is no contract; or the system is watched already.
        """
        from pkvm_emu.contracts.monitor import watch
        from pkvm_emu.contracts.rules import Selection

        if self._monitor is not None:
            raise UsageError("the contracts of this system are watched already")
        chosen = Selection.parse(selection) if isinstance(selection, str) else selection
        self._monitor = watch(self._seen, chosen)
        return self._monitor

    def explain(self, last: int | None = 1) -> Explanations:
        """Why the ``last`` refusals happened (None: all of them), oldest first; ``print()`` it.

        Ops and hypercalls that returned an errno, and accesses of the host that ended in an abort.
        """
        from pkvm_emu.explain import explain

        return explain(self._seen, last)
