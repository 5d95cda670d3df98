/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_NVHE_SPINLOCK_H_
#define _PKVM_EMU_NVHE_SPINLOCK_H_

#include <linux/types.h>
#include <asm/barrier.h>

/* A fair lock between CPUs at EL2: a ticket to draw and the ticket that is served. */
typedef union hyp_spinlock {
	u32 __val;
	struct {
		u16 owner, next;
	};
} hyp_spinlock_t;

#define __HYP_SPIN_LOCK_UNLOCKED	((hyp_spinlock_t){ .__val = 0 })
#define DEFINE_HYP_SPINLOCK(name)	hyp_spinlock_t name = { .__val = 0 }
#define hyp_spin_lock_init(lock)	do { *(lock) = __HYP_SPIN_LOCK_UNLOCKED; } while (0)

static inline void hyp_spin_lock(hyp_spinlock_t *lock)
{
	u16 ticket = __atomic_fetch_add(&lock->next, 1, __ATOMIC_RELAXED);

	while (__atomic_load_n(&lock->owner, __ATOMIC_ACQUIRE) != ticket)
		cpu_relax();
}

static inline void hyp_spin_unlock(hyp_spinlock_t *lock)
{
	__atomic_store_n(&lock->owner, (u16)(lock->owner + 1), __ATOMIC_RELEASE);
	sev();
}

static inline bool hyp_spin_is_locked(hyp_spinlock_t *lock)
{
	hyp_spinlock_t now = { .__val = __atomic_load_n(&lock->__val, __ATOMIC_RELAXED) };

	return now.owner != now.next;
}

#endif /* _PKVM_EMU_NVHE_SPINLOCK_H_ */
