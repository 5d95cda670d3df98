"""What several layers test with: the sample module of every generation, and modules made from a few lines of C."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from module_halves import ADDER, LOADER
from pkvm_emu.build.builder import build_module
from pkvm_emu.system import System, boot

REPOSITORY = Path(__file__).parents[1]
GENERATIONS = ("14", "15", "16")
KERNELS = ("android14-6.1", "android15-6.6", "android16-6.12")

# The same examples in each run, without limits of time: a busy machine is no failure. HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile("same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

_MAKEFILE = """\
obj-m := {name}.o
{name}-y := el1.o{hyp}
$(obj)/hyp/kvm_nvhe.o: FORCE
	$(Q)$(MAKE) $(build)=$(obj)/hyp $(obj)/hyp/kvm_nvhe.o
"""
_HYP_MAKEFILE = """\
hyp-obj-y := el2.o
include $(srctree)/arch/arm64/kvm/hyp/nvhe/Makefile.module
"""
_EL1_HEAD = """\
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <asm/kvm_pkvm_module.h>
MODULE_LICENSE("GPL");
"""
_EL2_HEAD = """\
#include <asm/kvm_pkvm_module.h>
#include <linux/arm-smccc.h>
#include <linux/errno.h>
"""

Sample = Callable[[str], Path]
MakeModule = Callable[..., Path]


@pytest.fixture(scope="session")
def pkvm_driver(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """The documented sample, built for a generation (``"14"``, ``"15"``, ``"16"``); its ``.ko``."""
    output = tmp_path_factory.mktemp("pkvm_driver")
    built: dict[str, Path] = {}

    def build(generation: str) -> Path:
        if generation not in built:
            tree = "pkvm_driver_a14" if generation == "14" else "pkvm_driver"
            target = output / generation / "pkvm_driver.ko"
            built[generation] = build_module(REPOSITORY / "modules" / tree, target, generation).path
        return built[generation]

    return build


@pytest.fixture(scope="session")
def c_module(tmp_path_factory: pytest.TempPathFactory) -> MakeModule:
    """``c_module(el1, el2, name=..., generation=..., config=..., symbols=...)``: a ``.ko`` from C without includes.

    ``el2=None`` makes a module without an EL2 half. The same sources are built once.
    """
    built: dict[str, Path] = {}

    def build(
        el1: str = LOADER,
        el2: str | None = ADDER,
        *,
        name: str = "probe",
        generation: str = "16",
        config: Mapping[str, str] | None = None,
        symbols: tuple[Path, ...] = (),
    ) -> Path:
        key = hashlib.sha256(repr((el1, el2, name, generation, config, symbols)).encode()).hexdigest()
        if key not in built:
            tree = tmp_path_factory.mktemp(name)
            files = {"Makefile": _MAKEFILE.format(name=name, hyp="" if el2 is None else " hyp/kvm_nvhe.o")}
            files["el1.c"] = _EL1_HEAD + el1
            if el2 is not None:
                files["hyp/Makefile"] = _HYP_MAKEFILE
                files["hyp/el2.c"] = _EL2_HEAD + el2
            for path, text in files.items():
                (tree / path).parent.mkdir(exist_ok=True)
                (tree / path).write_text(text)
            built[key] = build_module(tree, tree / f"{name}.ko", generation, config, symbols=symbols).path
        return built[key]

    return build


@pytest.fixture(scope="module")
def booted(request: pytest.FixtureRequest, c_module: MakeModule) -> Callable[[str], System]:
    """Boots a generation once, with the module that the test file names in ``MODULE`` (its name and its EL2 half)."""
    module, source = request.module.MODULE
    systems: dict[str, System] = {}

    def get(name: str) -> System:
        if name not in systems:
            systems[name] = boot(name, [c_module(el2=source, name=module, generation=name)])
        return systems[name]

    return get


@pytest.fixture(params=KERNELS)
def system(request: pytest.FixtureRequest, booted: Callable[[str], System]) -> Iterator[System]:
    """Every generation, booted with the file's ``MODULE``; what a test does to it is undone."""
    yield from _undone(booted(request.param))


@pytest.fixture
def newest(booted: Callable[[str], System]) -> Iterator[System]:
    """android16, booted with the file's ``MODULE``; what a test does to it is undone."""
    yield from _undone(booted(KERNELS[-1]))


def _undone(system: System) -> Iterator[System]:
    before = system.snapshot()
    yield system
    system.restore(before)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree, built from a copy so that nothing is left in it."""
    pytest.importorskip("setuptools", minversion="77")
    pytest.importorskip("pip")
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(REPOSITORY / name, tree)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build-out", "*.ko")
    shutil.copytree(REPOSITORY / "src", tree / "src", ignore=ignore)
    shutil.copytree(REPOSITORY / "modules", tree / "modules", ignore=ignore)
    shutil.copytree(REPOSITORY / "firmware", tree / "firmware")
    # What a developer's builds leave in the sample must not get into the wheel.
    (tree / "modules" / "pkvm_driver" / "build-out").mkdir()
    (tree / "modules" / "pkvm_driver" / "build-out" / "pkvm_driver.ko").write_bytes(b"stale")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tree),
        str(tree),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return next(tree.glob("*.whl"))
