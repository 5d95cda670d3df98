"""What compiled-in checks call: lists, reference counts, WARN, sanitizers (``lib/list_debug.c``, ``lib/refcount.c``, ...)."""

from __future__ import annotations

from pkvm_emu.kernel.exports.memory import memmove, memset
from pkvm_emu.kernel.exports.printk import KernelPanic
from pkvm_emu.kernel.guest_access import caller, load_string, load_u32, load_u64
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import bug, warn
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.time import Clock
from pkvm_emu.machine.calling import S32, Ptr, VarArgs

_LIST_POISON1, _LIST_POISON2 = 0xDEAD_0000_0000_0100, 0xDEAD_0000_0000_0122


def _corrupt(kernel: Kernel, text: str) -> None:
    """GKI kernels are built with BUG_ON_DATA_CORRUPTION."""
    raise bug(kernel, "lib/list_debug.c", text)


# Lists


@kernel_symbol("__list_add_valid_or_report", "__list_add_valid", runs_guest=True)
def list_add_valid(kernel: Kernel, new: Ptr, previous: Ptr, following: Ptr) -> int:
    """Whether ``new`` may go between two neighbours; what is wrong with them is a BUG."""
    for pointer, name in ((previous, "prev"), (following, "next")):
        if not pointer:
            _corrupt(kernel, f"list_add corruption. {name} is NULL.")
    back, forth = load_u64(kernel, following + 8), load_u64(kernel, previous)
    if back != previous:
        _corrupt(
            kernel,
            f"list_add corruption. next->prev should be prev ({previous:016x}), but was {back:016x}. (next={following:016x}).",
        )
    if forth != following:
        _corrupt(
            kernel,
            f"list_add corruption. prev->next should be next ({following:016x}), but was {forth:016x}. (prev={previous:016x}).",
        )
    if new in (previous, following):
        _corrupt(kernel, f"list_add double add: new={new:016x}, prev={previous:016x}, next={following:016x}.")
    return True


@kernel_symbol("__list_del_entry_valid_or_report", "__list_del_entry_valid", runs_guest=True)
def list_del_entry_valid(kernel: Kernel, entry: Ptr) -> int:
    """Whether an entry may be removed; what is wrong with it is a BUG."""
    following, previous = load_u64(kernel, entry), load_u64(kernel, entry + 8)
    if not following:
        _corrupt(kernel, f"list_del corruption, {entry:016x}->next is NULL")
    if not previous:
        _corrupt(kernel, f"list_del corruption, {entry:016x}->prev is NULL")
    if following == _LIST_POISON1:
        _corrupt(kernel, f"list_del corruption, {entry:016x}->next is LIST_POISON1 ({_LIST_POISON1:016x})")
    if previous == _LIST_POISON2:
        _corrupt(kernel, f"list_del corruption, {entry:016x}->prev is LIST_POISON2 ({_LIST_POISON2:016x})")
    forth, back = load_u64(kernel, previous), load_u64(kernel, following + 8)
    if forth != entry:
        _corrupt(
            kernel,
            f"list_del corruption. prev->next should be {entry:016x}, but was {forth:016x}. (prev={previous:016x})",
        )
    if back != entry:
        _corrupt(
            kernel,
            f"list_del corruption. next->prev should be {entry:016x}, but was {back:016x}. (next={following:016x})",
        )
    return True


# Reference counts

#: ``enum refcount_saturation_type``.
_REFCOUNT_NAMES = {
    0: "refcount_t: saturated; leaking memory.",
    1: "refcount_t: saturated; leaking memory.",
    2: "refcount_t: addition on 0; use-after-free.",
    3: "refcount_t: underflow; use-after-free.",
    4: "refcount_t: decrement hit 0; leaking memory.",
}
_SATURATED = 0xC000_0000


@kernel_symbol("refcount_warn_saturate", runs_guest=True)
def refcount_warn_saturate(kernel: Kernel, counter: Ptr, kind: S32) -> None:
    """A reference count went wrong: it is saturated, and the kernel warns."""
    kernel.memory.write_u32(counter, _SATURATED)
    warn(kernel, "lib/refcount.c", _REFCOUNT_NAMES.get(kind, "refcount_t: unknown saturation event!?."))


# Warnings and dumps


@kernel_symbol("__warn_printk", runs_guest=True)
def warn_printk(kernel: Kernel, fmt: Ptr, args: VarArgs) -> None:
    """The text of a WARN that has one; its BRK follows."""
    kernel.log.printk("\x014------------[ cut here ]------------\n")
    kernel.log.printk("\x014" + kernel.format(load_string(kernel, fmt), args))


@kernel_symbol("dump_stack", "dump_stack_lvl")
def dump_stack(kernel: Kernel) -> None:
    """Who called, in the log."""
    cpu = kernel.machine.current.index
    kernel.log.write(f"CPU: {cpu} PID: {kernel.pid} Comm: swapper/0", level=4)
    kernel.log.write("Call trace:", level=4)
    kernel.log.write(f" {kernel.describe(kernel.machine.engine.read('x30') - 4)}", level=4)


@kernel_symbol("add_taint", "add_taint_module")
def add_taint(kernel: Kernel, flag: S32) -> None:
    """Taint the kernel: flag by number (9 is W, 12 is O)."""
    letters = "PFSRMBUDAWCIOELKXTNJ"
    letter = letters[flag] if 0 <= flag < len(letters) else ""
    if letter not in kernel.tainted:
        kernel.tainted += letter


