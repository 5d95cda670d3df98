"""Where the members of structures for deferred work are, by kernel line.

GKI kernels up to 6.6 keep two reserved words in ``struct work_struct`` and in ``struct timer_list``; 6.12 does not. The rest is the
same everywhere. Sources: include/linux/{workqueue,workqueue_types,timer,timer_types,hrtimer_types,kthread}.h.
"""

from __future__ import annotations

from dataclasses import dataclass

#: ``struct work_struct``: data (bit 0: pending) @0, entry @8, func @24.
WORK_ENTRY, WORK_FUNCTION = 8, 24
WORK_PENDING = 1
#: ``struct timer_list``: entry @0 (``pprev`` @8 is set while it is pending), expires @16, function @24, flags @32.
TIMER_PPREV, TIMER_EXPIRES, TIMER_FUNCTION, TIMER_FLAGS = 8, 16, 24, 32
#: ``struct hrtimer``: node (expires @24) @0, _softexpires @32, function @40, base @48, state @56.
HRTIMER_EXPIRES, HRTIMER_SOFT_EXPIRES, HRTIMER_FUNCTION, HRTIMER_BASE, HRTIMER_STATE = 24, 32, 40, 48, 56
#: ``struct tasklet_struct``: state @8, count @16, use_callback @20, function @24, data @32.
TASKLET_STATE, TASKLET_COUNT, TASKLET_USES_CALLBACK, TASKLET_FUNCTION, TASKLET_DATA = 8, 16, 20, 24, 32
#: ``struct irq_work``: flags @8, func @16.
IRQ_WORK_FLAGS, IRQ_WORK_FUNCTION = 8, 16


@dataclass(frozen=True, slots=True)
class DeferredLayout:
    """Offsets in ``struct delayed_work`` and ``struct rcu_work``.

    Attributes:
        work_size: bytes of ``struct work_struct``: what follows it in those two.
        timer_size: bytes of ``struct timer_list``.
    """

    work_size: int
    timer_size: int

    @property
    def timer(self) -> int:
        """``delayed_work.timer`` (and ``rcu_work.rcu``)."""
        return self.work_size

    @property
    def queue(self) -> int:
        """``delayed_work.wq``."""
        return self.work_size + self.timer_size

    @property
    def cpu(self) -> int:
        """``delayed_work.cpu``."""
        return self.queue + 8


_WITH_RESERVE, _WITHOUT = DeferredLayout(48, 56), DeferredLayout(32, 40)


def deferred_layout(version: tuple[int, int]) -> DeferredLayout:
    """The offsets of a kernel line."""
    return _WITHOUT if version >= _FIRST_WITHOUT else _WITH_RESERVE


_FIRST_WITHOUT = (6, 12)
