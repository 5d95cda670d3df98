"""Time, locks, waits, checks that warn, modules, firmware calls."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from exports_host import Host

import pkvm_emu
from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.faults import KernelOops
from pkvm_emu.machine.core import Stuck
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.machine.scheduler import Scheduler


def elapsed(host: Host, name: str, *args: int) -> int:
    """Nanoseconds that a call takes, without what the call itself costs."""
    before = host.kernel.uptime_ns()
    host.call(name, *args)
    return host.kernel.uptime_ns() - before


@pytest.mark.parametrize(
    ("name", "arguments", "nanoseconds"),
    [
        ("__udelay", (100,), 100_000),
        ("__ndelay", (5000,), 5_000),
        ("__const_udelay", (1000 * 0x10C7,), 1_000_000),
        ("usleep_range_state", (50, 100, 2), 50_000),
        ("msleep", (1,), 8_000_000),
        ("msleep", (20,), 24_000_000),
        ("__delay", (62_500,), 1_000_000),
        ("schedule_timeout_uninterruptible", (250,), 1_000_000_000),
    ],
)
def test_a_delay_moves_the_counter_on(host: Host, name: str, arguments: tuple[int, ...], nanoseconds: int) -> None:
    passed = elapsed(host, name, *arguments)
    assert nanoseconds <= passed < nanoseconds + 50_000


def test_clocks_agree_and_jiffies_follow(host: Host) -> None:
    jiffies = host.kernel.symbols.resolve("jiffies")
    before = host.u64(jiffies)
    host.call("msleep", 1000)
    assert host.u64(jiffies) - before == 251
    assert host.call("ktime_get_seconds") == 1
    assert 0 <= host.call("ktime_get_raw_ns") - host.call("ktime_get") + 10_000 < 20_000
    assert host.call("__msecs_to_jiffies", 1) == 1
    assert host.call("jiffies_to_msecs", 250) == 1000


def test_locking_a_mutex_twice_names_lock_holder_and_caller(module_host: Host) -> None:
    module = module_host.system.modules["callbacks"]
    with pytest.raises(Stuck, match=r"deadlock: mutex big_lock.*taken at lock_twice.*lock_twice.*waits"):
        module_host.kernel.call(module.symbol("lock_twice") or 0)


def test_spin_locks_of_compiled_code_pair_up(module_host: Host) -> None:
    module = module_host.system.modules["callbacks"]
    assert module_host.kernel.call_s32(module.symbol("spin_pairs") or 0) == 0
    assert module_host.kernel.call_s32(module.symbol("list_round") or 0) == 1


def test_a_spin_lock_is_a_word_that_inlined_code_sees(host: Host) -> None:
    lock = host.buffer(8)
    host.call("_raw_spin_lock", lock)
    assert host.kernel.memory.read_u32(lock) == 1
    assert host.call("_raw_spin_trylock", lock) == 0
    with pytest.raises(Stuck, match="deadlock: spin lock"):
        host.call("queued_spin_lock_slowpath", lock, 1)
    host.call("msleep", 1)
    assert "BUG: scheduling while atomic" in host.log
    host.call("_raw_spin_unlock", lock)
    with pytest.raises(ModuleError, match="released but not held"):
        host.call("_raw_spin_unlock", lock)


def test_readers_share_and_writers_do_not(host: Host) -> None:
    lock, semaphore = host.buffer(8), host.buffer(64)
    host.call("_raw_read_lock", lock)
    host.call("_raw_read_lock", lock)
    with pytest.raises(Stuck, match="reader-writer lock"):
        host.call("_raw_write_lock", lock)
    host.call("__init_rwsem", semaphore, 0, 0)
    host.call("down_write", semaphore)
    assert host.call("down_read_trylock", semaphore) == 0
    host.call("up_write", semaphore)
    assert host.call("down_read_trylock", semaphore) == 1


def test_a_completion_that_nothing_completes_is_said_so(host: Host) -> None:
    done = host.buffer(32)
    host.call("complete", done)
    assert host.s32("wait_for_completion", done) == 0
    assert host.s32("wait_for_completion_timeout", done, 10) == 0
    with pytest.raises(Stuck, match=r"init\[1\] waits for ever: .* waits for completion .* nothing can wake it"):
        host.call("wait_for_completion", done)
    host.call("complete_all", done)
    assert host.s32("wait_for_completion_timeout", done, 10) == 10


def test_waiting_on_a_queue_ends_the_run_with_its_name(host: Host) -> None:
    queue, entry = host.buffer(32), host.buffer(64)
    host.call("__init_waitqueue_head", queue, 0, 0)
    host.call("init_wait_entry", entry, 0)
    assert host.s64("prepare_to_wait_event", queue, entry, 2) == 0
    assert host.u64(queue + 8) == entry + 24
    with pytest.raises(Stuck, match="wait queue"):
        host.call("schedule")
    host.call("finish_wait", queue, entry)
    assert host.u64(queue + 8) == queue + 8
    host.call("schedule")


def test_list_corruption_is_a_bug_with_the_kernels_text(host: Host) -> None:
    head = host.buffer(16)
    host.kernel.memory.write(head, struct.pack("<QQ", head, head))
    new = host.buffer(16)
    assert host.call("__list_add_valid_or_report", new, head, head) == 1
    with pytest.raises(KernelOops, match=r"list_add double add.*kernel BUG at lib/list_debug.c"):
        host.call("__list_add_valid_or_report", head, head, head)
    removed = host.put(struct.pack("<QQ", 0xDEAD_0000_0000_0100, 0xDEAD_0000_0000_0122))
    with pytest.raises(KernelOops, match=r"next is LIST_POISON1 \(dead000000000100\)"):
        host.call("__list_del_entry_valid_or_report", removed)


def test_a_refcount_that_underflows_saturates_and_warns(host: Host) -> None:
    counter = host.buffer(4)
    host.call("refcount_warn_saturate", counter, 3)
    assert host.kernel.memory.read_u32(counter) == 0xC000_0000
    assert "refcount_t: underflow; use-after-free." in host.log


def test_a_rate_limit_lets_a_burst_through(host: Host) -> None:
    state = host.put(struct.pack("<IiiiixxxxQ", 0, 1250, 2, 0, 0, 0))
    name = host.put("noisy")
    assert [host.s32("___ratelimit", state, name) for _ in range(4)] == [1, 1, 0, 0]
    host.call("msleep", 6000)
    assert host.s32("___ratelimit", state, name) == 1
    assert "noisy: 2 callbacks suppressed" in host.log


def test_modules_are_pinned_and_released(module_host: Host) -> None:
    host = module_host
    module = host.system.modules["callbacks"]
    this = module.symbol("__this_module") or 0
    assert host.call("try_module_get", this) == 1
    assert host.call("module_refcount", this) == 1
    host.call("module_put", this)
    host.call("module_put", this)
    assert "kernel/module/main.c module_put" in host.log
    assert host.call("try_module_get", 0) == 1
    with pytest.raises(ModuleError, match="that is no module"):
        host.call("try_module_get", host.buffer(8))


def test_symbols_are_found_by_name(host: Host) -> None:
    assert host.call("__symbol_get", host.put("memcpy")) == host.kernel.symbols.resolve("memcpy")
    assert host.call("__symbol_get", host.put("no_such_symbol")) == 0


def test_an_hvc_stores_four_results_behind_the_stack_pointer(host: Host) -> None:
    result = host.buffer(64)
    engine = host.system.machine.engine
    place = host.kernel.symbols.resolve("__arm_smccc_hvc")
    frame = host.put(struct.pack("<QQ", result, 0))
    before = engine.read("sp")
    engine.write("sp", frame)
    host.system.machine.core.call(place, 0xC600_7FFF, 0, 0, 0, 0, 0, 0, 0)
    engine.write("sp", before)
    assert host.u64(result) == (1 << 64) - 1


def test_variables_say_what_the_machine_is(host: Host) -> None:
    symbols, memory = host.kernel.symbols, host.kernel.memory
    assert symbols.read_variable("memstart_addr") == memory.memstart
    assert symbols.read_variable("kimage_voffset") == memory.kimage_voffset
    assert symbols.read_variable("__cpu_online_mask") == 1
    assert memory.read_u32(symbols.resolve("nr_cpu_ids")) == 1
    caps = int.from_bytes(host.read(symbols.resolve("system_cpucaps"), 32), "little")
    assert {bit for bit in range(256) if caps >> bit & 1} == host.kernel.capability_numbers()
    assert host.string(host.u64(symbols.resolve("iomem_resource") + 16)) == "PCI mem"


def test_a_cpu_waits_for_the_lock_of_another(callbacks_module: Path) -> None:
    profile = MachineProfile(cpus=2)
    with pkvm_emu.boot("android16-6.12", modules=[callbacks_module], profile=profile) as system:
        function = system.modules["callbacks"].symbol("count_locked") or 0
        for seed in range(5):
            before = Host(system).kernel.memory.read_u32(system.modules["callbacks"].symbol("counted") or 0)
            Scheduler(system.machine, seed=seed, longest_turn=7).run({0: (function, (20,)), 1: (function, (20,))})
            after = Host(system).kernel.memory.read_u32(system.modules["callbacks"].symbol("counted") or 0)
            assert after - before == 40


def test_two_cpus_that_wait_for_each_other_are_a_deadlock(callbacks_module: Path) -> None:
    profile = MachineProfile(cpus=2)
    with pkvm_emu.boot("android16-6.12", modules=[callbacks_module], profile=profile) as system:
        module = system.modules["callbacks"]
        calls = {cpu: (module.symbol(name) or 0, ()) for cpu, name in enumerate(("take_ab", "take_ba"))}
        with pytest.raises(Stuck, match=r"deadlock: spin lock lock_[ab].*on CPU"):
            Scheduler(system.machine, longest_turn=1).run(calls)