@kernel_symbol("___ratelimit", runs_guest=True)
def ratelimit(kernel: Kernel, state: Ptr, function: Ptr) -> int:
    """Whether a rate-limited message may be printed.

    ``struct ratelimit_state`` {u32 lock; int interval @4, burst @8, printed @12, missed @16; unsigned long begin @24}.
    """
    memory = kernel.memory
    interval, burst, printed, missed = (load_u32(kernel, state + offset) for offset in (4, 8, 12, 16))
    if not interval:
        return True
    now, begin = kernel.part(Clock).jiffies, load_u64(kernel, state + 24)
    if not begin:
        memory.write_u64(state + 24, now)
        begin = now
    if now - begin > interval:
        if missed:
            name = load_string(kernel, function).decode("latin-1")
            kernel.log.write(f"{name}: {missed} callbacks suppressed", level=4)
            memory.write_u32(state + 16, 0)
        memory.write_u64(state + 24, now)
        printed = 0
    if burst > printed:
        memory.write_u32(state + 12, printed + 1)
        return True
    memory.write_u32(state + 16, missed + 1)
    memory.write_u32(state + 12, printed)
    return False


@kernel_symbol("__printk_ratelimit", runs_guest=True)
def printk_ratelimit(kernel: Kernel, function: Ptr) -> int:
    """Whether one more message may be printed: always, nothing floods the log here."""
    return True


# UBSan handlers: the first argument points at {const char *file; u32 line, column; ...}

_UBSAN = {
    "out_of_bounds": "array-index-out-of-bounds",
    "shift_out_of_bounds": "shift-out-of-bounds",
    "divrem_overflow": "division-overflow",
    "add_overflow": "signed-integer-overflow",
    "sub_overflow": "signed-integer-overflow",
    "mul_overflow": "signed-integer-overflow",
    "negate_overflow": "negation-overflow",
    "builtin_unreachable": "unreachable",
    "load_invalid_value": "invalid-load",
    "type_mismatch": "type-mismatch",
    "type_mismatch_v1": "type-mismatch",
    "alignment_assumption": "alignment-assumption",
}


def _register_ubsan(name: str, title: str) -> None:
    def report(kernel: Kernel, data: Ptr) -> None:
        file = load_string(kernel, load_u64(kernel, data)).decode("latin-1")
        line, column = load_u32(kernel, data + 8), load_u32(kernel, data + 12)
        text = f"UBSAN: {title} in {file}:{line}:{column}"
        kernel.log.write("------------[ cut here ]------------", level=3)
        kernel.log.write(text, level=3)
        kernel.log.write("---[ end trace ]---", level=3)
        if name == "builtin_unreachable":
            raise bug(kernel, "lib/ubsan.c", f"{text}: can't return from __builtin_unreachable()")

    report.__doc__ = f"Undefined behaviour: {title}. The text goes to the log, and the code goes on."
    kernel_symbol(f"__ubsan_handle_{name}", runs_guest=True)(report)


for _name, _title in _UBSAN.items():
    _register_ubsan(_name, _title)


@kernel_symbol("__ubsan_handle_cfi_check_fail_abort")
def cfi_check_fail(kernel: Kernel, data: Ptr, target: Ptr) -> None:
    """The jump-table CFI of 5.15 found a call of a wrong type: the kernel panics."""
    text = f"CFI failure (target: {kernel.describe(target)})"
    kernel.log.write(f"Kernel panic - not syncing: {text}", level=0)
    raise KernelPanic(f"Kernel panic - not syncing: {text}, called from {caller(kernel)}")


# KASAN builds call a check before each access. Their shadow says that everything is accessible; accesses fault by themselves.


def _check(kernel: Kernel, address: Ptr) -> None:
    """A KASAN check that passes."""


def _check_size(kernel: Kernel, address: Ptr, size: Ptr) -> None:
    """A KASAN check of a range, or a change of the shadow, that has nothing to do."""


_ASAN_SIZES = ("1", "2", "4", "8", "16")
for _kind in ("load", "store"):
    for _size in _ASAN_SIZES:
        kernel_symbol(f"__asan_{_kind}{_size}", f"__asan_{_kind}{_size}_noabort", f"__hwasan_{_kind}{_size}_noabort")(
            _check
        )
    kernel_symbol(f"__asan_{_kind}N", f"__asan_{_kind}N_noabort", f"__hwasan_{_kind}N_noabort")(_check_size)
kernel_symbol("__asan_handle_no_return", "__asan_alloca_poison", "__asan_allocas_unpoison")(_check_size)
kernel_symbol("__asan_register_globals", "__asan_unregister_globals", "__asan_before_dynamic_init")(_check_size)
kernel_symbol("__asan_after_dynamic_init", "__hwasan_tag_memory")(_check_size)
kernel_symbol(*(f"__asan_set_shadow_{value}" for value in ("00", "f1", "f2", "f3", "f5", "f8")))(_check_size)


@kernel_symbol("__kasan_check_read", "__kasan_check_write")
def kasan_check(kernel: Kernel, address: Ptr, size: Ptr) -> int:
    """True: the range is accessible."""
    return True


@kernel_symbol("__asan_memset", "__hwasan_memset", runs_guest=True)
def asan_memset(kernel: Kernel, s: Ptr, c: Ptr, count: Ptr) -> int:
    """``memset`` after its check."""
    return memset(kernel, s, c & 0xFF, count)


@kernel_symbol("__asan_memcpy", "__asan_memmove", "__hwasan_memcpy", "__hwasan_memmove", runs_guest=True)
def asan_memcpy(kernel: Kernel, dest: Ptr, src: Ptr, count: Ptr) -> int:
    """``memmove`` after its check."""
    return memmove(kernel, dest, src, count)


# Tracing and coverage instrumentation of debug builds.


@kernel_symbol("__sanitizer_cov_trace_pc", "_mcount")
def instrumentation(kernel: Kernel) -> None:
    """Nothing is recorded."""
