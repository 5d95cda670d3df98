/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_SPINLOCK_H_
#define _PKVM_EMU_LINUX_SPINLOCK_H_

#include <linux/irqflags.h>
#include <linux/preempt.h>
#include <linux/spinlock_types.h>
#include <linux/types.h>

/* Out of line, as in a kernel with preemption. */
void _raw_spin_lock(raw_spinlock_t *lock);
void _raw_spin_unlock(raw_spinlock_t *lock);
int _raw_spin_trylock(raw_spinlock_t *lock);
void _raw_spin_lock_irq(raw_spinlock_t *lock);
void _raw_spin_unlock_irq(raw_spinlock_t *lock);
unsigned long _raw_spin_lock_irqsave(raw_spinlock_t *lock);
void _raw_spin_unlock_irqrestore(raw_spinlock_t *lock, unsigned long flags);

#define raw_spin_lock_init(lock)	(*(lock) = (raw_spinlock_t)_PKVM_EMU_RAW_SPINLOCK)
#define raw_spin_lock(lock)		_raw_spin_lock(lock)
#define raw_spin_unlock(lock)		_raw_spin_unlock(lock)
#define raw_spin_lock_irqsave(lock, flags)	((flags) = _raw_spin_lock_irqsave(lock))
#define raw_spin_unlock_irqrestore(lock, flags)	_raw_spin_unlock_irqrestore(lock, flags)

#define spin_lock_init(lock)		raw_spin_lock_init(&(lock)->rlock)
#define spin_lock(lock)			_raw_spin_lock(&(lock)->rlock)
#define spin_unlock(lock)		_raw_spin_unlock(&(lock)->rlock)
#define spin_trylock(lock)		_raw_spin_trylock(&(lock)->rlock)
#define spin_lock_irq(lock)		_raw_spin_lock_irq(&(lock)->rlock)
#define spin_unlock_irq(lock)		_raw_spin_unlock_irq(&(lock)->rlock)
#define spin_lock_irqsave(lock, flags)	((flags) = _raw_spin_lock_irqsave(&(lock)->rlock))
#define spin_unlock_irqrestore(lock, flags)	_raw_spin_unlock_irqrestore(&(lock)->rlock, flags)

#endif /* _PKVM_EMU_LINUX_SPINLOCK_H_ */
