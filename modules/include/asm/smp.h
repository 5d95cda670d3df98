/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_SMP_H_
#define _PKVM_EMU_ASM_SMP_H_

#include <linux/types.h>
static __always_inline unsigned long __my_cpu_offset(void)
{
	unsigned long offset;

#ifdef __KVM_NVHE_HYPERVISOR__
	__asm__ volatile("mrs %0, tpidr_el2" : "=r"(offset));
#else
	__asm__ volatile("mrs %0, tpidr_el1" : "=r"(offset));
#endif
	return offset;
}

#ifndef __KVM_NVHE_HYPERVISOR__
extern int cpu_number;	/* per-CPU: add __my_cpu_offset() to its address */
static __always_inline int raw_smp_processor_id(void)
{
	return *(volatile int *)((unsigned long)&cpu_number + __my_cpu_offset());
}
#define smp_processor_id()	raw_smp_processor_id()
#endif

#endif /* _PKVM_EMU_ASM_SMP_H_ */
