/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_RWSEM_H__
#define _PKVM_EMU_LINUX_RWSEM_H__

#include <linux/atomic.h>
#include <linux/list.h>
#include <linux/spinlock.h>

/* The last three words are GKI's vendor and OEM data (include/linux/rwsem.h). */
struct rw_semaphore {
	atomic_long_t count, owner;
	u32 osq;
	raw_spinlock_t wait_lock;
	struct list_head wait_list;
	u64 android_data[3];
};
#define __RWSEM_INITIALIZER(name)	{ .wait_list = LIST_HEAD_INIT((name).wait_list) }
#define DECLARE_RWSEM(name)	struct rw_semaphore name = __RWSEM_INITIALIZER(name)
struct lock_class_key;
void __init_rwsem(struct rw_semaphore *sem, const char *name, struct lock_class_key *key);
#define init_rwsem(sem)	__init_rwsem(sem, #sem, NULL)
void down_read(struct rw_semaphore *sem);
int down_read_trylock(struct rw_semaphore *sem);
void down_write(struct rw_semaphore *sem);
int down_write_trylock(struct rw_semaphore *sem);
void up_read(struct rw_semaphore *sem);
void up_write(struct rw_semaphore *sem);
void downgrade_write(struct rw_semaphore *sem);

#endif /* _PKVM_EMU_LINUX_RWSEM_H__ */
