/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_ATOMIC_H_
#define _PKVM_EMU_ASM_ATOMIC_H_

#include <linux/compiler.h>
#include <linux/types.h>

/* One set of operations for each of atomic_t and atomic64_t; value-returning ones are fully ordered. */
#define _PKVM_EMU_ATOMIC(prefix, type, value) \
static __always_inline value prefix##_read(const type *v) { return __atomic_load_n(&v->counter, __ATOMIC_RELAXED); } \
static __always_inline void prefix##_set(type *v, value n) { __atomic_store_n(&v->counter, n, __ATOMIC_RELAXED); } \
static __always_inline void prefix##_add(value n, type *v) { __atomic_fetch_add(&v->counter, n, __ATOMIC_RELAXED); } \
static __always_inline void prefix##_sub(value n, type *v) { __atomic_fetch_sub(&v->counter, n, __ATOMIC_RELAXED); } \
static __always_inline void prefix##_inc(type *v) { prefix##_add(1, v); } \
static __always_inline void prefix##_dec(type *v) { prefix##_sub(1, v); } \
static __always_inline void prefix##_or(value n, type *v) { __atomic_fetch_or(&v->counter, n, __ATOMIC_RELAXED); } \
static __always_inline void prefix##_and(value n, type *v) { __atomic_fetch_and(&v->counter, n, __ATOMIC_RELAXED); } \
static __always_inline value prefix##_add_return(value n, type *v) \
{ return __atomic_add_fetch(&v->counter, n, __ATOMIC_SEQ_CST); } \
static __always_inline value prefix##_sub_return(value n, type *v) \
{ return __atomic_sub_fetch(&v->counter, n, __ATOMIC_SEQ_CST); } \
static __always_inline value prefix##_fetch_add(value n, type *v) \
{ return __atomic_fetch_add(&v->counter, n, __ATOMIC_SEQ_CST); } \
static __always_inline value prefix##_inc_return(type *v) { return prefix##_add_return(1, v); } \
static __always_inline value prefix##_dec_return(type *v) { return prefix##_sub_return(1, v); } \
static __always_inline bool prefix##_dec_and_test(type *v) { return prefix##_dec_return(v) == 0; } \
static __always_inline value prefix##_xchg(type *v, value n) \
{ return __atomic_exchange_n(&v->counter, n, __ATOMIC_SEQ_CST); } \
static __always_inline value prefix##_cmpxchg(type *v, value old, value n) \
{ \
	__atomic_compare_exchange_n(&v->counter, &old, n, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED); \
	return old; \
}
_PKVM_EMU_ATOMIC(atomic, atomic_t, int)
_PKVM_EMU_ATOMIC(atomic64, atomic64_t, s64)
_PKVM_EMU_ATOMIC(atomic_long, atomic_long_t, s64)

#endif /* _PKVM_EMU_ASM_ATOMIC_H_ */
