"""Exported variables that code is compiled against: memory layout, CPU masks, capabilities, resources."""

from __future__ import annotations

import struct

from pkvm_emu.kernel import layout
from pkvm_emu.kernel.kernel import STACK_CANARY, Kernel
from pkvm_emu.kernel.registry import kernel_variable
from pkvm_emu.kernel.smp import Smp
from pkvm_emu.kernel.time import Clock

_MASK64 = (1 << 64) - 1
_MASK_BYTES = 64
_CAPABILITY_BYTES = 32
_MAX_CAPABILITIES = 8 * _CAPABILITY_BYTES
_STATIC_KEY = 16
_IORESOURCE_MEM, _IORESOURCE_IO = 0x200, 0x100
_NR_CPUS = 32


def _u64(value: int) -> bytes:
    return (value & _MASK64).to_bytes(8, "little")


# Memory layout


@kernel_variable("memstart_addr", 8)
def memstart_addr(kernel: Kernel) -> bytes:
    """Physical address at ``PAGE_OFFSET``."""
    return _u64(kernel.memory.memstart)


@kernel_variable("kimage_voffset", 8)
def kimage_voffset(kernel: Kernel) -> bytes:
    """Virtual minus physical address of the image."""
    return _u64(kernel.memory.kimage_voffset)


@kernel_variable("kimage_vaddr", 8)
def kimage_vaddr(kernel: Kernel) -> bytes:
    """Virtual address of the image (up to 6.8): ``kaslr_offset()`` is its distance from where the line links it."""
    return _u64(kernel.memory.layout.kimage_vaddr)


@kernel_variable("physvirt_offset", 8)
def physvirt_offset(kernel: Kernel) -> bytes:
    """Physical minus virtual address of the linear map."""
    return _u64(kernel.memory.memstart - kernel.memory.layout.page_offset)


@kernel_variable("vabits_actual", 8)
def vabits_actual(kernel: Kernel) -> bytes:
    """Bits of a kernel address."""
    return _u64(kernel.memory.layout.va_bits)


@kernel_variable("arm64_use_ng_mappings", 1)
def arm64_use_ng_mappings(kernel: Kernel) -> bytes:
    """Kernel mappings are global: neither KPTI nor KASLR is on."""
    return b"\0"


@kernel_variable("high_memory", 8)
def high_memory(kernel: Kernel) -> bytes:
    """Linear address behind RAM."""
    return _u64(kernel.memory.linear_va(kernel.machine.ram.end))


@kernel_variable("max_pfn", 8)
def max_pfn(kernel: Kernel) -> bytes:
    """PFN behind RAM."""
    return _u64(kernel.machine.ram.end >> layout.PAGE_SHIFT)


@kernel_variable("min_low_pfn", 8)
def min_low_pfn(kernel: Kernel) -> bytes:
    """PFN of the start of RAM."""
    return _u64(kernel.machine.ram.base >> layout.PAGE_SHIFT)


@kernel_variable("_totalram_pages", 8)
def totalram_pages(kernel: Kernel) -> bytes:
    """Pages of RAM."""
    return _u64(kernel.machine.ram.size >> layout.PAGE_SHIFT)


@kernel_variable("empty_zero_page", layout.PAGE_SIZE)
def empty_zero_page(kernel: Kernel) -> bytes:
    """Zeros."""
    return b""


# CPUs


def _all_cpus(kernel: Kernel) -> bytes:
    return _u64((1 << kernel.machine.profile.cpus) - 1)


def _online_cpus(kernel: Kernel) -> bytes:
    return _u64(kernel.part(Smp).online)


for _name in ("possible", "present"):
    kernel_variable(f"__cpu_{_name}_mask", _MASK_BYTES)(_all_cpus)
for _name in ("online", "active"):
    kernel_variable(f"__cpu_{_name}_mask", _MASK_BYTES)(_online_cpus)


@kernel_variable("nr_cpu_ids", 4)
def nr_cpu_ids(kernel: Kernel) -> bytes:
    """Number of CPUs."""
    return struct.pack("<I", kernel.machine.profile.cpus)


@kernel_variable("__num_online_cpus", 4)
def num_online_cpus(kernel: Kernel) -> bytes:
    """Number of CPUs that are online."""
    return struct.pack("<I", kernel.part(Smp).online.bit_count())


@kernel_variable("__per_cpu_offset", 8 * _NR_CPUS)
def per_cpu_offset(kernel: Kernel) -> bytes:
    """Distance of each CPU's copy of the per-CPU variables."""
    return b"".join(_u64(cpu * layout.PERCPU_SIZE) for cpu in range(kernel.machine.profile.cpus))


@kernel_variable("cpu_number", 4, section="percpu")
def cpu_number(kernel: Kernel) -> bytes:
    """``smp_processor_id()``."""
    return b"".join(struct.pack("<I", cpu) for cpu in range(kernel.machine.profile.cpus))


