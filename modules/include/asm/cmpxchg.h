/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_CMPXCHG_H_
#define _PKVM_EMU_ASM_CMPXCHG_H_

#include <linux/compiler.h>
/* The value found there; the store happened if it equals old. */
#define _pkvm_emu_cmpxchg(ptr, old, new, order) ({ \
	typeof(*(ptr)) found_ = (old); \
	__atomic_compare_exchange_n(ptr, &found_, (typeof(*(ptr)))(new), false, order, __ATOMIC_RELAXED); \
	found_; })
#define cmpxchg(ptr, old, new)		_pkvm_emu_cmpxchg(ptr, old, new, __ATOMIC_SEQ_CST)
#define cmpxchg_acquire(ptr, old, new)	_pkvm_emu_cmpxchg(ptr, old, new, __ATOMIC_ACQUIRE)
#define cmpxchg_release(ptr, old, new)	_pkvm_emu_cmpxchg(ptr, old, new, __ATOMIC_RELEASE)
#define cmpxchg_relaxed(ptr, old, new)	_pkvm_emu_cmpxchg(ptr, old, new, __ATOMIC_RELAXED)
#define cmpxchg64(ptr, old, new)	cmpxchg(ptr, old, new)
#define xchg(ptr, val)			__atomic_exchange_n(ptr, val, __ATOMIC_SEQ_CST)
#define xchg_relaxed(ptr, val)		__atomic_exchange_n(ptr, val, __ATOMIC_RELAXED)

#endif /* _PKVM_EMU_ASM_CMPXCHG_H_ */
