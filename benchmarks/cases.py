"""Five hundred declarative cases of one module, on one core: by ``pkvm-emu test`` and by pytest, watched as tests are."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import sample, show

CASES = 500
_HEAD = 'modules = ["{module}"]\n'
_CASE = """
[[case]]
name = "case {number}"
[[case.step]]
hvc = "pkvm_driver_hyp_hvc"
args = [{number}, 2]
expect.x1 = {expected}
expect.ops.puts = 1
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="pkvm-emu-bench-") as place:
        file = Path(place) / "many.pkvm.toml"
        # The handler adds how often it was called: the call of its own init was the first.
        cases = (_CASE.format(number=number, expected=number + 2 + 2) for number in range(CASES))
        file.write_text(_HEAD.format(module=sample()) + "".join(cases))
        for name, command in (
            ("pkvm-emu test", ["-m", "pkvm_emu", "test", "-q", str(file)]),
            ("pytest", ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", place, str(file)]),
        ):
            for contracts in ("memory", "off"):
                option = "--contracts" if name != "pytest" else "--pkvm-contracts"
                begun = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, *command, option, contracts],
                    capture_output=True,
                    text=True,
                    check=False,
                    cwd=place,
                )
                seconds = time.perf_counter() - begun
                if done.returncode:
                    raise SystemExit(done.stdout[-2000:] + done.stderr)
                show(f"{CASES} cases by {name}, contracts {contracts}", seconds, "s", "< 10")


if __name__ == "__main__":
    main()
