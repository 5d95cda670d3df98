"""Puts the headers, the example modules and the firmware's sources into the wheel, beside the code that looks for them.

They live in ``modules/`` and ``firmware/`` of the source tree, once; an editable install uses them there. Everything else is in
pyproject.toml.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

MODULES, FIRMWARE = Path("modules"), Path("firmware")
PACKAGE = Path("pkvm_emu")
LEFT_BY_BUILDS = shutil.ignore_patterns("build-out", "*.ko", "*.o", "Module.symvers", "modules.order")


class BuildWithModules(build_py):
    """``build_py``, and ``modules/`` as ``pkvm_emu/modules/``; debuggers show ``firmware/*.S`` from ``pkvm_emu/firmware/``."""

    def run(self) -> None:
        """Copy the Python files, then the modules and the sources."""
        super().run()
        if not self.editable_mode:
            package = Path(self.build_lib) / PACKAGE
            shutil.rmtree(package / MODULES, ignore_errors=True)
            shutil.copytree(MODULES, package / MODULES, ignore=LEFT_BY_BUILDS)
            shutil.copytree(FIRMWARE, package / FIRMWARE, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithModules})
