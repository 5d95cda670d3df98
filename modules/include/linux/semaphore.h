/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_SEMAPHORE_H__
#define _PKVM_EMU_LINUX_SEMAPHORE_H__

#include <linux/list.h>
#include <linux/spinlock.h>

struct semaphore { raw_spinlock_t lock; unsigned int count; struct list_head wait_list; };
#define DEFINE_SEMAPHORE_COUNT(name, n)	struct semaphore name = { .count = (n), \
	.wait_list = LIST_HEAD_INIT((name).wait_list) }
static inline void sema_init(struct semaphore *sem, int value)
{
	sem->count = value;
	INIT_LIST_HEAD(&sem->wait_list);
}
void down(struct semaphore *sem);
int down_interruptible(struct semaphore *sem);
int down_trylock(struct semaphore *sem);
int down_timeout(struct semaphore *sem, long jiffies);
void up(struct semaphore *sem);

#endif /* _PKVM_EMU_LINUX_SEMAPHORE_H__ */
