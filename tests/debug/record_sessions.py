"""Records the sessions in ``sessions/`` anew, with the real debuggers: ``python tests/debug/record_sessions.py``.

The module is the documented sample without its debug sections, so that no path of this machine is in what is recorded; gdb does
not load the files with symbols, which would be most of the recording.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from pkvm_emu.build.builder import build_module
from pkvm_emu.debug.debugger import Debugger
from pkvm_emu.debug.flow import Act, Flow
from pkvm_emu.debug.places import FirstStop
from pkvm_emu.debug.recording import RecordingLink
from pkvm_emu.debug.serve import run_remote
from pkvm_emu.debug.server import SocketLink, listen
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.kernel.command_line import CommandLine
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System, choose_generation, run_boot

HERE = Path(__file__).parent
SESSIONS = HERE / "sessions"
HANDLER = "pkvm_driver_hyp_hvc"
#: By name of the recording: the generation, the program, and what is typed.
SCRIPTS = {
    "gdb-android14": (
        "14", "gdb", [
            "monitor break hvc 128", "continue", "stepi", "stepi", "continue", "bt", "continue", "watch *(long *)$sp", "continue",
        ],
    ),
    "gdb-android16": (
        "16",
        "gdb",
        [
            "break *0x400008400004", "continue", "bt", "info registers el2", "info threads", "stepi 4", "x/4i $pc",
            "set var *(int *)$sp = 1", "monitor pt $pc", "delete",
            "rwatch *(long *)0x400008401000", "continue", "delete", "continue",
        ],
    ),
    "lldb-android16": (
        "16",
        "lldb",
        [f"breakpoint set --name {HANDLER}", "continue", "bt", "register read HCR_EL2", "thread step-inst", "continue"],
    ),
}  # fmt: skip


def make_debugger(generation: str, directory: str) -> tuple[Debugger, FirstStop]:
    """The system of a recording, not booted yet, under a debugger."""
    tree = "pkvm_driver_a14" if generation == "14" else "pkvm_driver"
    # The paths of sources are in the module's data, so they must be the same wherever the project lies.
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(HERE.parents[1] / "modules"):
        built = build_module(Path(tree), Path(place) / "pkvm_driver.ko", generation)
        whole = ModuleFile.load(built.path)
    file = ModuleFile(whole.file_name, whole.object)
    system = System(choose_generation(generation, [file]), CommandLine(""), MachineProfile())
    acts = [
        Act("boot", lambda: run_boot(system, [file])),
        Act("call", lambda: str(system.call(HANDLER, 1, 2))),
        Act("call", lambda: str(system.call(HANDLER, 3, 4))),
    ]
    debugger = Debugger(system, Flow(acts), directory)
    return debugger, FirstStop(debugger, "module-init")


def record(name: str) -> None:
    """Record one session."""
    generation, program, commands = SCRIPTS[name]
    with tempfile.TemporaryDirectory() as place:
        symbols = "/pkvm-emu" if program == "gdb" else str(Path(place) / "symbols")
        debugger, first = make_debugger(generation, symbols)
        listener = listen(0)
        port = listener.getsockname()[1]
        script = Path(place) / "script"
        started: list[subprocess.Popen[bytes]] = []

        def announce(stop: object) -> None:
            if program == "gdb":
                lines = [
                    "set confirm off",
                    "set pagination off",
                    "set sysroot /nonexistent",
                    f"target remote :{port}",
                    *commands,
                    "kill",
                ]
                command = ["gdb-multiarch", "-nx", "-q", "-batch", "-x", str(script)]
            else:
                files = debugger.libraries.write()
                lines = [f"target create --arch aarch64-unknown-none {files[0]}"]
                lines += [f"target modules add {path}" for path in files[1:]]
                lines += [f"process connect --plugin gdb-remote connect://127.0.0.1:{port}", *commands, "kill"]
                command = ["lldb", "--no-use-colors", "--batch", "-x", "-s", str(script)]
            script.write_text("\n".join(lines) + "\n")
            started.append(subprocess.Popen(command))

        link = SocketLink(listener, debugger.control.interrupt, lambda: bool(started) and started[0].poll() is not None)
        path = SESSIONS / f"{name}.txt"
        with path.open("w") as file:
            run_remote(debugger, RecordingLink(link, file), first, announce)
        link.close()
        started[0].wait()
        text = path.read_text().replace(symbols, "/pkvm-emu").replace(symbols.encode().hex(), b"/pkvm-emu".hex())
        path.write_text(text)


def main() -> None:
    """Record the sessions named on the command line, or all."""
    SESSIONS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or SCRIPTS:
        if shutil.which("gdb-multiarch" if name.startswith("gdb") else "lldb") is None:
            print(f"{name}: the debugger is not installed")
            continue
        thread = threading.Thread(target=record, args=(name,))
        thread.start()
        thread.join()


if __name__ == "__main__":
    main()
