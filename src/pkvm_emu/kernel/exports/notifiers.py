"""Notifier chains (``kernel/notifier.c``) and the kernel's own ones.

A ``struct notifier_block`` is {call; next @8; int priority @16}. Chains are linked in guest memory, highest priority first; what
makes the kinds differ is where the head's pointer is: @0 (raw), behind a spin lock @8 (atomic), behind a reader-writer semaphore
@64 (blocking).
"""

from __future__ import annotations

from errno import EBUSY, EEXIST, ENOENT

from pkvm_emu.kernel.guest_access import load_u32, load_u64, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.registry import kernel_symbol, kernel_variable
from pkvm_emu.kernel.sync import Locks
from pkvm_emu.machine.calling import U64, Ptr

RAW, ATOMIC, BLOCKING = 0, 8, 64
#: ``NOTIFY_DONE``, ``NOTIFY_OK``, ``NOTIFY_STOP_MASK``.
DONE, OK, STOP_MASK = 0, 1, 0x8000
_NEXT, _PRIORITY = 8, 16
_HEAD_SIZE = 96


def _priority(kernel: Kernel, block: int) -> int:
    value = load_u32(kernel, block + _PRIORITY)
    return value - (1 << 32) if value >> 31 else value


def register(kernel: Kernel, head: int, block: int, is_unique: bool = False) -> int:
    """Put a block on a chain: behind those of the same priority.

    Args:
        head: address of the chain's pointer.
        block: ``struct notifier_block``.
        is_unique: its priority may not be there yet.

    Returns:
        0, -EEXIST for a block that is on the chain already, -EBUSY for a priority that is taken.
    """
    place = head
    while other := load_u64(kernel, place):
        if other == block:
            warn(
                kernel,
                "kernel/notifier.c",
                f"notifier callback {kernel.describe(load_u64(kernel, block))} already registered",
            )
            return -EEXIST
        if _priority(kernel, block) > _priority(kernel, other):
            break
        if is_unique and _priority(kernel, block) == _priority(kernel, other):
            return -EBUSY
        place = other + _NEXT
    store_uint(kernel, block + _NEXT, load_u64(kernel, place), 8)
    store_uint(kernel, place, block, 8)
    return 0


def unregister(kernel: Kernel, head: int, block: int) -> int:
    """Take a block off a chain: 0, or -ENOENT where it is not on it."""
    place = head
    while other := load_u64(kernel, place):
        if other == block:
            store_uint(kernel, place, load_u64(kernel, block + _NEXT), 8)
            return 0
        place = other + _NEXT
    return -ENOENT


def blocks(kernel: Kernel, head: int) -> list[int]:
    """The blocks of a chain, in the order in which they are called."""
    found, block = [], load_u64(kernel, head)
    while block:
        found.append(block)
        block = load_u64(kernel, block + _NEXT)
    return found


def call_chain(kernel: Kernel, head: int, event: int, data: int) -> int:
    """Call a chain until one says stop; what the last one called returned (NOTIFY_DONE for none)."""
    result, block = DONE, load_u64(kernel, head)
    while block:
        # A callback may take itself off the chain.
        following = load_u64(kernel, block + _NEXT)
        result = kernel.call(load_u64(kernel, block), block, event, data) & 0xFFFF_FFFF
        if result & STOP_MASK:
            break
        block = following
    return result


def _serve(kind: str, offset: int, sleeps: bool) -> None:
    def check(kernel: Kernel) -> None:
        if sleeps:
            kernel.part(Locks).may_sleep()

    @kernel_symbol(f"{kind}_notifier_chain_register", runs_guest=True)
    def add(kernel: Kernel, head: Ptr, block: Ptr) -> int:
        """Put a block on a chain."""
        check(kernel)
        return register(kernel, head + offset, block)

    @kernel_symbol(f"{kind}_notifier_chain_register_unique_prio", runs_guest=True)
    def add_unique(kernel: Kernel, head: Ptr, block: Ptr) -> int:
        """The same; -EBUSY where its priority is taken."""
        check(kernel)
        return register(kernel, head + offset, block, is_unique=True)

    @kernel_symbol(f"{kind}_notifier_chain_unregister", runs_guest=True)
    def remove(kernel: Kernel, head: Ptr, block: Ptr) -> int:
        """Take a block off a chain."""
        check(kernel)
        return unregister(kernel, head + offset, block)

    @kernel_symbol(f"{kind}_notifier_call_chain", runs_guest=True)
    def call(kernel: Kernel, head: Ptr, event: U64, data: Ptr) -> int:
        """Call a chain."""
        check(kernel)
        return call_chain(kernel, head + offset, event, data)

    @kernel_symbol(f"{kind}_notifier_call_chain_robust", runs_guest=True)
    def call_robust(kernel: Kernel, head: Ptr, up: U64, down: U64, data: Ptr) -> int:
        """Call a chain; where one says stop, those before it are told ``down``."""
        check(kernel)
        done: list[int] = []
        result = DONE
        for block in blocks(kernel, head + offset):
            result = kernel.call(load_u64(kernel, block), block, up, data) & 0xFFFF_FFFF
            if result & STOP_MASK:
                for earlier in done:
                    kernel.call(load_u64(kernel, earlier), earlier, down, data)
                break
            done.append(block)
        return result


