"""Puts the headers and the example modules into the wheel, beside the code that looks for them.

They live in ``modules/`` of the source tree, once; an editable install uses them there. Everything else is in pyproject.toml.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SOURCE = Path("modules")
TARGET = Path("pkvm_emu", "modules")
LEFT_BY_BUILDS = shutil.ignore_patterns("build-out", "*.ko", "*.o", "Module.symvers", "modules.order")


class BuildWithModules(build_py):
    """``build_py``, and ``modules/`` as ``pkvm_emu/modules/``."""

    def run(self) -> None:
        """Copy the Python files, then the modules."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / TARGET
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(SOURCE, target, ignore=LEFT_BY_BUILDS)


setup(cmdclass={"build_py": BuildWithModules})
