/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_BARRIER_H_
#define _PKVM_EMU_ASM_BARRIER_H_

#include <linux/compiler.h>
#define sev()		__asm__ volatile("sev" : : : "memory")
#define wfe()		__asm__ volatile("wfe" : : : "memory")
#define wfi()		__asm__ volatile("wfi" : : : "memory")
#define isb()		__asm__ volatile("isb" : : : "memory")
#define dmb(domain)	__asm__ volatile("dmb " #domain : : : "memory")
#define dsb(domain)	__asm__ volatile("dsb " #domain : : : "memory")
#define mb()		dsb(sy)
#define rmb()		dsb(ld)
#define wmb()		dsb(st)
#define dma_mb()	dmb(osh)
#define dma_rmb()	dmb(oshld)
#define dma_wmb()	dmb(oshst)
#define smp_mb()	dmb(ish)
#define smp_rmb()	dmb(ishld)
#define smp_wmb()	dmb(ishst)
#define __smp_mb()	smp_mb()
#define smp_store_release(ptr, val)	__atomic_store_n(ptr, val, __ATOMIC_RELEASE)
#define smp_load_acquire(ptr)		__atomic_load_n(ptr, __ATOMIC_ACQUIRE)
#define cpu_relax()	__asm__ volatile("yield" : : : "memory")

#endif /* _PKVM_EMU_ASM_BARRIER_H_ */
