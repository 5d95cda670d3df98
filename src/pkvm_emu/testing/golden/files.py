"""Golden files: written the first time, compared afterwards, rewritten on request."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path

from pkvm_emu.errors import UsageError

_UNSAFE = re.compile(r"[^A-Za-z0-9_.=+@-]+")
_MAX_NAME = 120
_CONTEXT = 3


def file_name(*parts: str) -> str:
    """A file name out of names: ``shares a page[android16-6.12]`` becomes ``shares-a-page-android16-6.12.txt``."""
    words = [_UNSAFE.sub("-", part).strip("-") for part in parts if part]
    return ".".join(words)[:_MAX_NAME] + ".txt"


@dataclass(slots=True)
class GoldenFiles:
    """The golden files of one run.

    Attributes:
        update: rewrite what differs.
        written: files that were written, new or changed.
    """

    update: bool = False
    written: list[Path] = field(default_factory=list)
    compared: set[Path] = field(default_factory=set)

    def stale(self) -> list[Path]:
        """Golden files beside those that were compared, of the same test files, that nothing was compared with: of tests that
        are gone, or have other names. It means something only when every test has run.
        """
        places = {path.parent for path in self.compared}
        found = {path for place in places if place.is_dir() for path in place.glob("*.txt")}
        # Boots are beside the directories of the test files, and belong to none of them.
        return sorted(path for path in found - self.compared if not path.name.startswith("boot."))

    def check(self, path: Path, text: str) -> str | None:
        """Compare ``text`` with a golden file, or write it where there is none.

        Returns:
            What differs, as a unified diff; None where nothing does.

        Raises:
            UsageError: the file cannot be read or written.
        """
        self.compared.add(path)
        try:
            known = path.read_text()
        except FileNotFoundError:
            known = None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot be read as a golden file ({error})") from error
        if known == text:
            return None
        if known is None or self.update:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            except OSError as error:
                raise UsageError(f"{path}: {error.strerror}") from error
            self.written.append(path)
            return None
        lines = difflib.unified_diff(
            known.splitlines(),
            text.splitlines(),
            f"{path.name} (golden)",
            f"{path.name} (now)",
            lineterm="",
            n=_CONTEXT,
        )
        return "\n".join(lines)
