"""Calling exported functions at EL1, through their stubs and with real registers; and the C module of these tests."""

from __future__ import annotations

import pkvm_emu


class Host:
    """Calls kernel functions as compiled code does, and keeps strings and buffers for them."""

    def __init__(self, system: pkvm_emu.System) -> None:
        self.system = system
        self.kernel = system.kernel
        pa = self.kernel.pages.alloc_pages(2, zero=True)
        assert pa is not None
        self._next = self.kernel.memory.linear_va(pa)

    def call(self, name: str, *args: int) -> int:
        """x0 of a function, unsigned."""
        return self.kernel.call(self.kernel.symbols.resolve(name), *args)

    def s32(self, name: str, *args: int) -> int:
        """The ``int`` that a function returns."""
        value = self.call(name, *args) & 0xFFFF_FFFF
        return value - (1 << 32) if value >> 31 else value

    def s64(self, name: str, *args: int) -> int:
        """The ``long`` that a function returns."""
        value = self.call(name, *args)
        return value - (1 << 64) if value >> 63 else value

    def put(self, data: bytes | str, room: int = 0) -> int:
        """Address of a copy of ``data`` (a string gets a NUL) with ``room`` bytes behind, 16-byte aligned."""
        if isinstance(data, str):
            data = data.encode("latin-1") + b"\0"
        address = self._next
        self._next = (address + len(data) + room + 15) & ~15
        self.kernel.memory.write(address, data + bytes(room))
        return address

    def buffer(self, size: int = 256) -> int:
        """Address of ``size`` zero bytes."""
        return self.put(bytes(size))

    def read(self, address: int, size: int) -> bytes:
        return self.kernel.memory.read(address, size)

    def string(self, address: int) -> str:
        return self.kernel.memory.read_cstr(address).decode("latin-1")

    def u64(self, address: int) -> int:
        return self.kernel.memory.read_u64(address)

    @property
    def log(self) -> str:
        return "\n".join(record.text for record in self.kernel.log)


SOURCE = r"""
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/list.h>

static int number = 7;
module_param(number, int, 0644);
static char *label = "none";
module_param(label, charp, 0644);
static bool flag;
module_param(flag, bool, 0644);

int constructed;
void construct(void *object) { constructed++; *(int *)object = 0x5a5a; }

int compare_ints(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

int swaps;
void swap_ints(void *a, void *b, int size)
{
	int old = *(int *)a;

	swaps++;
	*(int *)a = *(int *)b;
	*(int *)b = old;
}

int format_many(char *buffer)
{
	return snprintf(buffer, 64, "%d %s %x %c %llu %d %d %d", 1, "two", 3, '4', 5ULL, 6, 7, 8);
}

int scan_three(const char *text, int *out)
{
	return sscanf(text, "%d:%x %d", &out[0], &out[1], &out[2]);
}

static DEFINE_MUTEX(big_lock);
void lock_twice(void)
{
	mutex_lock(&big_lock);
	mutex_lock(&big_lock);
}

static DEFINE_SPINLOCK(small_lock);
int spin_pairs(void)
{
	unsigned long flags;

	spin_lock(&small_lock);
	spin_unlock(&small_lock);
	spin_lock_irqsave(&small_lock, flags);
	spin_unlock_irqrestore(&small_lock, flags);
	return 0;
}

int constant_allocation(void)
{
	char *memory = kmalloc(100, GFP_KERNEL);
	int wrong = 0, i;

	if (!memory)
		return -12;
	for (i = 0; i < 100; i++)
		wrong += memory[i] != 0;
	kfree(memory);
	return wrong;
}

static LIST_HEAD(entries);
int list_round(void)
{
	struct list_head one;

	list_add(&one, &entries);
	list_del(&one);
	return list_empty(&entries);
}

static DEFINE_SPINLOCK(count_lock);
int counted;
void count_locked(int times)
{
	while (times--) {
		spin_lock(&count_lock);
		counted++;
		spin_unlock(&count_lock);
	}
}

static DEFINE_SPINLOCK(lock_a);
static DEFINE_SPINLOCK(lock_b);
void take_ab(void) { spin_lock(&lock_a); spin_lock(&lock_b); }
void take_ba(void) { spin_lock(&lock_b); spin_lock(&lock_a); }

static int __init callbacks_init(void) { return 0; }
module_init(callbacks_init);
MODULE_LICENSE("GPL");
"""