@kernel_variable("cpu_bit_bitmap", 65 * 8, section="rodata")
def cpu_bit_bitmap(kernel: Kernel) -> bytes:
    """What ``cpumask_of(cpu)`` points into: row n has bit n - 1."""
    return bytes(8) + b"".join(_u64(1 << bit) for bit in range(64))


# Capabilities


def _capabilities(kernel: Kernel) -> bytes:
    value = sum(1 << number for number in kernel.capability_numbers() if number < _MAX_CAPABILITIES)
    return value.to_bytes(_CAPABILITY_BYTES, "little")


for _name in ("system_cpucaps", "boot_cpucaps", "cpu_hwcaps"):
    kernel_variable(_name, _CAPABILITY_BYTES)(_capabilities)


@kernel_variable("cpu_hwcap_keys", _MAX_CAPABILITIES * _STATIC_KEY)
def cpu_hwcap_keys(kernel: Kernel) -> bytes:
    """Static keys by capability (5.15)."""
    wanted = kernel.capability_numbers()
    return b"".join(struct.pack("<QQ", number in wanted, 0) for number in range(_MAX_CAPABILITIES))


@kernel_variable("arm64_const_caps_ready", _STATIC_KEY)
def arm64_const_caps_ready(kernel: Kernel) -> bytes:
    """On: the capabilities are final."""
    return struct.pack("<QQ", 1, 0)


@kernel_variable("kvm_protected_mode_initialized", _STATIC_KEY)
def kvm_protected_mode_initialized(kernel: Kernel) -> bytes:
    """Comes on when the host is deprivileged."""
    return struct.pack("<QQ", kernel.deprivileged, 0)


def _key_off(kernel: Kernel) -> bytes:
    """A static key that is off."""
    return b""


for _name in ("gic_nonsecure_priorities", "gic_pmr_sync"):
    kernel_variable(_name, _STATIC_KEY)(_key_off)


# Resources: {u64 start, end; const char *name; unsigned long flags, desc; parent, sibling, child}


def _resource(kernel: Kernel, end: int, name: bytes, flags: int, place: str) -> bytes:
    # The name lives behind the structure.
    address = kernel.symbols.addresses[place] + 64
    return struct.pack("<8Q", 0, end, address, flags, 0, 0, 0, 0) + name + b"\0"


@kernel_variable("iomem_resource", 128)
def iomem_resource(kernel: Kernel) -> bytes:
    """All physical addresses."""
    return _resource(kernel, _MASK64, b"PCI mem", _IORESOURCE_MEM, "iomem_resource")


@kernel_variable("ioport_resource", 128)
def ioport_resource(kernel: Kernel) -> bytes:
    """The port space."""
    return _resource(kernel, 0xFF_FFFF, b"PCI IO", _IORESOURCE_IO, "ioport_resource")


# Other


@kernel_variable("jiffies", 8)
def jiffies(kernel: Kernel) -> bytes:
    """Ticks of 4 ms, beginning five minutes before the counter's overflow; moved on whenever a function lets time pass."""
    return _u64(kernel.part(Clock).jiffies)


@kernel_variable("jiffies_64", 8)
def jiffies_64(kernel: Kernel) -> bytes:
    """The same."""
    return jiffies(kernel)


@kernel_variable("loops_per_jiffy", 8)
def loops_per_jiffy(kernel: Kernel) -> bytes:
    """Counter ticks of a jiffy."""
    return _u64(kernel.machine.profile.counter_hz // 250)


@kernel_variable("arch_timer_read_counter", 8)
def arch_timer_read_counter(kernel: Kernel) -> bytes:
    """Pointer to the function that reads the counter."""
    return _u64(kernel.symbols.resolve("arch_counter_get_cntvct"))


@kernel_variable("__stack_chk_guard", 8)
def stack_chk_guard(kernel: Kernel) -> bytes:
    """The stack canary of code that does not take it from the task."""
    return _u64(STACK_CANARY)


@kernel_variable("system_state", 4)
def system_state(kernel: Kernel) -> bytes:
    """``SYSTEM_SCHEDULING``: protected modules load before user space runs."""
    return struct.pack("<I", 1)


@kernel_variable("oops_in_progress", 4)
def oops_in_progress(kernel: Kernel) -> bytes:
    """No."""
    return b""


@kernel_variable("saved_command_line", 8)
def saved_command_line(kernel: Kernel) -> bytes:
    """Pointer to the command line."""
    return _u64(kernel.symbols.resolve("pkvm_emu.command_line"))


@kernel_variable("pkvm_emu.command_line", 2048)
def command_line_text(kernel: Kernel) -> bytes:
    """The text behind ``saved_command_line``."""
    return str(kernel.command_line).encode("utf-8", "surrogateescape")
