"""The device tree and what hangs on it: nodes in guest memory, platform devices, interrupts, reserved memory."""
