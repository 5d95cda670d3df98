"""The same families through the headers: what compiled code sees of per-CPU memory, pools and XArrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from calls import Calls, loaded, undone

from pkvm_emu.machine.profile import MachineProfile

SOURCE = r"""
#include <linux/genalloc.h>
#include <linux/xarray.h>
#include <linux/percpu.h>
#include <linux/slab.h>
#include <linux/smp.h>

static int *counters;
static void count(void *unused) { (*this_cpu_ptr(counters))++; }
int count_everywhere(void)
{
	int cpu, sum = 0;

	counters = alloc_percpu(int);
	on_each_cpu(count, NULL, 1);
	on_each_cpu(count, NULL, 1);
	for_each_online_cpu(cpu)
		sum = sum * 10 + *per_cpu_ptr(counters, cpu);
	free_percpu(counters);
	return sum;
}

int pool(void)
{
	void *memory = kmalloc(1024, GFP_KERNEL);
	struct gen_pool *p = gen_pool_create(6, -1);
	unsigned long a, b;

	gen_pool_add(p, (unsigned long)memory, 1024, -1);
	a = gen_pool_alloc(p, 1000);
	b = gen_pool_alloc(p, 100);
	if (a != (unsigned long)memory || b)
		return -1;
	gen_pool_free(p, a, 1000);
	gen_pool_destroy(p);
	return 0;
}

static DEFINE_XARRAY(array);
int arrays(void)
{
	static int ten = 10, twenty = 20;
	unsigned long index;
	int sum = 0, *entry;
	u32 id;

	if (!xa_empty(&array) || xa_alloc(&array, &id, &ten, XA_LIMIT(7, 9), GFP_KERNEL) || id != 7)
		return -2;
	xa_store(&array, 100, &twenty, GFP_KERNEL);
	xa_for_each(&array, index, entry)
		sum += (int)index + *entry;
	xa_destroy(&array);
	return xa_empty(&array) ? sum : -3;
}

static int __init pools_init(void) { return 0; }
module_init(pools_init);
"""


@pytest.fixture(scope="module", params=["14", "15", "16"])
def shared(request: pytest.FixtureRequest, c_module: Callable[..., Path]) -> Calls:
    module = c_module(SOURCE, None, name="pools", generation=request.param)
    return loaded(module, "pools", profile=MachineProfile(cpus=3))


@pytest.fixture
def pools(shared: Calls) -> Iterator[Calls]:
    yield from undone(shared)


def test_per_cpu_counters_count_on_their_cpus(pools: Calls) -> None:
    assert pools.count_everywhere() == 222


def test_a_pool_is_used_up_and_given_back(pools: Calls) -> None:
    assert pools.pool() == 0


def test_an_array_is_walked_by_compiled_code(pools: Calls) -> None:
    assert pools.arrays() == 7 + 10 + 100 + 20
