"""``/proc``: what it says about the kernel and its modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.kernel.fs.registry import text_file

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel
    from pkvm_emu.kernel.modules import LoadedModule

#: Bits of ``/proc/sys/kernel/tainted`` by the letters of an oops (Documentation/admin-guide/tainted-kernels.rst).
_TAINT_LETTERS = "PFSRMBUDAWCIOELKXT"
#: How the loader's states read in ``/proc/modules``.
_STATES = {"coming": "Loading", "live": "Live", "stopped": "Loading", "gone": "Unloading"}


def kernel_release(kernel: Kernel) -> str:
    """``uname -r``: the version with the Android tag, as far as the generation fixes it."""
    major, minor = kernel.generation.kernel
    return f"{major}.{minor}.0-android{kernel.generation.android}"


def module_size(module: LoadedModule) -> int:
    """Bytes of a live module, as ``lsmod`` prints them: without what is freed after init."""
    return sum(region.size for region in module.layout.regions if not region.name.startswith("init."))


def module_taint(module: LoadedModule) -> str:
    """The letters of ``/sys/module/NAME/taint``."""
    return ("P" if module.proprietary else "") + ("" if module.file.modinfo.get("intree") else "O")


def module_dependency_text(module: LoadedModule, permanent: str = "[permanent],") -> str:
    """The fourth column of ``/proc/modules``: who uses the module, and ``[permanent],`` where it has no exit function."""
    users = "".join(f"{user}," for user in reversed(module.users))
    if module.symbol("cleanup_module") is None:
        users += permanent
    return users or "-"


@text_file("/proc/cmdline")
def cmdline(kernel: Kernel) -> str:
    """The kernel command line."""
    return f"{kernel.command_line}\n"


@text_file("/proc/version")
def version(kernel: Kernel) -> str:
    """One line that names the kernel."""
    return f"Linux version {kernel_release(kernel)} (pkvm_emu) #1 SMP PREEMPT aarch64\n"


@text_file("/proc/uptime")
def uptime(kernel: Kernel) -> str:
    """Seconds since boot by the deterministic counter; nothing is idle."""
    hundredths = kernel.uptime_ns() // 10_000_000
    return f"{hundredths // 100}.{hundredths % 100:02} 0.00\n"


@text_file("/proc/modules")
def modules(kernel: Kernel) -> str:
    """``name size references users state address (taint)``, newest first."""
    lines = []
    for module in reversed(list(kernel.loader.modules.values())):
        taint = module_taint(module)
        lines.append(
            f"{module.name} {module_size(module)} {module.references} {module_dependency_text(module)} "
            f"{_STATES.get(module.status, module.status)} {module.layout.base:#018x}{f' ({taint})' if taint else ''}\n"
        )
    return "".join(lines)


@text_file("/proc/sys/kernel/tainted")
def tainted(kernel: Kernel) -> str:
    """The taint of the kernel as a number."""
    return f"{sum(1 << _TAINT_LETTERS.index(letter) for letter in kernel.tainted if letter in _TAINT_LETTERS)}\n"


@text_file("/proc/sys/kernel/osrelease")
def osrelease(kernel: Kernel) -> str:
    """``uname -r``."""
    return f"{kernel_release(kernel)}\n"


@text_file("/proc/devices")
def devices(kernel: Kernel) -> str:
    """Major numbers and who took them."""
    from pkvm_emu.kernel.fs.chrdevs import Chrdevs

    taken = sorted((major, region.name) for (major, _), region in kernel.part(Chrdevs).regions.items())
    return "Character devices:\n" + "".join(f"{major:3} {name}\n" for major, name in taken) + "\nBlock devices:\n"


@text_file("/proc/misc")
def misc(kernel: Kernel) -> str:
    """Minor numbers and names of misc devices, newest first."""
    from pkvm_emu.abi.file_structs import MiscDevice
    from pkvm_emu.kernel.fs.chrdevs import Chrdevs

    lines = []
    for minor, address in kernel.part(Chrdevs).misc.items():
        name = kernel.read_cstr(kernel.memory.read_u64(address + MiscDevice.NAME)).decode("latin-1")
        lines.append(f"{minor:3} {name}\n")
    return "".join(reversed(lines))