for _kind, _offset, _sleeps in (("raw", RAW, False), ("atomic", ATOMIC, False), ("blocking", BLOCKING, True)):
    _serve(_kind, _offset, _sleeps)


# The kernel's own chains


def _empty_head(kernel: Kernel) -> bytes:
    """The head of one of the kernel's own chains."""
    return b""


#: Chains by name: the variable that holds the head, and where the pointer is in it.
CHAINS = {
    "reboot": ("reboot_notifier_list", BLOCKING),
    "restart": ("restart_handler_list", ATOMIC),
    "restart_prep": ("restart_prep_handler_list", BLOCKING),
    "power_off": ("power_off_handler_list", ATOMIC),
    "power_off_prep": ("power_off_prep_handler_list", BLOCKING),
    "panic": ("panic_notifier_list", ATOMIC),
    "die": ("die_chain", ATOMIC),
    "pm": ("pm_chain_head", BLOCKING),
    "cpu_pm": ("cpu_pm_notifier_chain", ATOMIC),
    "module": ("module_notify_list", BLOCKING),
    "memory": ("memory_chain", BLOCKING),
    "oom": ("oom_notify_list", BLOCKING),
}
for _variable, _ in CHAINS.values():
    kernel_variable(_variable, _HEAD_SIZE)(_empty_head)


def chain_head(kernel: Kernel, name: str) -> int:
    """Address of the pointer of one of the kernel's own chains."""
    variable, offset = CHAINS[name]
    return kernel.symbols.resolve(variable) + offset


def is_known(kernel: Kernel, name: str) -> bool:
    """Whether anybody ever asked for a chain: one that nobody did is empty."""
    return CHAINS[name][0] in kernel.symbols.addresses


def call_kernel_chain(kernel: Kernel, name: str, event: int, data: int) -> int:
    """Call one of the kernel's own chains."""
    return call_chain(kernel, chain_head(kernel, name), event, data) if is_known(kernel, name) else DONE


def _serve_chain(name: str, register_names: tuple[str, ...], unregister_names: tuple[str, ...]) -> None:
    @kernel_symbol(*register_names, runs_guest=True)
    def add(kernel: Kernel, block: Ptr) -> int:
        """Put a block on one of the kernel's own chains."""
        return register(kernel, chain_head(kernel, name), block)

    @kernel_symbol(*unregister_names, runs_guest=True)
    def remove(kernel: Kernel, block: Ptr) -> int:
        """Take a block off it."""
        return unregister(kernel, chain_head(kernel, name), block)


for _chain, _register, _unregister in (
    ("reboot", "register_reboot_notifier", "unregister_reboot_notifier"),
    ("restart", "register_restart_handler", "unregister_restart_handler"),
    ("die", "register_die_notifier", "unregister_die_notifier"),
    ("pm", "register_pm_notifier", "unregister_pm_notifier"),
    ("cpu_pm", "cpu_pm_register_notifier", "cpu_pm_unregister_notifier"),
    ("module", "register_module_notifier", "unregister_module_notifier"),
    ("memory", "register_memory_notifier", "unregister_memory_notifier"),
    ("oom", "register_oom_notifier", "unregister_oom_notifier"),
):
    _serve_chain(_chain, (_register,), (_unregister,))


# Chains under SRCU. Where the pointer is depends on the build (a mutex and an SRCU domain lie before it), and no compiled code
# reads it; the first word of the mutex, which nobody takes here, serves as the pointer.


@kernel_symbol("srcu_init_notifier_head", runs_guest=True)
def srcu_init_notifier_head(kernel: Kernel, head: Ptr) -> None:
    """Make an empty chain."""
    store_uint(kernel, head, 0, 8)


@kernel_symbol("srcu_notifier_chain_register", runs_guest=True)
def srcu_notifier_chain_register(kernel: Kernel, head: Ptr, block: Ptr) -> int:
    """Put a block on a chain."""
    return register(kernel, head, block)


@kernel_symbol("srcu_notifier_chain_unregister", runs_guest=True)
def srcu_notifier_chain_unregister(kernel: Kernel, head: Ptr, block: Ptr) -> int:
    """Take a block off a chain."""
    return unregister(kernel, head, block)


@kernel_symbol("srcu_notifier_call_chain", runs_guest=True)
def srcu_notifier_call_chain(kernel: Kernel, head: Ptr, event: U64, data: Ptr) -> int:
    """Call a chain."""
    return call_chain(kernel, head, event, data)
