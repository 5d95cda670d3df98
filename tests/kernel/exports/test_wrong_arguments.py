"""Exported functions that are given what they cannot use: the answer or the oops of a device, never a failure of the emulator."""

from __future__ import annotations

from pathlib import Path

import pytest
from exports_host import Host

import pkvm_emu
from pkvm_emu.errors import EmulatorError, ModuleError, PkvmEmuError
from pkvm_emu.kernel import registry
from pkvm_emu.kernel.exports import register_all
from pkvm_emu.kernel.faults import KernelOops

EINVAL = -22
ALL_ONES = (1 << 64) - 1
FILE = """
from pkvm_emu.kernel.registry import kernel_symbol

@kernel_symbol("vendor_answer")
def vendor_answer(kernel) -> int:
    return {}["missing"]
"""
ASKS = """
int vendor_answer(void);
static int __init asking_init(void) { return vendor_answer(); }
module_init(asking_init);
"""


@pytest.mark.parametrize(
    "arguments", [(0,) * 8, (ALL_ONES,) * 8, (3, 5, 7, 1, 2, 4, 6, 8)], ids=["NULL", "all ones", "small"]
)
def test_no_function_fails_in_the_emulator(host: Host, arguments: tuple[int, ...]) -> None:
    snapshot = host.system.snapshot()
    failed = []
    register_all()
    for name in sorted(registry.FUNCTIONS):
        try:
            host.call(name, *arguments)
        except EmulatorError as error:
            failed.append(str(error))
        except PkvmEmuError:
            pass
        host.system.restore(snapshot)
    assert failed == []


@pytest.mark.parametrize("end", [0, -64, 1 << 40])
def test_a_range_of_code_that_is_empty_or_backwards_is_nothing(host: Host, end: int) -> None:
    start = host.buffer(64)
    assert host.call("caches_clean_inval_pou", start, start + end) == 0


def test_a_pool_that_is_none_is_an_oops_or_a_bug(host: Host) -> None:
    with pytest.raises(KernelOops, match=r"NULL pointer dereference.* in gen_pool_size\(\)"):
        host.call("gen_pool_size", 0)
    with pytest.raises(KernelOops, match=r"kernel BUG at lib/genalloc\.c.*|is no gen_pool"):
        host.call("gen_pool_free_owner", host.buffer(64), 0x1000, 64, 0)


@pytest.mark.parametrize("name", ["__memcpy_toio", "__memcpy_fromio", "__iowrite32_copy", "__iowrite64_copy"])
def test_a_copy_beyond_what_is_mapped_oopses_and_does_not_take_for_ever(host: Host, name: str) -> None:
    place = host.buffer(4096)
    with pytest.raises(KernelOops, match="paging request"):
        host.call(name, place, place, 1 << 40)


@pytest.mark.parametrize("name", ["_copy_from_user", "kvfree_sensitive"])
def test_a_size_of_terabytes_needs_no_memory_of_the_emulators(host: Host, name: str) -> None:
    place = host.put("abc")
    with pytest.raises(KernelOops, match="paging request"):
        host.call(name, place, *((0x1000, 1 << 44) if name == "_copy_from_user" else (1 << 44,)))


def test_device_memory_that_does_not_fit_is_null(host: Host) -> None:
    assert host.call("ioremap_cache", 0x1_0000_0000, 1 << 40) == 0
    assert "vmap allocation for size 1099511627776 failed" in host.log
    assert host.call("ioremap", 0x0900_0000, 0x1000) != 0


def test_queues_of_no_size_hold_nothing(host: Host) -> None:
    fifo = host.buffer(32)
    assert host.s32("__kfifo_init", fifo, host.buffer(64), 64, 0) == EINVAL
    assert host.call("__find_nth_bit", host.put(b"\x01" + bytes(7)), 64, 1 << 60) == 64


def test_a_call_of_another_generation_names_the_hypercall(host: Host) -> None:
    with pytest.raises(ModuleError, match=r"android16-6\.12 has no hypercall iommu_finalize, .*--android"):
        host.call("pkvm_iommu_finalize", 0)


def test_a_function_of_the_user_that_fails_is_told_with_its_line(c_module, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(FILE)
    module = c_module(ASKS, el2="int hyp_init(const struct pkvm_module_ops *ops) { return 0; }", name="asking")
    with pytest.raises(pkvm_emu.UsageError) as error:
        pkvm_emu.boot(modules=[module], kernel=[path])
    assert str(error.value).startswith(f"{path}:6: KeyError: 'missing', in vendor_answer(), called from init_module+")
