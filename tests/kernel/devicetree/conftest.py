"""Drivers made from C text, and systems that run them on a device tree made from source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pkvm_emu
from pkvm_emu.build.builder import build_module
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.kernel.devicetree.source import parse_source
from pkvm_emu.system import System

HEAD = """
#include <linux/init.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/of.h>
#include <linux/of_address.h>
#include <linux/of_platform.h>
#include <linux/of_reserved_mem.h>
#include <linux/platform_device.h>
#include <linux/pm_runtime.h>
#include <linux/printk.h>
int devm_add_action(struct device *dev, void (*action)(void *), void *data);
MODULE_LICENSE("GPL");
"""
Driver = Callable[..., ModuleFile]
Run = Callable[..., System]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """``driver(text, generation)`` compiles ``text`` as a module; the same text is compiled once."""
    built: dict[tuple[str, str], ModuleFile] = {}

    def build(text: str, generation: str = "android16-6.12") -> ModuleFile:
        if (text, generation) not in built:
            tree: Path = tmp_path_factory.mktemp("driver")
            (tree / "Makefile").write_text("obj-m := driver.o\ndriver-y := main.o\n")
            (tree / "main.c").write_text(HEAD + text)
            built[text, generation] = ModuleFile.load(build_module(tree, tree / "driver.ko", generation).path)
        return built[text, generation]

    return build


@pytest.fixture(scope="session")
def run(driver: Driver) -> Run:
    """``run(text, tree)`` boots with the driver on a device tree in source form (None: the made-up board)."""

    def boot(text: str, tree: str | None = None, generation: str = "android16-6.12") -> System:
        root = (
            parse_source(f"/dts-v1/; / {{ #address-cells = <2>; #size-cells = <2>; {tree} }};")
            if tree is not None
            else None
        )
        return pkvm_emu.boot(generation, modules=[driver(text, generation)], dtb=root)

    return boot


@pytest.fixture(scope="session")
def said() -> Callable[[System], list[str]]:
    """The lines of the log that the test's module wrote: those that begin with ``=``."""
    return lambda system: [record.text[1:] for record in system.kernel.log if record.text.startswith("=")]
