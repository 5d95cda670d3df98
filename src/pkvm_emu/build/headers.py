"""Where the headers are that module sources compile against, and what they say about the configuration."""

from __future__ import annotations

import os
import re
import sysconfig
from pathlib import Path

from pkvm_emu.errors import UsageError

MARKER = Path("linux", "kconfig.h")
_OPTION = re.compile(r"^#define CONFIG_(\w+) (.*)$", re.MULTILINE)


def headers_root() -> Path:
    """The directory with ``linux/``, ``asm/``, ``nvhe/`` …

    ``PKVM_EMU_HEADERS`` names it; else that of the package or of the source tree. Raises UsageError without one.
    """
    chosen = os.environ.get("PKVM_EMU_HEADERS")
    package = Path(__file__).resolve().parents[1]
    places = (
        [Path(chosen)]
        if chosen
        else [
            package / "modules" / "include",
            package.parents[1] / "modules" / "include",
            Path(sysconfig.get_path("data"), "share", "pkvm-emu", "include"),
        ]
    )
    for place in places:
        if (place / MARKER).is_file():
            return place
    raise UsageError(
        f"no module headers in {places[0]}: reinstall pkvm-emu, or set PKVM_EMU_HEADERS to their directory"
    )


def include_directories(root: Path) -> list[Path]:
    """The include path below *root*: the headers themselves, then those that user space shares."""
    shared = root / "uapi"
    return [root, shared] if shared.is_dir() else [root]


def options_of(macros: str) -> dict[str, str]:
    """The configuration in the macro dump *macros* (``clang -dM``), as make sees it: ``1`` is ``y``."""
    return {name: "y" if value == "1" else value.strip('"') for name, value in _OPTION.findall(macros)}
