/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_PERCPU_H_
#define _PKVM_EMU_LINUX_PERCPU_H_

#include <linux/smp.h>
extern unsigned long __per_cpu_offset[CONFIG_NR_CPUS];
#define DECLARE_PER_CPU(type, name)	extern __section(".data..percpu") typeof(type) name
#define DEFINE_PER_CPU(type, name)	__section(".data..percpu") typeof(type) name
#define per_cpu_ptr(ptr, cpu)		((typeof(ptr))((unsigned long)(ptr) + __per_cpu_offset[cpu]))
#define per_cpu(name, cpu)		(*per_cpu_ptr(&(name), cpu))
#define this_cpu_ptr(ptr)		((typeof(ptr))((unsigned long)(ptr) + __my_cpu_offset()))

/* (include/linux/percpu.h; 6.12 renamed the function behind the macro) */
#if PKVM_EMU_ANDROID >= 16
void *pcpu_alloc_noprof(size_t size, size_t align, bool reserved, unsigned int gfp);
#define __alloc_percpu(size, align)	pcpu_alloc_noprof(size, align, false, 0xcc0)
#else
void *__alloc_percpu(size_t size, size_t align);
#endif
void free_percpu(void *ptr);
#define alloc_percpu(type)	((typeof(type) *)__alloc_percpu(sizeof(type), __alignof__(type)))

#endif /* _PKVM_EMU_LINUX_PERCPU_H_ */
