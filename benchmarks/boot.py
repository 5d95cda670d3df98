"""Boot plus module load inside one process, after the first."""

from __future__ import annotations

from common import median_seconds, sample, show

import pkvm_emu


def main() -> None:
    module = sample()
    seconds = median_seconds(lambda: pkvm_emu.boot(modules=[module]), runs=15)
    show("in-process boot and load of one module", seconds * 1e3, "ms", "< 25")


if __name__ == "__main__":
    main()
