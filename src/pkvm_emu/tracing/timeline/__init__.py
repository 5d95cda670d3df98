"""The recording of what ran, when and for how long: calls, exceptions, ops, events, page ownership.

:mod:`~pkvm_emu.tracing.timeline.recorder` keeps the records; the other files listen to one part of the machine each and make them.
:mod:`~pkvm_emu.tracing.timeline.chrome` writes them as a trace that Perfetto and ``chrome://tracing`` open.
"""

from pkvm_emu.tracing.timeline.chrome import save, trace_events
from pkvm_emu.tracing.timeline.listen import record
from pkvm_emu.tracing.timeline.recorder import Timeline
from pkvm_emu.tracing.timeline.records import Level, Phase, Record, Slice, slices

__all__ = ["Level", "Phase", "Record", "Slice", "Timeline", "record", "save", "slices", "trace_events"]
