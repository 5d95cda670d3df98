"""A booted system whose exported functions are called, and a module that the kernel calls back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from exports_host import SOURCE, Host

import pkvm_emu
from pkvm_emu.build.builder import build_module


@pytest.fixture(scope="session")
def booted() -> tuple[Host, object]:
    host = Host(pkvm_emu.boot("android16-6.12"))
    return host, host.system.snapshot()


@pytest.fixture
def host(booted: tuple[Host, object]) -> Iterator[Host]:
    """The system right after boot (deprivileged), the same for every test."""
    shared, snapshot = booted
    first = shared._next
    yield shared
    shared.system.restore(snapshot)  # type: ignore[arg-type]
    shared._next = first


@pytest.fixture(scope="session")
def callbacks_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module whose functions the kernel calls, and that calls variadic functions."""
    tree = tmp_path_factory.mktemp("callbacks")
    (tree / "Makefile").write_text("obj-m := callbacks.o\n")
    (tree / "callbacks.c").write_text(SOURCE)
    build_module(tree, output=tree / "callbacks.ko")
    return tree / "callbacks.ko"


@pytest.fixture
def module_host(callbacks_module: Path) -> Host:
    """A system with that module loaded."""
    return Host(pkvm_emu.boot("android16-6.12", modules=[callbacks_module]))
