"""Work that runs later: tasks and the scheduler that switches between them, timers, work queues, soft interrupts."""
