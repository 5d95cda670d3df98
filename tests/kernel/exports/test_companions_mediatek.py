"""What MediaTek's absent companions are stood in for by: the boundaries of the kernel image."""

from __future__ import annotations

from exports_host import Host

from pkvm_emu.kernel.image_sections import SECTIONS

ORDER = ("text", "stext", "etext", "init_begin", "init_end", "sdata", "edata", "bss_start", "bss_stop", "end")


def test_the_boundaries_are_in_the_order_of_an_image_and_page_aligned(host: Host) -> None:
    places = [host.call(f"aee_get_{name}") for name in ORDER]
    assert places == sorted(places)
    assert places[0] == host.call("aee_get_kimage_vaddr") == host.kernel.memory.layout.kimage_vaddr
    assert not any(place % 4096 for place in places)


def test_code_and_read_only_data_hold_what_runs_and_nothing_that_the_kernel_writes(host: Host) -> None:
    start, text_end, init = (host.call(f"aee_get_{name}") for name in ("stext", "etext", "init_begin"))
    stub = host.kernel.symbols.resolve("strlen")
    assert start <= host.kernel.entry("el1_vectors") < text_end
    assert start <= stub < text_end
    written = [host.kernel.symbols.resolve(name) for name in ("jiffies", "cpu_number", "memstart_addr")]
    written += [host.kernel.task_va(0)]
    assert all(place >= init for place in written)


def test_every_boundary_is_inside_the_image() -> None:
    assert list(SECTIONS.values()) == sorted(SECTIONS.values())
