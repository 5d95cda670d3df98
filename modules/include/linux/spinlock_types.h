/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_SPINLOCK_TYPES_H_
#define _PKVM_EMU_LINUX_SPINLOCK_TYPES_H_

#include <linux/types.h>
typedef struct { u32 val; } arch_spinlock_t;
typedef struct raw_spinlock { arch_spinlock_t raw_lock; } raw_spinlock_t;
typedef struct spinlock { struct raw_spinlock rlock; } spinlock_t;
#define _PKVM_EMU_RAW_SPINLOCK		{ .raw_lock = { 0 } }
#define __RAW_SPIN_LOCK_UNLOCKED(name)	(raw_spinlock_t)_PKVM_EMU_RAW_SPINLOCK
#define DEFINE_RAW_SPINLOCK(name)	raw_spinlock_t name = _PKVM_EMU_RAW_SPINLOCK
#define DEFINE_SPINLOCK(name)		spinlock_t name = { .rlock = _PKVM_EMU_RAW_SPINLOCK }

#endif /* _PKVM_EMU_LINUX_SPINLOCK_TYPES_H_ */
