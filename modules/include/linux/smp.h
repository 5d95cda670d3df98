/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_SMP_H_
#define _PKVM_EMU_LINUX_SMP_H_

#include <linux/cpumask.h>
#include <asm/smp.h>
int smp_call_function_single(int cpu, void (*fn)(void *arg), void *arg, int wait);
void on_each_cpu_cond_mask(bool (*cond)(int cpu, void *arg), void (*fn)(void *arg), void *arg, bool wait,
			   const struct cpumask *mask);
#define on_each_cpu(fn, arg, wait)	on_each_cpu_cond_mask(NULL, fn, arg, wait, cpu_online_mask)
#define get_cpu()	smp_processor_id()
#define put_cpu()	((void)0)

#endif /* _PKVM_EMU_LINUX_SMP_H_ */
