/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_MUTEX_H_
#define _PKVM_EMU_LINUX_MUTEX_H_

#include <linux/list.h>
#include <linux/spinlock.h>

struct lock_class_key { };

struct mutex {
	atomic_long_t owner;
	raw_spinlock_t wait_lock;
	u32 osq;
	struct list_head wait_list;
	u64 reserved[2];
};

#define DEFINE_MUTEX(name) \
	struct mutex name = { .owner = { 0 }, .wait_lock = _PKVM_EMU_RAW_SPINLOCK, \
			      .wait_list = LIST_HEAD_INIT((name).wait_list) }

void __mutex_init(struct mutex *lock, const char *name, struct lock_class_key *key);
#define mutex_init(lock)	do { static struct lock_class_key key_; __mutex_init(lock, #lock, &key_); } while (0)
void mutex_lock(struct mutex *lock);
int mutex_lock_interruptible(struct mutex *lock);
int mutex_trylock(struct mutex *lock);
void mutex_unlock(struct mutex *lock);
bool mutex_is_locked(struct mutex *lock);
#define mutex_destroy(lock)	((void)(lock))

#endif /* _PKVM_EMU_LINUX_MUTEX_H_ */
