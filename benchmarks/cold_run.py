"""``pkvm-emu run`` of a prebuilt module as a whole process."""

from __future__ import annotations

import subprocess
import sys

from common import median_seconds, sample, show


def main() -> None:
    module = str(sample())
    command = [sys.executable, "-m", "pkvm_emu", "run", module, "--call", "pkvm_driver_hyp_hvc:1,2"]
    seconds = median_seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    show("cold pkvm-emu run of a .ko", seconds, "s", "< 0.35")


if __name__ == "__main__":
    main()
